"""Families give random, reproducible instances; the table keeps trained and held-out families apart."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from nfn_opt.meta.families import (
    FAMILIES,
    SUITE,
    Augmentation,
    AugmentedFamily,
    DataSources,
    LossScale,
    NoisyGradients,
    TaskFamily,
    WeightDecay,
    check_disjoint,
    family_names,
    family_table,
    make_family,
    suite,
)
from nfn_opt.meta.stepper import losses_and_grads


@pytest.fixture(scope="module")
def data() -> DataSources:
    """Digits in the place of every other image set."""
    return DataSources(dict.fromkeys(("mnist", "cifar10", "fashion-mnist"), "digits"), limit=64)


@pytest.mark.parametrize("name", FAMILIES)
def test_instances_are_random_and_reproducible(name: str, data: DataSources) -> None:
    family = make_family(name, data)
    fingerprints = []
    for seed in (0, 0, 1, 2, 3):
        generator = torch.Generator().manual_seed(seed)
        task = family.sample(generator)
        params = task.init(generator, 2)
        losses, grads = losses_and_grads(task, params, task.batch(generator, 2))
        assert losses.shape == (2,)
        assert {key: g.shape for key, g in grads.items()} == {key: p.shape for key, p in params.items()}
        assert torch.isfinite(losses).all()
        assert task.space.names == tuple(params)
        fingerprints.append((task.space.names, losses.tolist()))
    assert fingerprints[0] == fingerprints[1]
    assert len({str(fingerprint) for fingerprint in fingerprints}) == 4


@pytest.mark.parametrize("entry", SUITE, ids=lambda entry: entry.name)
def test_suite_tasks_build_and_can_be_evaluated(entry, data: DataSources) -> None:  # type: ignore[no-untyped-def]
    task, generator = entry.build(data), torch.Generator().manual_seed(0)
    params = task.init(generator, 2)
    losses, grads = losses_and_grads(task, params, task.batch(generator, 2))
    assert torch.isfinite(losses).all()
    # The estimate of a gradient is zero where no perturbation changes an action.
    assert not task.traceable or all(g.abs().max() > 0 for g in grads.values())
    full = task.full_losses(params)
    assert full.shape == (2,)
    assert torch.isfinite(full).all()


def test_the_suite_is_held_out_and_wide() -> None:
    assert len(SUITE) >= 14
    assert len({task.name for task in SUITE}) == len(SUITE)
    assert len({task.family for task in SUITE}) >= 6
    check_disjoint(family_names("train"), [task.family for task in SUITE])
    assert [task.name for task in suite(["siren-patch", "cnn-cifar"])] == ["cnn-cifar", "siren-patch"]
    with pytest.raises(ValueError, match="there is no suite task lenet; the suite has cnn-mnist"):
        suite(["lenet"])


def test_the_table() -> None:
    assert set(family_names("train")) | set(family_names("held out")) == set(FAMILIES)
    assert not set(family_names("train")) & set(family_names("held out"))
    lines = family_table().splitlines()
    assert len(lines) == 2 + len(FAMILIES)
    assert all(entry.description.endswith(".") for entry in FAMILIES.values())


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: check_disjoint(["mlp", "cnn"], ["inr", "cnn"]), "meta-trained on cnn, so"),
        (lambda: check_disjoint(["mpl"], ["cnn"]), "there is no family mpl; the table has mlp"),
        (lambda: make_family("vit"), "there is no family vit"),
        (lambda: make_family("policy", environments=("go",)), r"environments is \('go',\), expected some"),
        (lambda: DataSources().images("imagenet", 8), "no image source 'imagenet', expected photos, digits"),
        (lambda: Augmentation(noise=(0.0, 1.0)), r"noise is \(0\.0, 1\.0\), expected a range"),
        (lambda: Augmentation(share=2.0), "share is 2.0"),
        (lambda: LossScale(instance("quadratic"), 0.0), "factor must be positive"),
        (lambda: WeightDecay(instance("quadratic"), -1.0), "strength must not be negative"),
        (lambda: NoisyGradients(instance("policy"), 1.0), "PolicyTask estimates its gradients"),
    ],
)
def test_refused_options(call: Callable[[], object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        call()


def instance(name: str):  # type: ignore[no-untyped-def]
    return make_family(name).sample(torch.Generator().manual_seed(0))


def test_loss_scale_multiplies_losses_and_gradients(generator: torch.Generator) -> None:
    for name in ("quadratic", "policy"):
        task = instance(name)
        params = task.init(generator, 3)
        batch = task.batch(generator, 3)
        losses, grads = losses_and_grads(task, params, batch)
        scaled, scaled_grads = losses_and_grads(LossScale(task, 4.0), params, batch)
        torch.testing.assert_close(scaled, 4 * losses)
        for key, g in grads.items():
            torch.testing.assert_close(scaled_grads[key], 4 * g)
        torch.testing.assert_close(LossScale(task, 4.0).full_losses(params), 4 * task.full_losses(params))


def test_weight_decay_adds_to_losses_and_gradients(generator: torch.Generator) -> None:
    task = instance("mlp")
    params, batch = task.init(generator, 3), task.batch(generator, 3)
    decayed = WeightDecay(task, 0.5)
    losses, grads = losses_and_grads(task, params, batch)
    more, more_grads = losses_and_grads(decayed, params, batch)
    squares = torch.stack([p.square().flatten(1).sum(1) for p in params.values()]).sum(0)
    torch.testing.assert_close(more, losses + 0.25 * squares)
    torch.testing.assert_close(decayed.full_losses(params), task.full_losses(params) + 0.25 * squares)
    for key, g in grads.items():
        torch.testing.assert_close(more_grads[key], g + 0.5 * params[key])
    one = {key: p[1] for key, p in params.items()}
    torch.testing.assert_close(decayed.loss(one, tuple(part[1] for part in batch)), more[1])


def test_gradient_noise_leaves_the_losses(generator: torch.Generator) -> None:
    task = instance("mlp")
    params = task.init(generator, 3)
    noisy = NoisyGradients(task, 0.1)
    batch = noisy.batch(generator, 3)
    losses, grads = losses_and_grads(task, params, batch["batch"])
    same, noisy_grads = losses_and_grads(noisy, params, batch)
    torch.testing.assert_close(same, losses)
    for key, g in grads.items():
        torch.testing.assert_close(noisy_grads[key], g + 0.1 * batch["noise"][key])
    one = {key: p[1] for key, p in params.items()}
    first = {
        "batch": tuple(part[1] for part in batch["batch"]),
        "noise": {k: v[1] for k, v in batch["noise"].items()},
    }
    torch.testing.assert_close(noisy.loss(one, first), same[1])


def test_an_augmented_family_stays_in_its_group(data: DataSources, generator: torch.Generator) -> None:
    given = Augmentation(noise=(0.1, 1.0), weight_decay=(1e-4, 1e-2), loss_scale=(0.1, 10.0), share=1.0)
    family: TaskFamily = AugmentedFamily(make_family("mlp", data), given)
    assert (family.family, family.name) == ("mlp", "mlp")
    task = family.sample(generator)
    assert isinstance(task, LossScale)
    assert isinstance(task.task, NoisyGradients)
    assert isinstance(task.task.task, WeightDecay)
    plain = AugmentedFamily(make_family("policy"), given).sample(generator)
    assert isinstance(plain, LossScale)
    assert not plain.traceable


def test_image_sources(data: DataSources) -> None:
    assert data.images("photos", 12).images.shape == (64, 12, 12, 1)
    images = data.images("mnist", 4)
    assert images.images.shape == (64, 4, 4, 1)
    assert data.images("mnist", 4) is images
    assert data.text() is data.text()
