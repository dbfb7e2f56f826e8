"""Pooling weights to latents is invariant, and the way back equivariant, in every kind of space."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from nfn_opt.layers.latents import LatentPool, LatentUnpool
from nfn_opt.testing import assert_equivariant, assert_invariant, random_features
from nfn_opt.weight_space import Axis, Features, Symmetry, TensorSpec, WeightSpace
from tests.layers.spaces import SYMMETRIES, Residual, cnn, mlp, space_of

C, LATENTS, LATENT_C, HEADS = 4, 3, 6, 2


def concatenated() -> WeightSpace:
    both = Axis.concatenated([(Axis("h1", 3),), (Axis("h2", 4),)], "in")
    return WeightSpace((TensorSpec("w", (5, 7), (Axis("x", 5, False), both)),))


def space_named(name: str, symmetry: Symmetry) -> WeightSpace:
    if name == "concatenated":
        return concatenated()
    models = {
        "MLP": (mlp(3, 5, 2), (3,)),
        "CNN": (cnn(2, 4, 3), (2, 6, 6)),
        "residual": (Residual(3, 4, 2), (3,)),
    }
    model, shape = models[name]
    return space_of(model, *shape, symmetry=symmetry)


@pytest.mark.parametrize("symmetry", SYMMETRIES)
@pytest.mark.parametrize("name", ["MLP", "CNN", "residual", "concatenated"])
def test_symmetry(name: str, symmetry: Symmetry, generator: torch.Generator) -> None:
    space = space_named(name, symmetry)
    pool = LatentPool(space, C, LATENTS, LATENT_C, HEADS, generator=generator).double()
    unpool = LatentUnpool(space, C, LATENT_C, HEADS, generator=generator).double()
    assert_invariant(pool, space, C, generator)
    assert_equivariant(lambda x: unpool(pool(x)), space, C, generator)
    assert_equivariant(lambda x: unpool(pool(x), x), space, C, generator)


def test_pool_is_attention(generator: torch.Generator) -> None:
    """Written out entry by entry."""
    space = space_named("MLP", "hidden")
    pool = LatentPool(space, C, LATENTS, LATENT_C, HEADS, generator=generator).double()
    features = random_features(space, C, 1, generator=generator)
    entries = torch.cat([t.reshape(-1, C) for t in features.values()])
    got, width = pool(features)[0], LATENT_C // HEADS
    for latent in range(LATENTS):
        for head in range(HEADS):
            rows = slice(head * width, (head + 1) * width)
            scores = torch.stack([pool.queries[latent, rows] @ (pool.key[rows] @ x) for x in entries])
            weights = torch.softmax(scores / math.sqrt(width), 0)
            expected: Tensor = torch.stack(
                [w * (pool.value[rows] @ x) for w, x in zip(weights, entries, strict=True)]
            ).sum(0)
            torch.testing.assert_close(got[latent, rows], expected + pool.value_bias[rows])


def test_pool_of_another_space(generator: torch.Generator) -> None:
    pool = LatentPool(space_named("MLP", "hidden"), C, LATENTS, LATENT_C, HEADS, generator=generator).double()
    space = space_named("CNN", "hidden")
    assert pool(random_features(space, C, 5, generator=generator), space).shape == (5, LATENTS, LATENT_C)


def test_unpool_tells_apart_what_it_may(generator: torch.Generator) -> None:
    """Equal along neurons, different along inputs and for every parameter and network; all different by features."""
    space = space_named("MLP", "hidden")
    unpool = LatentUnpool(space, C, LATENT_C, HEADS, generator=generator).double()
    latents = torch.randn(2, LATENTS, LATENT_C, generator=generator, dtype=torch.float64)
    weight = unpool(latents)["0.weight"]
    assert torch.equal(weight, weight[:, :1].expand_as(weight))
    assert not torch.allclose(weight[:, :, 0], weight[:, :, 1])
    assert not torch.allclose(weight[0], weight[1])
    assert not torch.allclose(weight[:, 0, 0], unpool(latents)["0.bias"][:, 0])
    features = random_features(space, C, 2, generator=generator)
    weight = unpool(latents, features)["0.weight"]
    assert not torch.allclose(weight[:, 0], weight[:, 1])


def test_function_transforms(generator: torch.Generator) -> None:
    space = space_named("MLP", "hidden")
    pool = LatentPool(space, C, LATENTS, LATENT_C, HEADS, generator=generator).double()
    unpool = LatentUnpool(space, C, LATENT_C, HEADS, generator=generator).double()
    features = random_features(space, C, 3, generator=generator)

    def loss(x: Features) -> Tensor:
        return torch.stack([t.square().sum() for t in unpool(pool(x), x).values()]).sum()

    one_by_one = torch.func.vmap(torch.func.grad(lambda x: loss({n: t[None] for n, t in x.items()})))(
        features
    )
    together = torch.func.grad(loss)(features)
    for name in space.names:
        torch.testing.assert_close(one_by_one[name], together[name])


def test_errors(generator: torch.Generator) -> None:
    space = space_named("MLP", "hidden")
    unpool = LatentUnpool(space, C, LATENT_C, HEADS).double()
    latents = torch.zeros(2, LATENTS, LATENT_C, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"channels is 6 and heads is 4, expected .* divisible by heads"):
        LatentPool(space, C, LATENTS, 6, 4)
    with pytest.raises(ValueError, match="latents is 0, expected at least 1"):
        LatentPool(space, C, 0, 6, 2)
    with pytest.raises(ValueError, match=r"latents have shape \(2, 3, 5\), expected \(batch, latents, 6\)"):
        unpool(latents[..., 1:])
    with pytest.raises(ValueError, match="features are of 1 networks, expected 2 as the latents"):
        unpool(latents, random_features(space, C, 1, generator=generator))
    with pytest.raises(ValueError, match=r"unknown 8\.weight|missing"):
        LatentPool(space, C, LATENTS, LATENT_C, HEADS).double()(
            random_features(space_named("CNN", "all"), C, generator=generator)
        )


def test_a_number_without_axes_and_no_networks(generator: torch.Generator) -> None:
    space = WeightSpace.independent({"w": torch.zeros(3, 2), "scale": torch.zeros(())})
    pool = LatentPool(space, C, LATENTS, LATENT_C, HEADS, generator=generator).double()
    unpool = LatentUnpool(space, C, LATENT_C, HEADS, generator=generator).double()
    assert_invariant(pool, space, C, generator)
    features = random_features(space, C, 2, generator=generator)
    changed = {**features, "scale": 2 * features["scale"]}
    assert not torch.allclose(pool(features), pool(changed))
    assert unpool(pool(features), features)["scale"].shape == (2, C)
    nothing = {name: tensor[:0] for name, tensor in features.items()}
    assert unpool(pool(nothing), nothing)["w"].shape == (0, 3, 2, C)
    assert unpool(pool(nothing))["w"].shape == (0, 3, 2, C)
