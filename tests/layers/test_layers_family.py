"""Norms, dropout, chains and residual blocks; encodings of concatenated axes; advice on features of other spaces."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from nfn.common import network_spec_from_wsfeat
from nfn.layers.regularize import ParamLayerNorm, SimpleLayerNorm
from torch import Tensor, nn

from nfn_opt.layers import (
    Chain,
    ChannelDropout,
    ChannelNorm,
    LearnedScale,
    NeuronDropout,
    NFLinear,
    ParameterNorm,
    Pointwise,
    PositionEmbedding,
    PositionEncoding,
    ResidualBlock,
    SharedScale,
)
from nfn_opt.layers.checks import check_input
from nfn_opt.testing import NetworkKind, assert_equivariant, random_features
from nfn_opt.weight_space import Features, Permutation, WeightSpace
from tests.layers.nfn_weights import to_nfn, to_ours
from tests.layers.spaces import SYMMETRIES, Residual, cnn, drawn_space, mlp, space_of

C = 4
CONCATENATED = WeightSpace.from_axes(
    {"v": ("a",), "w": (["a", "b", 2], "a", None), "u": ("a", ("b", 2)), "s": (["a", ("a", "b")], "b")},
    {"v": (3,), "w": (9, 3, 2), "u": (3, 8), "s": (15, 4)},
)
SPACES = {
    "mlp": space_of(mlp(3, 7, 5, 2), 3),
    "mlp, all": space_of(mlp(3, 7, 5, 2), 3, symmetry="all"),
    "cnn": space_of(cnn(2, 4, 5, 3), 2, 6, 6),
    "residual": space_of(Residual(3, 5, 2), 3),
    "concatenated": CONCATENATED,
}


def equal(a: Features, b: Features) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def randomise(module: nn.Module, generator: torch.Generator) -> nn.Module:
    for parameter in module.parameters():
        nn.init.normal_(parameter, generator=generator)
    return module.double()


LAYERS: dict[str, Callable[[WeightSpace, torch.Generator], nn.Module]] = {
    "parameter norm": lambda s, g: ParameterNorm(s, C),
    "parameter norm over kernels": lambda s, g: ParameterNorm(s, C, over="space"),
    "channel norm": lambda s, g: ChannelNorm(C),
    "shared scale": lambda s, g: SharedScale(s),
    "residual block": lambda s, g: ResidualBlock(ChannelNorm(C), Pointwise(nn.Linear(C, C)), LearnedScale(s)),
}
ENCODINGS: dict[str, Callable[[WeightSpace, torch.Generator], nn.Module]] = {
    "encoding": lambda s, g: PositionEncoding(s, 3),
    "embedding": lambda s, g: PositionEmbedding(s, C, generator=g),
}


@pytest.mark.parametrize("layer", [*LAYERS, *ENCODINGS])
@pytest.mark.parametrize("space", SPACES)
def test_equivariant(space: str, layer: str, generator: torch.Generator) -> None:
    if layer in ENCODINGS and space == "mlp, all":
        space = "mlp"  # inputs and outputs are told apart on purpose
    module = randomise({**LAYERS, **ENCODINGS}[layer](SPACES[space], generator), generator)
    assert_equivariant(module, SPACES[space], C, generator)


# Norms


@pytest.mark.parametrize("widths", [(3, 7, 2), (2, 4, 5, 6, 3)])
def test_norm_over_channels_and_ends_is_nfns(widths: tuple[int, ...], generator: torch.Generator) -> None:
    space = space_of(mlp(*widths), widths[0])
    features = {n: 2 + 3 * t for n, t in random_features(space, C, 3, generator=generator).items()}
    theirs = ParamLayerNorm(network_spec_from_wsfeat(to_nfn(features)), C).double()
    expected = to_ours(theirs(to_nfn(features)), space)
    ours = ParameterNorm(space, C).double()(features)
    for name in space.names:
        torch.testing.assert_close(ours[name], expected[name])


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_norm_over_channels_and_kernels_is_nfns(name: str, generator: torch.Generator) -> None:
    """Theirs divides by the root of the unbiased variance."""
    space = SPACES[name]
    features = {n: 2 + 3 * t for n, t in random_features(space, C, 3, generator=generator).items()}
    theirs: Any = SimpleLayerNorm(network_spec_from_wsfeat(to_nfn(features)), C).double()
    for norm in (*theirs.w_norms, *theirs.v_norms):
        norm.eps = 0.0
    expected = to_ours(theirs(to_nfn(features)), space)
    ours = ParameterNorm(space, C, over="space", eps=0.0).double()(features)
    for spec in space.parameters:
        entries = C * torch.Size(spec.view_shape[2:]).numel()
        torch.testing.assert_close(ours[spec.name] * ((entries - 1) / entries) ** 0.5, expected[spec.name])


def test_norm_has_gains_and_shifts_of_its_own(generator: torch.Generator) -> None:
    norm = ParameterNorm(SPACES["cnn"], 2).double()
    assert [tuple(gain.shape) for gain in norm.gains] == [(2, 3, 3, 2), (2,), (3, 3, 2), (2,), (3, 2), (3, 2)]
    features = random_features(SPACES["cnn"], 2, generator=generator)
    plain = norm(features)
    with torch.no_grad():
        norm.gains[0][1, 2, 0, 1], norm.shifts[0][1, 2, 0, 1] = 3.0, 5.0
    changed = norm(features)
    entry = (slice(None), slice(None), 1, 2, 0, 1)
    torch.testing.assert_close(changed["0.weight"][entry], 3 * plain["0.weight"][entry] + 5)
    changed["0.weight"][entry] = plain["0.weight"][entry]
    assert equal(changed, plain)


def test_norm_options() -> None:
    with pytest.raises(ValueError, match="over is 'all', expected 'fixed' or 'space'"):
        ParameterNorm(SPACES["mlp"], 2, over="all")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="channels is 0, expected at least 1"):
        ParameterNorm(SPACES["mlp"], 0)


# Dropout


def ones(space: WeightSpace, batch: int = 1, channels: int = 1) -> Features:
    return {s.name: torch.ones(batch, *s.view_shape, channels) for s in space.parameters}


@pytest.mark.parametrize("space", SPACES)
def test_neurons_are_dropped_everywhere(space: str, generator: torch.Generator) -> None:
    """An entry is kept if and only if all of its neurons are; each kept entry has its own inverse probability."""
    group = SPACES[space].random_permutation(generator).indices
    out = NeuronDropout(SPACES[space], 0.5, generator=generator)(ones(SPACES[space]))
    cells = SPACES[space].cells.split(out)
    kept: dict[str, Tensor] = {}
    for spec in SPACES[space].cells.space.parameters:
        groups = [axis.name for axis in spec.axes if axis.permutable]
        if len(groups) == 1:
            position = next(i for i, axis in enumerate(spec.axes) if axis.permutable)
            alive = (cells[spec.name][0] != 0).movedim(position, 0).flatten(1)
            assert alive.any(1).equal(alive.all(1))
            assert kept.setdefault(groups[0], alive.all(1)).equal(alive.all(1)), spec.name
    assert kept.keys() <= group.keys()
    assert kept
    for spec in SPACES[space].cells.space.parameters:
        for index in torch.cartesian_prod(*(torch.arange(n) for n in spec.view_shape)).reshape(
            -1, len(spec.axes)
        ):
            neurons = {(a.name, int(i)) for a, i in zip(spec.axes, index, strict=True) if a.permutable}
            if all(group in kept for group, _ in neurons):
                alive_here = all(bool(kept[group][i]) for group, i in neurons)
                expected = 2.0 ** len(neurons) if alive_here else 0.0
                assert cells[spec.name][0][tuple(index)].item() == expected


def test_neuron_dropout_keeps_means(generator: torch.Generator) -> None:
    space = SPACES["residual"]
    out = NeuronDropout(space, 0.3, generator=generator)(ones(space, 20000))
    for tensor in out.values():
        torch.testing.assert_close(tensor.mean(0), torch.ones_like(tensor[0]), rtol=0, atol=0.05)


def test_neuron_dropout_is_equivariant_given_the_choices(generator: torch.Generator) -> None:
    """The layer multiplies by what is chosen for each neuron, so permuted choices give permuted outputs."""
    space = space_of(nn.Sequential(nn.Linear(3, 6), nn.Linear(6, 2)), 3)
    features = random_features(space, 2, 1, generator=generator, dtype=torch.float32)
    first, second = (NeuronDropout(space, 0.5, generator=torch.Generator().manual_seed(1)) for _ in range(2))
    chosen = first(ones(space))["0.bias"].flatten()
    assert sorted(set(chosen.tolist())) == [0.0, 2.0]

    def drop(x: Features, kept: Tensor) -> Features:
        masks = {"0.weight": kept[:, None, None], "0.bias": kept[:, None], "1.weight": kept[None, :, None]}
        return {name: t * masks[name] if name in masks else t for name, t in x.items()}

    assert equal(second(features), drop(features, chosen))
    permutation = Permutation({"h1": torch.randperm(6, generator=generator)})
    before = drop(space.permute_features(features, permutation), chosen[permutation.indices["h1"]])
    assert equal(before, space.permute_features(drop(features, chosen), permutation))


def test_channels_are_dropped_whole(generator: torch.Generator) -> None:
    space = SPACES["cnn"]
    out = ChannelDropout(0.25, generator=generator)(ones(space, 500, 8))
    for tensor in out.values():
        flat = tensor.flatten(1, -2)
        assert torch.equal(flat, flat[:, :1].expand_as(flat))
        values, counts = flat[:, 0].unique(return_counts=True)
        torch.testing.assert_close(values, torch.tensor([0.0, 4 / 3]))
        assert counts[0] / counts.sum() == pytest.approx(0.25, abs=0.03)
    assert len({tuple(t.flatten(1, -2)[0, 0].tolist()) for t in out.values()}) > 1


DROPOUTS: dict[str, Callable[..., nn.Module]] = {
    "channels": lambda p=0.5, **options: ChannelDropout(p, **options),
    "neurons": lambda p=0.5, **options: NeuronDropout(SPACES["cnn"], p, **options),
}


@pytest.mark.parametrize("kind", DROPOUTS)
def test_dropout_contract(kind: str) -> None:
    """Its own generator decides; without one the global one; nothing happens in evaluation or for p = 0."""
    features = ones(SPACES["cnn"], 2, 4)
    first, second = (DROPOUTS[kind](generator=torch.Generator().manual_seed(1)) for _ in range(2))
    outs = [first(features), second(features), first(features)]
    assert equal(outs[0], outs[1])
    assert not equal(outs[0], outs[2])
    assert not equal(DROPOUTS[kind]()(features), features)
    assert equal(DROPOUTS[kind]().eval()(features), features)
    assert equal(DROPOUTS[kind](0.0)(features), features)
    copy.deepcopy(first)
    for p in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match="expected at least 0 and less than 1"):
            DROPOUTS[kind](p)


# Composition


def test_chain_hands_the_space_to_those_that_take_one(generator: torch.Generator) -> None:
    here, there = SPACES["mlp"], SPACES["cnn"]
    layers = [
        PositionEncoding(here, 2),
        NFLinear(here, 1 + 5, C, sharing="by_relation", generator=generator),
        ResidualBlock(ChannelNorm(C), NFLinear(here, C, C, sharing="by_relation", generator=generator)),
        Pointwise(nn.ReLU()),
        NeuronDropout(here).eval(),
        SharedScale(here, 0.5),
    ]
    chain = Chain(*layers).double()
    features = random_features(there, 1, generator=generator)
    x: Features = features
    for layer in chain:
        x = layer(x) if isinstance(layer, Pointwise) else layer(x, space=there)
    assert equal(chain(features, space=there), x)
    assert_equivariant(lambda f: chain(f, there), there, 1, generator)
    own = random_features(here, 1, generator=generator)
    assert equal(chain(own), chain(own, space=here))
    assert equal(chain(own), nn.Sequential(*layers)(own))


def test_a_layer_of_one_space_refuses_another_in_a_chain(generator: torch.Generator) -> None:
    chain = Chain(Pointwise(nn.Tanh()), LearnedScale(SPACES["mlp"]))
    features = random_features(SPACES["cnn"], 1, generator=generator)
    with pytest.raises(ValueError, match="sharing='by_relation' takes them"):
        chain(features, SPACES["cnn"])


def test_position_encodings_of_another_space_are_its_own(generator: torch.Generator) -> None:
    for symmetry in SYMMETRIES:
        there = space_of(cnn(2, 4, 5, 3), 2, 6, 6, symmetry=symmetry)
        features = random_features(there, 1, generator=generator, dtype=torch.float32)
        visiting = PositionEncoding(SPACES["mlp"], 3)(features, space=there)
        assert equal(visiting, PositionEncoding(there, 3)(features))


def test_residual_block_by_hand(generator: torch.Generator) -> None:
    block = ResidualBlock(Pointwise(nn.Tanh()), initial=0.5).double()
    features = random_features(SPACES["mlp"], 2, generator=generator)
    for name, tensor in block(features).items():
        torch.testing.assert_close(tensor, features[name] + 0.5 * features[name].tanh())
    assert block.scale.requires_grad
    with pytest.raises(ValueError, match=re.escape("map 0.weight from (2, 7, 3, 2) to (2, 7, 3, 5)")):
        ResidualBlock(Pointwise(nn.Linear(2, 5).double()))(features)
    with pytest.raises(ValueError, match="no layers given"):
        ResidualBlock()


@pytest.mark.parametrize("sharing", ["per_parameter", "by_relation"])
@pytest.mark.parametrize("kind", get_args(NetworkKind))
def test_variance_through_eight_residual_blocks(
    kind: NetworkKind, sharing: Any, generator: torch.Generator
) -> None:
    space = drawn_space(0, kind, "hidden")
    blocks = [
        ResidualBlock(
            ChannelNorm(16),
            NFLinear(space, 16, 16, sharing=sharing, generator=generator),
            Pointwise(nn.ReLU()),
        )
        for _ in range(8)
    ]
    features = random_features(space, 16, 8, generator=generator, dtype=torch.float32)
    with torch.no_grad():
        out = Chain(*blocks)(features)
    for name, tensor in out.items():
        assert 0.5 < tensor.var() < 2.0, name


# Concatenated axes


def told_apart(tensor: Tensor, dim: int) -> list[int]:
    """For each slice, the first slice that equals it."""
    slices = tensor.movedim(dim, 0).flatten(1)
    return [next(j for j in range(i + 1) if torch.equal(slices[i], slices[j])) for i in range(len(slices))]


@pytest.mark.parametrize("layer", ENCODINGS)
def test_positions_within_a_concatenated_axis(layer: str, generator: torch.Generator) -> None:
    """Neurons of a group look alike; the parts, and fixed entries, do not."""
    module = ENCODINGS[layer](CONCATENATED, generator)
    channels = C if layer == "embedding" else 1
    out = module({s.name: torch.zeros(1, *s.view_shape, channels) for s in CONCATENATED.parameters})
    assert told_apart(out["w"][0], 0) == [0, 0, 0, 3, 3, 3, 3, 7, 8]
    assert told_apart(out["w"][0], 1) == [0, 0, 0]
    assert told_apart(out["w"][0], 2) == [0, 1]
    assert told_apart(out["s"][0], 0) == 3 * [0] + 12 * [3]


# Advice


SQUARE = random_features(SPACES["mlp"], 2, generator=torch.Generator().manual_seed(0))
BY_RELATION = "a layer with sharing='by_relation' takes them as forward(features, space=other)"


@pytest.mark.parametrize(("features", "channels", "message", "helps"), [
    (random_features(space_of(mlp(3, 9, 5, 2), 3), 2, generator=torch.Generator()), 2,
     "Axis 0 of 0.weight (h1:7) has 9 entries", True),
    (random_features(SPACES["cnn"], 2, generator=torch.Generator()), 2, "missing 4.weight, 4.bias", True),
    (random_features(space_of(mlp(3, 9, 5, 2), 3), 3, generator=torch.Generator()), 2,
     "sharing='by_relation' would not help, as batch and channels do not fit either", False),
    ({**SQUARE, "0.bias": SQUARE["0.bias"][:1]}, 2, "features of 0.bias have shape (1, 7, 2)", False),
    (SQUARE, 1, "expected (batch, *axes, channels) = (2, 7, 3, 1)", False),
    ({}, 2, "missing 0.weight", False),
    ({"0.weight": None}, 2, "missing 0.bias", False),
])  # fmt: skip
def test_advice(features: Features, channels: int, message: str, helps: bool) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        check_input(SPACES["mlp"], features, channels, torch.zeros(1, dtype=torch.float64))
    assert (BY_RELATION in str(caught.value)) == helps


def test_advice_is_right(generator: torch.Generator) -> None:
    other = space_of(mlp(3, 9, 5, 2), 3)
    features = random_features(other, 2, generator=generator, dtype=torch.float32)
    for sharing in ("per_parameter", "by_relation"):
        with pytest.raises(ValueError, match=re.escape(BY_RELATION)):
            NFLinear(SPACES["mlp"], 2, 3, sharing=sharing, generator=generator)(features)
    layer: Any = NFLinear(SPACES["mlp"], 2, 3, sharing="by_relation", generator=generator)
    assert layer(features, space=other)["0.weight"].shape == (2, 9, 3, 3)
