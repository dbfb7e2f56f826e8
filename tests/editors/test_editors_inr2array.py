"""Inr2Array and classifiers of INRs: symmetry, shapes, files, training, what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from editors import InrSet, SirenConfig
from editors.inr2array import (
    DecoderConfig,
    Inr2Array,
    Inr2ArrayConfig,
    InrClassifier,
    InrClassifierConfig,
    PatchDecoder,
    train_array_classifier,
    train_inr2array,
    train_inr_classifier,
)
from editors.siren import initial_parameters
from nfn_opt.artifacts import ArtifactError
from nfn_opt.functionals import (
    ArrayClassifier,
    ArrayClassifierConfig,
    BodyConfig,
    InvariantConfig,
    LatentEncoderConfig,
    NeuronMessagesConfig,
)
from nfn_opt.training import TrainingConfig

SIREN = SirenConfig(hidden_width=6, omega_0=5.0)
LAYERS = BodyConfig(hidden_channels=4, hidden_layers=2, fourier_frequencies=2, position_bands=1, heads=2)
ENCODERS = {
    "messages": LatentEncoderConfig(body=NeuronMessagesConfig(channels=8), latent_channels=8),
    "NP": LatentEncoderConfig(body=LAYERS, latent_channels=8),
    "NF-Transformer": LatentEncoderConfig(
        body=dataclasses.replace(LAYERS, mixing="attention"), latent_channels=8
    ),
}
SHORT = TrainingConfig(steps=4, batch_size=4, warmup=1, validate_every=2)


def inrs(count: int = 6, seed: int = 0, siren: SirenConfig = SIREN, labels: bool = True) -> InrSet:
    """INRs that nothing was fitted to: what they show is as random as their weights."""
    params = initial_parameters(siren, count, torch.Generator().manual_seed(seed))
    classes = torch.arange(count) % 3 if labels else None
    return InrSet(params, siren, torch.full((count,), torch.nan), (8, 8), labels=classes)


def model(encoder: str = "messages", **options: Any) -> Inr2Array:
    symmetry: Any = "hidden" if encoder == "messages" else "all"
    config = Inr2ArrayConfig(
        siren=SIREN, image_size=(8, 8), grid=(2, 2), encoder=ENCODERS[encoder], symmetry=symmetry, **options
    )
    return Inr2Array(config).eval()


def classifier(body: Any = None, **options: Any) -> InrClassifier:
    body = body or InvariantConfig(
        hidden_channels=4, hidden_layers=2, fourier_frequencies=2, position_bands=1, head_width=8
    )
    return InrClassifier(InrClassifierConfig(siren=SIREN, classes=3, body=body, **options)).eval()


def as_double(some: InrSet) -> InrSet:
    return some.with_params({name: value.double() for name, value in some.params.items()})


def permuted(network: Any, some: InrSet) -> InrSet:
    permutation = network.reader.space.random_permutation(torch.Generator().manual_seed(1))
    hidden = {name: order for name, order in permutation.indices.items() if name.startswith("h")}
    moved = network.reader.space.permute_features(
        network.reader.space.as_features(some.params), dataclasses.replace(permutation, indices=hidden)
    )
    return some.with_params(network.reader.space.from_features(moved))


def turned(some: InrSet) -> InrSet:
    """The same functions, with the sign of one neuron and the phase of another changed."""
    params = {name: value.clone() for name, value in some.params.items()}
    for name in ("layers.0.weight", "layers.0.bias"):
        params[name][:, 0] *= -1
    params["layers.1.weight"][:, :, 0] *= -1
    params["layers.1.bias"][:, 2] += torch.pi / SIREN.omega_0
    params["layers.2.weight"][:, :, 2] *= -1
    return some.with_params(params)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_the_array_has_the_symmetries_of_an_inr(encoder: str) -> None:
    network, some = model(encoder).double(), as_double(inrs())
    network.reader.standardize(some)
    arrays = network.embed(some)
    assert arrays.shape == (6, 4, 8)
    assert arrays.std(0).min() > 1e-6
    for same in (permuted(network, some), turned(some)):
        assert not torch.equal(same.params["layers.1.weight"], some.params["layers.1.weight"])
        assert torch.allclose(same.render(), some.render(), atol=1e-10)
        assert torch.allclose(network.embed(same), arrays, rtol=1e-10, atol=1e-10)


def test_without_canonical_form_signs_make_a_difference() -> None:
    network, some = model(canonical=False).double(), as_double(inrs())
    assert not torch.allclose(network.embed(turned(some)), network.embed(some), atol=1e-6)
    assert torch.allclose(network.embed(permuted(network, some)), network.embed(some), atol=1e-10)


def test_a_classifier_has_them_too() -> None:
    for network in (classifier().double(), classifier(ENCODERS["messages"], symmetry="hidden").double()):
        some = as_double(inrs())
        for same in (permuted(network, some), turned(some)):
            assert torch.allclose(network.logits(same), network.logits(some), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", ["mlp", "siren"])
def test_each_latent_shows_its_own_patch(kind: Any) -> None:
    decoder = PatchDecoder(DecoderConfig(kind=kind), 8, (2, 3), (4, 6), 3)
    array = torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(0))
    before = decoder(array).view(4, 6, 3)
    array[0, 4] += 1  # second row, second column
    changed = (decoder(array).view(4, 6, 3) != before).any(-1)
    inside = torch.zeros(4, 6, dtype=torch.bool)
    inside[2:, 2:4] = True
    assert torch.equal(changed, inside)


@pytest.mark.parametrize("options", [{}, {"decoder": DecoderConfig(kind="siren")}, {"encoder": "NP"}])
def test_files(options: dict[str, Any], tmp_path: Path) -> None:
    network = model(**options)
    network.reader.standardize(inrs())
    network.save(tmp_path / "a.safetensors", {"command": "made by hand"})
    again = Inr2Array.load(tmp_path / "a.safetensors")
    assert again.config == network.config
    assert again.metadata == {"command": "made by hand"}
    assert torch.equal(again.embed(inrs()), network.embed(inrs()))
    assert torch.equal(again.reconstruct(inrs()), network.reconstruct(inrs()))
    with pytest.raises(ArtifactError, match="holds a 'inr2array', expected a 'inr_classifier'"):
        InrClassifier.load(tmp_path / "a.safetensors")


def test_files_of_classifiers(tmp_path: Path) -> None:
    network = model()
    head = ArrayClassifier(ArrayClassifierConfig(places=4, latent_channels=8, classes=3, width=8))
    network.reader.standardize(inrs())
    together = InrClassifier.on_array(network, head)
    assert torch.allclose(together.logits(inrs()), head.eval()(network.embed(inrs())), atol=1e-6)
    for name, one in (("array", together), ("direct", classifier())):
        again = InrClassifier.load(one.save(tmp_path / f"{name}.safetensors"))
        assert again.config == one.config
        assert torch.equal(again.logits(inrs()), one.logits(inrs()))
    with pytest.raises(ValueError, match="the head takes arrays of 16 x 8, expected 4 x 8"):
        InrClassifier.on_array(network, ArrayClassifier(ArrayClassifierConfig(latent_channels=8)))


def test_empty_sets() -> None:
    assert model().embed(inrs()[:0]).shape == (0, 4, 8)
    assert model().reconstruct(inrs()[:0]).shape == (0, 8, 8, 1)
    assert classifier().predict(inrs()[:0]).shape == (0,)


def test_an_autoencoder_learns() -> None:
    network, some = model(), inrs(24)
    config = TrainingConfig(steps=150, batch_size=12, lr=5e-3, warmup=5, validate_every=50)
    result = train_inr2array(network, some, some, config=config)
    plain = 4 * (some.render() - some.render().mean(0)).square().mean().item()
    found = 4 * (network.reconstruct(some) - some.render()).square().mean().item()
    assert found == pytest.approx(-result.best_score, rel=1e-4)
    assert found < 0.5 * plain, "closer than the mean picture"


def test_a_training_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    def trained(network: Inr2Array, **options: Any) -> None:
        train_inr2array(network, inrs(), inrs(4, 1), config=SHORT, pixels=20, **options)

    whole, stopped, resumed = model(), model(), model()
    trained(whole, folder=tmp_path / "whole")

    class StopError(Exception):
        pass

    def interrupt(module: Any, *_: Any) -> None:
        if module.training and (tmp_path / "part" / "checkpoint.safetensors").exists():
            raise StopError

    handle = stopped.register_forward_pre_hook(interrupt)
    with pytest.raises(StopError):
        trained(stopped, folder=tmp_path / "part")
    handle.remove()
    trained(resumed, folder=tmp_path / "part", resume=True)
    for one, other in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("mixup", [0.0, 0.4])
def test_classifiers_learn(mixup: float) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(30) % 3
    arrays = torch.randn(30, 4, 8, generator=generator) + 3 * torch.eye(8)[labels].unsqueeze(1)
    head = ArrayClassifier(
        ArrayClassifierConfig(places=4, latent_channels=8, classes=3, width=8), generator=generator
    )
    config = TrainingConfig(steps=60, batch_size=16, lr=1e-2, warmup=2, validate_every=20)
    result = train_array_classifier(
        head, arrays, labels, (arrays, labels), config=config, mixup=mixup, smoothing=0.1
    )
    assert result.best_score > 0.9


def test_a_classifier_of_weights_learns() -> None:
    some = inrs(12)
    params = {name: value.clone() for name, value in some.params.items()}
    params["layers.2.bias"] += torch.arange(12).remainder(3).unsqueeze(1).float()
    some = some.with_params(params)
    body = InvariantConfig(
        hidden_channels=8, hidden_layers=2, fourier_frequencies=0, position_bands=1, head_width=32
    )
    network = classifier(body)
    config = TrainingConfig(steps=150, batch_size=12, lr=1e-2, warmup=2, validate_every=50)
    result = train_inr_classifier(network, some, some, config=config)
    assert result.best_score > 0.9
    assert some.labels is not None
    assert result.best_score == (network.predict(some) == some.labels).double().mean()


def test_refused_inrs() -> None:
    other = inrs(siren=SirenConfig(hidden_width=7, omega_0=5.0))
    for function in (model().embed, model().reconstruct, classifier().predict):
        with pytest.raises(ValueError, match="hidden_width=7, expected hidden_width=6"):
            function(other)
    with pytest.raises(ValueError, match="hidden_width=7"):
        train_inr2array(model(), other, inrs(), config=SHORT)
    larger = dataclasses.replace(inrs(), image_size=(9, 8))
    with pytest.raises(ValueError, match=r"images of \(9, 8\), expected \(8, 8\)"):
        train_inr2array(model(), inrs(), larger, config=SHORT)
    with pytest.raises(ValueError, match="pixels is 65, expected 1 to 64"):
        train_inr2array(model(), inrs(), inrs(), config=SHORT, pixels=65)


def test_refused_labels() -> None:
    with pytest.raises(ValueError, match="the INRs have no labels"):
        train_inr_classifier(classifier(), inrs(labels=False), inrs(), config=SHORT)
    wrong = dataclasses.replace(inrs(), labels=torch.tensor([0, 1, 2, 3, 0, 1]))
    with pytest.raises(ValueError, match="from 0 to 3, expected 0 to 2; make the classifier with classes=4"):
        train_inr_classifier(classifier(), inrs(), wrong, config=SHORT)
    head = ArrayClassifier(ArrayClassifierConfig(places=4, latent_channels=8, classes=3, width=8))
    arrays, below = torch.zeros(2, 4, 8), torch.tensor([-1, 0])
    with pytest.raises(ValueError, match="labels range from -1 to 0"):
        train_array_classifier(head, arrays, below, (arrays, below), config=SHORT)
    with pytest.raises(ValueError, match="mixup is -1"):
        train_array_classifier(head, arrays, below, (arrays, below), config=SHORT, mixup=-1)


def test_refused_options() -> None:
    with pytest.raises(ValueError, match=r"grid is \(3, 2\) and image_size \(8, 8\)"):
        Inr2ArrayConfig(siren=SIREN, image_size=(8, 8), grid=(3, 2))
    with pytest.raises(ValueError, match="classes is 1"):
        InrClassifierConfig(siren=SIREN, classes=1)
    with pytest.raises(ValueError, match="kind is 'conv'"):
        DecoderConfig(kind="conv")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="there are no INRs"):
        model().reader.standardize(inrs()[:0])
