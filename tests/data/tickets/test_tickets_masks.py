"""Masks: exactly the sparsity, the right weights, shuffles that keep what they promise."""

from typing import Literal

import pytest
import torch

from nfn_opt.data.tickets import (
    apply_masks,
    kept_share,
    magnitude_masks,
    overlap,
    random_masks,
    random_masks_like,
    top_masks,
)

SHAPES = {"layers.0.weight": (6, 20), "fc.weight": (4, 6)}


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _normal(count: int = 3) -> dict[str, torch.Tensor]:
    generator = _generator()
    return {name: torch.randn(count, *shape, generator=generator) for name, shape in SHAPES.items()}


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9, 0.95])
def test_global_sparsity_is_exact(sparsity: float) -> None:
    masks = top_masks(_normal(), sparsity)
    kept = torch.stack([mask.flatten(1).sum(1) for mask in masks.values()]).sum(0)
    assert kept.tolist() == [round((1 - sparsity) * 144)] * 3


def test_layer_sparsity_is_exact() -> None:
    masks = random_masks(SHAPES, 3, 0.9, _generator(), scope="layer")
    assert {name: mask.flatten(1).sum(1).tolist() for name, mask in masks.items()} == {
        "layers.0.weight": [12] * 3,
        "fc.weight": [2] * 3,
    }


def test_largest_are_kept() -> None:
    scores = _normal()
    masks = top_masks(scores, 0.8)
    for row in range(3):
        kept = torch.cat([scores[name][row][masks[name][row]] for name in SHAPES])
        pruned = torch.cat([scores[name][row][~masks[name][row]] for name in SHAPES])
        assert kept.min() > pruned.max()


def test_ties_do_not_change_the_count() -> None:
    masks = top_masks({"a": torch.zeros(2, 10)}, 0.7)
    assert kept_share(masks).tolist() == pytest.approx([0.3, 0.3])


def test_magnitude_leaves_biases_out() -> None:
    params = {**_normal(), "fc.bias": torch.ones(3, 4)}
    masks = magnitude_masks(params, 0.5)
    assert set(masks) == set(SHAPES)
    pruned = apply_masks(params, masks)
    assert torch.equal(pruned["fc.bias"], params["fc.bias"])
    assert torch.equal(pruned["fc.weight"] != 0, masks["fc.weight"])


def test_random_masks_are_uniform() -> None:
    masks = random_masks({"a": (10,)}, 4000, 0.7, _generator())
    assert (masks["a"].float().mean(0) - 0.3).abs().max() < 0.03


@pytest.mark.parametrize("axes", ["layer", "inputs"])
def test_shuffles_keep_counts(axes: Literal["layer", "inputs"]) -> None:
    masks = top_masks(_normal(), 0.7)
    shuffled = random_masks_like(masks, _generator(1), axes=axes)
    for name, mask in masks.items():
        assert not torch.equal(mask, shuffled[name])
        assert torch.equal(mask.flatten(1).sum(1), shuffled[name].flatten(1).sum(1))
        if axes == "inputs":
            assert torch.equal(mask.sum(1), shuffled[name].sum(1))


def test_shuffled_kernels_keep_the_counts_of_positions() -> None:
    masks = {"a": torch.rand(2, 7, 3, 3, 3, generator=_generator()) < 0.4}
    shuffled = random_masks_like(masks, _generator(1), axes="inputs")
    assert torch.equal(masks["a"].sum(1), shuffled["a"].sum(1))
    assert not torch.equal(masks["a"], shuffled["a"])


def test_overlap_of_random_masks_is_the_kept_share() -> None:
    one, other = (random_masks({"a": (40, 50)}, 20, 0.9, _generator(seed)) for seed in (1, 2))
    assert overlap(one, one).tolist() == [1.0] * 20
    assert abs(overlap(one, other).mean() - 0.1) < 0.02


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, float("nan")])
def test_refused_sparsity(sparsity: float) -> None:
    with pytest.raises(ValueError, match=r"expected at least 0 and less than 1"):
        top_masks(_normal(), sparsity)


def test_refused_scope_and_scores() -> None:
    with pytest.raises(ValueError, match="expected one of global, layer"):
        top_masks(_normal(), 0.5, scope="neuron")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="has NaN"):
        top_masks({"a": torch.tensor([[float("nan"), 1.0]])}, 0.5)
