from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from nfn_opt.weight_space import WeightSpace
from tests.weight_space.models import draw, randomised


def network(seed: int = 0) -> nn.Module:
    return randomised(
        nn.Sequential(nn.Conv1d(2, 4, 1), nn.BatchNorm1d(4), nn.Flatten(), nn.Linear(12, 2)), seed
    )


@pytest.fixture
def space() -> WeightSpace:
    return WeightSpace.from_module(network(), draw(2, 2, 3))


def parameters(seed: int) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in network(seed).named_parameters()}


def test_networks_are_stacked_with_channels_last(space: WeightSpace) -> None:
    features = space.features([network(1), parameters(2), network(3).state_dict()])
    assert {name: tuple(tensor.shape) for name, tensor in features.items()} == {
        "0.weight": (3, 4, 2, 1, 1),
        "0.bias": (3, 4, 1),
        "1.weight": (3, 4, 1),
        "1.bias": (3, 4, 1),
        "3.weight": (3, 2, 4, 3, 1),
        "3.bias": (3, 2, 1),
    }
    assert not any(tensor.requires_grad for tensor in features.values())
    for index, seed in enumerate((1, 2, 3)):
        assert torch.equal(features["3.weight"][index, ..., 0], parameters(seed)["3.weight"].view(2, 4, 3))


def test_gradients_and_momenta_are_channels(space: WeightSpace) -> None:
    weights, gradients = (
        {n: torch.stack([parameters(s)[n] for s in seeds]) for n in space.names} for seeds in ((1, 2), (3, 4))
    )
    features = space.as_features(weights, gradients)
    assert features["3.weight"].shape == (2, 2, 4, 3, 2)
    for channel, tensors in enumerate((weights, gradients)):
        for name, tensor in space.from_features(features, channel).items():
            assert torch.equal(tensor, tensors[name])
    assert torch.equal(space.from_features(features, -1)["0.bias"], gradients["0.bias"])


def test_features_carry_gradients(space: WeightSpace) -> None:
    weights = {name: tensor[None].requires_grad_() for name, tensor in parameters(1).items()}
    outputs = space.from_features(space.as_features(weights, weights), 1)
    sum(tensor.sum() for tensor in outputs.values()).backward()  # type: ignore[union-attr]
    for tensor in weights.values():
        assert tensor.grad is not None
        assert torch.equal(tensor.grad, torch.ones_like(tensor))


def test_writing_a_network_back(space: WeightSpace) -> None:
    features = space.as_features(
        *(space.from_features(space.features([network(s), network(s + 1)])) for s in (1, 3))
    )
    model = network(9)
    kept, held = {n: b.clone() for n, b in model.named_buffers()}, [id(p) for p in model.parameters()]
    space.write(features, model, index=1, channel=1)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, parameters(4)[name])
        assert parameter.requires_grad
    assert [id(p) for p in model.parameters()] == held
    assert all(torch.equal(b, kept[n]) for n, b in model.named_buffers())


def test_writing_keeps_the_models_dtype(space: WeightSpace) -> None:
    model = network(9).double()
    space.write(space.features([network(1)]), model)
    assert torch.equal(model.get_parameter("0.bias"), parameters(1)["0.bias"].double())


def test_what_does_not_fit_is_not_written(space: WeightSpace) -> None:
    model = network(9)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    features = space.features([network(1)])
    for wrong, index, channel in (
        ({name: tensor for name, tensor in features.items() if name != "3.bias"}, 0, 0),
        ({**features, "3.bias": features["3.bias"][:, :1]}, 0, 0),
        (features, 1, 0),
        (features, 0, 1),
    ):
        with pytest.raises(ValueError, match=r"expected|missing"):
            space.write(wrong, model, index, channel)
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
