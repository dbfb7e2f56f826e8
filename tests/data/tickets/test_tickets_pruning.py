"""Training of masked networks beside plain modules and torch's Adam, and iterative magnitude pruning."""

import math

import pytest
import torch
import torch.nn.functional as F

from nfn_opt import WeightSpace
from nfn_opt.data import load_images
from nfn_opt.data.tickets import (
    Architecture,
    MlpArchitecture,
    PruningOptions,
    TrainOptions,
    accuracy,
    apply_masks,
    find_tickets,
    initial_parameters,
    kept_share,
    magnitude_masks,
    make_module,
    prunable,
    random_masks,
    ticket_data,
    train_masked,
)
from nfn_opt.data.tickets.pruning import stacked_networks
from nfn_opt.data.zoos import CnnArchitecture
from nfn_opt.data.zoos.stacked import pack, unpack
from nfn_opt.data.zoos.training import ZooData

MLP = MlpArchitecture(side=8, widths=(12, 6))
CNN = CnnArchitecture(widths=(4, 5))
ARCHITECTURES = [pytest.param(MLP, id="mlp"), pytest.param(CNN, id="cnn")]


def _data(architecture: Architecture, train: int = 200) -> ZooData:
    parts = load_images("digits").split({"train": train, "test": 100})
    return ticket_data(parts["train"], parts["test"], architecture)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_and_gradients_are_those_of_the_module(architecture: Architecture) -> None:
    data = _data(architecture).to(torch.float64)
    params = {n: v.double() for n, v in initial_parameters(architecture, range(2), 0).items()}
    networks = stacked_networks(architecture, 8)
    packed, batch = pack(params, architecture), networks.batch(data.train[:7])
    gradient = torch.zeros_like(packed)
    networks.gradient(packed, batch, F.one_hot(data.train_labels[:7], 10).double(), gradient)  # type: ignore[arg-type]
    found, logits = unpack(gradient, architecture), networks.logits(packed, batch)  # type: ignore[arg-type]
    for row in range(2):
        module = make_module(architecture).double()
        module.load_state_dict({name: value[row] for name, value in params.items()})
        outputs = module(data.train[:7])
        torch.testing.assert_close(logits[row], outputs)
        F.cross_entropy(outputs, data.train_labels[:7]).backward()
        for name, parameter in module.named_parameters():
            torch.testing.assert_close(found[name][row], parameter.grad)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_training_is_that_of_a_masked_module(architecture: Architecture) -> None:
    data, options = _data(architecture), TrainOptions(epochs=1, batch_size=50, learning_rate=0.01)
    params = initial_parameters(architecture, range(3), 0)
    masks = random_masks(prunable(architecture), 3, 0.6, torch.Generator().manual_seed(0))
    found = train_masked(params, masks, data, architecture, options, torch.Generator().manual_seed(4))
    module = make_module(architecture)
    module.load_state_dict({name: value[1] for name, value in apply_masks(params, masks).items()})
    order = torch.randperm(200, generator=torch.Generator().manual_seed(4)).view(4, 50)
    optimizer = torch.optim.Adam(module.parameters())
    for step, numbers in enumerate(order):
        optimizer.param_groups[0]["lr"] = 0.01 * (1 + math.cos(math.pi * step / 4)) / 2
        optimizer.zero_grad()
        F.cross_entropy(module(data.train[numbers]), data.train_labels[numbers]).backward()
        for name, parameter in module.named_parameters():
            if name in masks:
                assert parameter.grad is not None
                parameter.grad *= masks[name][1]
        optimizer.step()
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(found[name][1], parameter.detach(), atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_pruned_weights_stay_zero_and_others_move(architecture: Architecture) -> None:
    data = _data(architecture)
    params = initial_parameters(architecture, range(2), 0)
    masks = magnitude_masks(params, 0.7)
    trained = train_masked(params, masks, data, architecture, TrainOptions(), torch.Generator())
    for name, mask in masks.items():
        assert (trained[name][~mask] == 0).all()
    assert (trained["fc.weight"] != params["fc.weight"])[masks["fc.weight"]].any()
    assert (trained["fc.bias"] != 0).any()


def test_training_learns() -> None:
    wide = MlpArchitecture(side=8, widths=(24,))
    data = _data(wide, 1600)
    params = initial_parameters(wide, range(2), 0)
    options = TrainOptions(epochs=10, learning_rate=0.02)
    trained = train_masked(params, None, data, wide, options, torch.Generator())
    before, after = (accuracy(some, data, wide) for some in (params, trained))
    assert before.max() < 0.4
    assert after.min() > 0.85


def test_one_round_keeps_the_largest_trained_weights() -> None:
    data, options = _data(MLP), TrainOptions()
    params = initial_parameters(MLP, range(2), 0)
    masks, dense = find_tickets(
        params, data, MLP, PruningOptions(), options, torch.Generator().manual_seed(1)
    )
    again = train_masked(params, None, data, MLP, options, torch.Generator().manual_seed(1))
    assert all(torch.equal(dense[name], again[name]) for name in dense)
    wanted = magnitude_masks(dense, 0.95)
    assert all(torch.equal(masks[name], wanted[name]) for name in masks)


def test_rounds_prune_what_was_kept() -> None:
    data = _data(MLP)
    params = initial_parameters(MLP, range(2), 0)
    found = {
        rounds: find_tickets(
            params,
            data,
            MLP,
            PruningOptions(sparsity=1 - 0.5**rounds, rounds=rounds),
            TrainOptions(),
            torch.Generator().manual_seed(1),
        )[0]
        for rounds in (1, 2, 3)
    }
    for rounds, masks in found.items():
        assert kept_share(masks).tolist() == pytest.approx([0.5**rounds] * 2, abs=1e-3)
    for name in found[1]:
        assert not (found[2][name] & ~found[1][name]).any()
        assert not (found[3][name] & ~found[2][name]).any()


def test_hidden_neurons_of_the_mlp_may_be_permuted() -> None:
    module = make_module(MLP)
    space = WeightSpace.from_module(module, torch.zeros(1, 64))
    assert list(space.groups.values()) == [12, 6]
    space.verify(module, torch.rand(3, 64))


def test_networks_do_not_depend_on_their_number() -> None:
    few, many = (initial_parameters(MLP, numbers, 3) for numbers in (range(2, 3), range(5)))
    assert all(torch.equal(few[name][0], many[name][2]) for name in few)
    assert not torch.equal(many["fc.weight"][0], many["fc.weight"][1])


def test_refusals() -> None:
    with pytest.raises(ValueError, match="expected 1 of 28 x 28"):
        _data(MlpArchitecture())
    with pytest.raises(ValueError, match="expected 3"):
        _data(CnnArchitecture(in_channels=3))
    with pytest.raises(ValueError, match="rounds is 0"):
        PruningOptions(rounds=0)
    with pytest.raises(ValueError, match="epochs is 0"):
        TrainOptions(epochs=0)
    with pytest.raises(ValueError, match="at least one hidden layer"):
        MlpArchitecture(widths=())
