"""Attention and transformer blocks: equivariant, sensitive, applicable elsewhere, strict."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from nfn_opt.layers import attention_chunks, attention_core
from nfn_opt.layers.attention import NFAttention
from nfn_opt.layers.transformer import NFTransformerBlock
from nfn_opt.testing import assert_equivariant, assert_sensitive, random_features
from nfn_opt.weight_space import Axis, Features, Symmetry, TensorSpec, WeightSpace
from tests.layers.spaces import SYMMETRIES, Residual, cnn, mlp, space_of

C = 4
Layer = Callable[..., nn.Module]
LAYERS: dict[str, Layer] = {
    "shared": lambda s, g: NFAttention(s, C, 2, generator=g),
    "per parameter": lambda s, g: NFAttention(s, C, 2, sharing="per_parameter", generator=g),
    "block": lambda s, g: NFTransformerBlock(s, C, 2, generator=g),
    "block per parameter": lambda s, g: NFTransformerBlock(s, C, 2, sharing="per_parameter", generator=g),
}


def concatenated() -> WeightSpace:
    """A skip: what reads the neurons of two layers one behind the other."""
    both = Axis.concatenated([(Axis("h1", 3),), (Axis("h2", 4),)], "in")
    return WeightSpace(
        (
            TensorSpec("first", (3, 2), (Axis("h1", 3), Axis("x", 2, False))),
            TensorSpec("second", (4, 3), (Axis("h2", 4), Axis("h1", 3))),
            TensorSpec("third", (5, 7), (Axis("h3", 5), both)),
            TensorSpec("bias", (5,), (Axis("h3", 5),)),
        )
    )


def spatial() -> WeightSpace:
    """A tensor of three groups, its middle one acting on a matrix twice, and a scalar."""
    a, b, c = Axis("a", 3), Axis("b", 4), Axis("c", 2)
    return WeightSpace(
        (
            TensorSpec("cube", (3, 4, 2), (a, b, c)),
            TensorSpec("square", (4, 4), (b, b)),
            TensorSpec("scale", (), ()),
            TensorSpec("row", (2, 3), (Axis("fixed", 2, False), a)),
        )
    )


SPACES: dict[str, Callable[[Symmetry], WeightSpace]] = {
    "MLP": lambda s: space_of(mlp(3, 5, 4, 2), 3, symmetry=s),
    "CNN": lambda s: space_of(cnn(2, 4, 5, 3), 2, 6, 6, symmetry=s),
    "CNN and pixels": lambda s: space_of(cnn(1, 4, 3, pooled=False), 1, 4, 4, symmetry=s),
    "residual": lambda s: space_of(Residual(3, 4, 2), 3, symmetry=s),
    "concatenated": lambda s: concatenated(),
    "three axes": lambda s: spatial(),
    "independent": lambda s: WeightSpace.independent({"w": torch.zeros(3, 4), "b": torch.zeros(5)}),
}


@pytest.mark.parametrize("symmetry", SYMMETRIES)
@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("layer", LAYERS)
def test_equivariant_and_sensitive(
    layer: str, name: str, symmetry: Symmetry, generator: torch.Generator
) -> None:
    space = SPACES[name](symmetry)
    module = LAYERS[layer](space, generator).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.7, generator=generator)
    assert_equivariant(module, space, C, generator)
    if name not in ("independent", "concatenated"):
        assert_sensitive(module, space, C, generator)
    if name == "concatenated":
        cells = space.cells.space
        assert_sensitive(lambda x: space.cells.split(module(space.cells.join(x))), cells, C, generator)


@pytest.mark.parametrize("layer", ["shared", "block"])
def test_another_space(layer: str, generator: torch.Generator) -> None:
    """One set of weights for all spaces."""
    module = LAYERS[layer](SPACES["MLP"]("hidden"), generator).double()
    for name in SPACES:
        space = SPACES[name]("hidden")
        features = random_features(space, C, generator=generator)
        here = LAYERS[layer](space, generator).double()
        here.load_state_dict(module.state_dict())
        got, expected = module(features, space), here(features)
        assert all(torch.equal(got[n], expected[n]) for n in space.names)


def blocks(space: WeightSpace, generator: torch.Generator, sharing: Any) -> nn.Sequential:
    return nn.Sequential(
        *(NFTransformerBlock(space, 32, 4, sharing=sharing, generator=generator) for _ in range(8))
    )


@pytest.mark.parametrize("sharing", ["shared", "per_parameter"])
@pytest.mark.parametrize("name", ["MLP", "CNN", "residual", "three axes", "independent"])
def test_variance_through_eight_blocks(name: str, sharing: str, generator: torch.Generator) -> None:
    space = SPACES[name]("all")
    features = random_features(space, 32, 16, generator=generator, dtype=torch.float32)
    with torch.no_grad():
        out = blocks(space, generator, sharing)(features)
    for n in space.names:
        assert 0.5 < float(out[n].square().mean()) < 2.0, n


def test_equal_tokens_keep_their_size(generator: torch.Generator) -> None:
    space = SPACES["MLP"]("all")
    one = torch.randn(64, generator=generator)
    features = {s.name: one.expand(1, *s.view_shape, -1) for s in space.parameters}
    with torch.no_grad():
        out = NFAttention(space, 64, 8, generator=generator)(features)
    assert 0.5 < float(out["2.weight"].square().mean() / one.square().mean()) < 2.0


def test_dropout_acts_in_training_only(generator: torch.Generator) -> None:
    space = SPACES["MLP"]("all")
    features = random_features(space, C, generator=generator, dtype=torch.float32)
    for make in (NFAttention, NFTransformerBlock):
        module = make(space, C, 2, dropout=0.5, generator=generator)
        one, two = module(features), module(features)
        assert any(not torch.equal(one[n], two[n]) for n in space.names)
        module.eval()
        one, two = module(features), module(features)
        assert all(torch.equal(one[n], two[n]) for n in space.names)


@pytest.mark.parametrize("layer", LAYERS)
def test_function_transforms(layer: str, generator: torch.Generator) -> None:
    """Batched weights by ``vmap`` and gradients by ``grad`` agree with a loop and with autograd."""
    space = SPACES["CNN"]("all")
    module = LAYERS[layer](space, generator).double()
    features = random_features(space, C, 3, generator=generator)
    names, values = zip(*module.named_parameters(), strict=True)

    def loss(parameters: tuple[torch.Tensor, ...], x: Features) -> torch.Tensor:
        out: Features = torch.func.functional_call(module, dict(zip(names, parameters, strict=True)), (x,))
        return torch.stack([t.square().mean() for t in out.values()]).sum()

    expected = torch.autograd.grad(loss(values, features), values)
    got = torch.func.grad(loss)(values, features)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other)
    stacked = tuple(torch.stack([v, 2 * v]).detach() for v in values)
    batched = torch.func.vmap(torch.func.grad(loss), in_dims=(0, None))(stacked, features)
    for one, other in zip(batched, got, strict=True):
        torch.testing.assert_close(one[0], other)


@pytest.mark.parametrize("chunk_bytes", [1, 1 << 30])
@pytest.mark.parametrize("layer", ["shared", "per parameter"])
@pytest.mark.parametrize("name", SPACES)
def test_gradients(
    name: str, layer: str, chunk_bytes: int, monkeypatch: pytest.MonkeyPatch, generator: torch.Generator
) -> None:
    """First and second derivatives, computed in chunks and at once, are those of the plain function."""
    monkeypatch.setattr(attention_chunks, "CHUNK_BYTES", chunk_bytes)
    space = SPACES[name]("hidden")
    module = LAYERS[layer](space, generator).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.7, generator=generator)
    features = random_features(space, C, 3, generator=generator)
    leaves = [*(t.requires_grad_() for t in features.values()), *module.parameters()]
    results = []
    for attend in (attention_chunks.attend_in_chunks, attention_core.attend):
        monkeypatch.setattr("nfn_opt.layers.attention.attend_in_chunks", attend)
        loss = torch.stack([t.pow(3).sum() for t in module(features).values()]).sum()
        plain = torch.autograd.grad(loss, leaves, retain_graph=True, materialize_grads=True)
        first = torch.autograd.grad(loss, leaves, create_graph=True, materialize_grads=True)
        size = torch.stack([t.square().sum() for t in first]).sum()
        results.append([*plain, *first, *torch.autograd.grad(size, leaves, materialize_grads=True)])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)


def test_errors(generator: torch.Generator) -> None:
    space, other = SPACES["MLP"]("hidden"), space_of(mlp(3, 6, 2), 3)
    with pytest.raises(ValueError, match=r"channels is 6 and heads is 4, expected .* divisible by heads"):
        NFAttention(space, 6, 4)
    with pytest.raises(ValueError, match="dropout is 1, expected a probability"):
        NFTransformerBlock(space, 8, 4, dropout=1)
    with pytest.raises(ValueError, match="sharing is 'no', expected 'shared' or 'per_parameter'"):
        NFAttention(space, 8, 4, sharing="no")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expansion is 0, expected at least 1"):
        NFTransformerBlock(space, 8, 4, expansion=0)
    features = random_features(space, 8, generator=generator, dtype=torch.float32)
    with pytest.raises(ValueError, match=r"unknown 4\.bias, 4\.weight"):
        NFAttention(other, 8, 4)(features)
    with pytest.raises(
        ValueError, match="expected the one that it was built for; build it with sharing='shared'"
    ):
        NFAttention(other, 8, 4, sharing="per_parameter")(features, space)
    with pytest.raises(ValueError, match=r"features are torch\.float64"):
        NFAttention(space, 8, 4)({n: t.double() for n, t in features.items()})
