"""Mask generators: equivariant, of exact sparsity, probabilistic, learning, kept on the disk."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nfn_opt import WeightSpace
from nfn_opt.artifacts import ArtifactError
from nfn_opt.data.tickets import (
    Architecture,
    MlpArchitecture,
    TicketSet,
    initial_parameters,
    kept_share,
    overlap,
    prunable,
    random_masks,
    top_masks,
)
from nfn_opt.data.zoos import CnnArchitecture
from nfn_opt.mask_generator import MaskGenerator, MaskGeneratorConfig, evidence_bound, train_mask_generator
from nfn_opt.mask_generator.parts import BaseLogits, pixel_encoding, space_of
from nfn_opt.training import TrainingConfig

MLP = MlpArchitecture(side=4, widths=(8,), classes=3)
CNN = CnnArchitecture(widths=(4, 5), classes=3)
BODIES = ["np", "hnp", "pointwise"]
LATENTS = ["neuron", "network", "weight", "none"]


def _model(architecture: Architecture = MLP, seed: int = 0, **options: object) -> MaskGenerator:
    config = MaskGeneratorConfig(hidden_channels=4, latent_channels=2, **options)  # type: ignore[arg-type]
    model = MaskGenerator(architecture, config, generator=torch.Generator().manual_seed(seed))
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():  # nothing may be hidden by parameters that start at zero
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def _tickets(architecture: Architecture = MLP, count: int = 4, sparsity: float = 0.8) -> TicketSet:
    params = initial_parameters(architecture, range(count), 0)
    masks = random_masks(prunable(architecture), count, sparsity, torch.Generator().manual_seed(0))
    return TicketSet(params, masks, architecture)


def _permuted(space: WeightSpace, tensors: dict[str, Tensor], seed: int = 3) -> dict[str, Tensor]:
    permutation = space.random_permutation(torch.Generator().manual_seed(seed))
    full = {spec.name: tensors.get(spec.name) for spec in space.parameters}
    some = next(value for value in full.values() if value is not None)
    filled = {
        name: some.new_zeros(len(some), *space[name].shape) if value is None else value
        for name, value in full.items()
    }
    moved = space.from_features(space.permute_features(space.as_features(filled), permutation))
    return {name: moved[name] for name in tensors}


def _of_neurons(space: WeightSpace, latent: Tensor, seed: int = 3) -> Tensor:
    """Latent vectors of hidden neurons, two channels each, permuted as `_permuted` does."""
    permutation = space.random_permutation(torch.Generator().manual_seed(seed))
    parts = latent.unflatten(1, (-1, 2)).split(list(space.groups.values()), 1)
    biases = [spec for spec in space.parameters if len(spec.axes) == 1 and spec.axes[0].permutable]
    moved = [spec.permute(part, permutation, batch_dims=1) for spec, part in zip(biases, parts, strict=True)]
    return torch.cat(moved, 1).flatten(1)


def _latents(model: MaskGenerator, space: WeightSpace, latent: str) -> tuple[Tensor | None, Tensor | None]:
    """Latent vectors of four networks, and what they are when the neurons are permuted."""
    if latent == "none":
        return None, None
    z = torch.randn(4, model.latents, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    if latent == "network":
        return z, z
    if latent == "neuron":
        return z, _of_neurons(space, z)
    sizes = [2 * space[name].numel for name in space.names]
    parts = dict(zip(space.names, z.split(sizes, 1), strict=True))
    channels = [{n: p.view(4, *space[n].shape, 2)[..., c] for n, p in parts.items()} for c in range(2)]
    turned = [_permuted(space, channel) for channel in channels]
    return z, torch.cat([torch.stack([c[n] for c in turned], -1).flatten(1) for n in space.names], 1)


@pytest.mark.parametrize("latent", LATENTS)
@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("architecture", [MLP, CNN], ids=["mlp", "cnn"])
def test_logits_move_with_hidden_neurons(architecture: Architecture, body: str, latent: str) -> None:
    model, tickets = _model(architecture, body=body, latent=latent).double(), _tickets(architecture)
    space, params = space_of(architecture), {n: v.double() for n, v in tickets.params.items()}
    masks = {name: mask.double() for name, mask in tickets.masks.items()}
    moved = _permuted(space, params)
    assert not torch.allclose(moved["fc.weight"], params["fc.weight"])
    z, other = _latents(model, space, latent)
    if latent in ("network", "neuron"):
        for one, two in zip(
            model.encode(params, masks), model.encode(moved, _permuted(space, masks)), strict=True
        ):
            torch.testing.assert_close(one if latent == "network" else _of_neurons(space, one), two)
    expected = _permuted(space, model.decode(params, z))
    found = model.decode(moved, other)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


@pytest.mark.parametrize("body", BODIES)
def test_inputs_and_outputs_are_told_apart(body: str) -> None:
    model = _model(body=body, latent="none").double()
    params = {name: torch.ones(1, *shape).double() for name, shape in MLP.parameter_shapes.items()}
    logits = model.decode(params, None)
    model.base.fit({name: torch.ones(1, *shape) > 0 for name, shape in prunable(MLP).items()})
    assert logits["layers.0.weight"][0].std(1).min() > 1e-4
    assert logits["fc.weight"][0].std(0).min() > 1e-4


@pytest.mark.parametrize("body", ["np", "hnp"])
def test_entries_hear_each_other_unless_pointwise(body: str) -> None:
    params = initial_parameters(MLP, range(1), 0)
    changed = {**params, "fc.weight": params["fc.weight"].flip(2)}
    models = [_model(body=one, latent="none") for one in (body, "pointwise")]
    heard, alone = (
        (m.decode(params, None)["layers.0.weight"] - m.decode(changed, None)["layers.0.weight"]).abs().max()
        for m in models
    )
    assert heard > 1e-5
    assert alone == 0


@pytest.mark.parametrize("latent", ["neuron", "network", "weight"])
def test_latent_and_mask_matter(latent: str) -> None:
    model, tickets = _model(latent=latent), _tickets()
    one, other = (model.decode(tickets.params, torch.full((4, model.latents), x)) for x in (0.0, 2.0))
    assert (one["fc.weight"] - other["fc.weight"]).abs().max() > 1e-3
    empty = {name: torch.zeros_like(mask) for name, mask in tickets.masks.items()}
    means = [model.encode(tickets.params, masks)[0] for masks in (tickets.masks, empty)]
    assert (means[0] - means[1]).abs().max() > 1e-3


@pytest.mark.parametrize("latent", LATENTS)
@pytest.mark.parametrize("body", BODIES)
def test_sparsity_is_exact(body: str, latent: str) -> None:
    model = _model(body=body, latent=latent)
    params = initial_parameters(MLP, range(3), 0)
    masks = model.generate(params, 0.9, torch.Generator().manual_seed(0))
    kept = torch.stack([mask.flatten(1).sum(1) for mask in masks.values()]).sum(0)
    assert kept.tolist() == [round(0.1 * (128 + 24))] * 3
    by_layer = model.generate(params, 0.75, torch.Generator().manual_seed(0), scope="layer")
    assert {n: m.flatten(1).sum(1).tolist() for n, m in by_layer.items()} == {
        "layers.0.weight": [32] * 3,
        "fc.weight": [6] * 3,
    }


def test_draws_follow_the_logits() -> None:
    model = _model(latent="none")
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.zero_()
        for logit in model.base.logits:
            logit.fill_(-2.0)
        model.base.logits[0][:, :8] = 2.0
    params = {n: v.expand(2000, *v.shape[1:]) for n, v in initial_parameters(MLP, range(1), 0).items()}
    share = 1 - (64 * torch.sigmoid(torch.tensor(2.0)) + 88 * torch.sigmoid(torch.tensor(-2.0))).item() / 152
    masks = model.generate(params, share, torch.Generator().manual_seed(0))
    kept = masks["layers.0.weight"].float().mean((0, 1))
    assert (kept[:8] - 0.8808).abs().max() < 0.02
    assert (kept[8:] - 0.1192).abs().max() < 0.02
    surest = model.generate(params, 1 - 64 / 152, torch.Generator().manual_seed(0), temperature=0)
    assert surest["layers.0.weight"][:, :, :8].all()


def test_draws_differ_and_repeat() -> None:
    model, params = _model(), initial_parameters(MLP, range(2), 0)
    first, again, other = (model.generate(params, 0.8, torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert overlap(first, other).max() < 1


def test_loss_is_the_evidence_bound() -> None:
    model, tickets = _model().double(), _tickets()
    params = {name: value.double() for name, value in tickets.params.items()}
    found = model.loss(params, tickets.masks, torch.Generator().manual_seed(5))
    mean, log_variance = model.encode(params, tickets.masks)
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(5))
    z = mean + (log_variance / 2).exp() * noise
    posterior = torch.distributions.Normal(mean, (log_variance / 2).exp())
    divergence = torch.distributions.kl_divergence(
        posterior, torch.distributions.Normal(torch.zeros(()), torch.ones(()))
    )
    total = divergence.sum()
    for name, logits in model.decode(params, z).items():
        total -= torch.distributions.Bernoulli(logits=logits).log_prob(tickets.masks[name].double()).sum()
    torch.testing.assert_close(found, total / 4 / 152, check_dtype=False)


def test_base_starts_from_frequencies() -> None:
    base, tickets = BaseLogits(MLP), _tickets(count=50)
    masks = {name: mask.clone() for name, mask in tickets.masks.items()}
    masks["layers.0.weight"][:, :, 0] = False
    masks["layers.0.weight"][:, :, 1] = True
    base.fit(masks)
    share = torch.sigmoid(base()["layers.0.weight"])
    assert share.shape == (1, 16)
    assert share[0, 0] < 0.001
    assert share[0, 1] > 0.995
    torch.testing.assert_close(
        share[0, 2:], masks["layers.0.weight"].float().mean((0, 1))[2:], atol=5e-3, rtol=0
    )


def test_pixels_have_places_of_their_own() -> None:
    encoding = pixel_encoding(MlpArchitecture(), 3)
    assert encoding.shape == (784, 12)
    distances = torch.cdist(encoding, encoding) + 10 * torch.eye(784)
    assert distances.min() > 0.05
    assert torch.equal(encoding[:28, :6].std(0), torch.zeros(6))


def _learnable(count: int) -> TicketSet:
    """Masks of weights that are large, and of inputs in the first half."""
    params = initial_parameters(MLP, range(count), 1)
    scores = {name: params[name].abs() for name in prunable(MLP)}
    scores["layers.0.weight"] = scores["layers.0.weight"] * (torch.arange(16) < 8)
    return TicketSet(params, top_masks(scores, 0.8), MLP)


@pytest.mark.parametrize("body", BODIES)
def test_training_learns_what_masks_depend_on(body: str) -> None:
    tickets, config = _learnable(60), MaskGeneratorConfig(body=body, hidden_channels=6)  # type: ignore[arg-type]
    model = MaskGenerator(MLP, config, generator=torch.Generator().manual_seed(0))
    train, validation = tickets[:50], tickets[50:]
    model.base.fit(train.masks)
    before = evidence_bound(model, validation)
    options = TrainingConfig(steps=150, batch_size=8, lr=0.02, warmup=10, validate_every=50)
    result = train_mask_generator(model, train, validation, config=options)
    assert result.best_score == pytest.approx(evidence_bound(model, validation))
    assert result.best_score > before + 0.1
    masks = model.generate(validation.params, 0.8, torch.Generator().manual_seed(0))
    frequencies = random_masks(prunable(MLP), 10, 0.8, torch.Generator().manual_seed(0))
    assert overlap(masks, validation.masks).mean() > overlap(frequencies, validation.masks).mean() + 0.4


def test_stopped_training_is_resumed(tmp_path: Path) -> None:
    tickets = _learnable(12)
    options = TrainingConfig(steps=6, batch_size=4, validate_every=2, warmup=0)

    def run(folder: Path, steps: int = 6, *, resume: bool = False) -> dict[str, Tensor]:
        model = _model()
        train_mask_generator(
            model,
            tickets[:8],
            tickets[8:],
            config=dataclasses.replace(options, steps=steps),
            folder=folder,
            resume=resume,
        )
        return model.state_dict()

    whole = run(tmp_path / "whole")
    again = run(tmp_path / "whole", resume=True)
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    with pytest.raises(ValueError, match="steps"):
        run(tmp_path / "whole", 8, resume=True)


@pytest.mark.parametrize("body", BODIES)
def test_file_holds_the_model(body: str, tmp_path: Path) -> None:
    model, params = _model(CNN, body=body), initial_parameters(CNN, range(2), 0)
    model.save(tmp_path / "model.safetensors", {"bound": 1.5})
    again = MaskGenerator.load(tmp_path / "model.safetensors")
    assert again.config == model.config
    one, other = (m.generate(params, 0.9, torch.Generator().manual_seed(0)) for m in (model, again))
    assert all(torch.equal(one[name], other[name]) for name in one)
    path = tmp_path / "cut.safetensors"
    path.write_bytes((tmp_path / "model.safetensors").read_bytes()[:-7])
    with pytest.raises(ArtifactError, match="not a complete"):
        MaskGenerator.load(path)


def test_refusals() -> None:
    model, params = _model(), initial_parameters(MLP, range(2), 0)
    generator = torch.Generator().manual_seed(0)
    with pytest.raises(ValueError, match=r"params has no 'fc.bias'"):
        model.generate({n: v for n, v in params.items() if n != "fc.bias"}, 0.9, generator)
    with pytest.raises(ValueError, match=r"expected \(B, 8, 16\)"):
        model.generate({n: v[0] for n, v in params.items()}, 0.9, generator)
    with pytest.raises(ValueError, match="temperature is -1"):
        model.generate(params, 0.9, generator, temperature=-1)
    with pytest.raises(ValueError, match="sparsity is 1"):
        model.generate(params, 1.0, generator)
    with pytest.raises(ValueError, match="expected another to encode"):
        _model(latent="none").encode(params, {})
    with pytest.raises(ValueError, match="as the model"):
        train_mask_generator(model, _tickets(CNN), _tickets(CNN))
    for options in ({"body": "x"}, {"latent": "x"}, {"hidden_channels": 0}, {"kl_weight": -1}):
        with pytest.raises(ValueError, match=next(iter(options))):
            MaskGeneratorConfig(**options)
    assert math.isclose(kept_share(model.generate(params, 0.0, generator)).min().item(), 1.0)
