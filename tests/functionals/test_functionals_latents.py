"""Networks to arrays of latents, and arrays to classes: symmetry, shapes, what is refused."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import nn

from nfn_opt.functionals import (
    ArrayBlock,
    ArrayClassifier,
    ArrayClassifierConfig,
    BodyConfig,
    InvariantConfig,
    LatentEncoder,
    LatentEncoderConfig,
    NeuronMessages,
    NeuronMessagesConfig,
)
from nfn_opt.testing import assert_invariant, assert_sensitive, random_features
from nfn_opt.weight_space import WeightSpace

SMALL: dict[str, Any] = {
    "hidden_channels": 8, "hidden_layers": 2, "fourier_frequencies": 4, "position_bands": 2, "heads": 2,
}  # fmt: skip
BODIES: dict[str, BodyConfig | NeuronMessagesConfig] = {
    "messages": NeuronMessagesConfig(channels=8, fourier_frequencies=4),
    "linear": BodyConfig(**SMALL),
    "attention": BodyConfig(**SMALL, mixing="attention"),
}


def space(symmetry: Any = "hidden", *widths: int) -> WeightSpace:
    sizes = widths or (2, 5, 4, 3)
    layers = [nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
    chain = [module for layer in layers for module in (layer, nn.Tanh())][:-1]
    return WeightSpace.from_module(nn.Sequential(*chain), torch.zeros(1, sizes[0]), symmetry=symmetry)


@pytest.mark.parametrize("body", BODIES)
def test_the_array_is_invariant_and_sensitive(body: str, generator: torch.Generator) -> None:
    weights = space()
    wide = 12 if body == "messages" else None
    config = LatentEncoderConfig(body=BODIES[body], latents=6, latent_channels=4, heads=2, read_channels=wide)
    encoder = LatentEncoder(weights, config, generator=generator).double()
    arrays = encoder(random_features(weights, 1, 5, generator=generator))
    assert arrays.shape == (5, 6, 4)
    assert arrays.std(0).min() > 1e-4, "networks are told apart"
    assert arrays[0].std(0).min() > 1e-4, "so are latents"
    assert_invariant(encoder, weights, 1, generator, tolerance=1e-10)
    assert_sensitive(encoder, weights, 1, generator, minimum=1e-6)


def test_messages_are_equivariant_and_hear_all_weights(generator: torch.Generator) -> None:
    weights = space()
    messages = NeuronMessages(
        weights, NeuronMessagesConfig(channels=6, fourier_frequencies=3), generator=generator
    )
    messages.double()
    features = random_features(weights, 1, 2, generator=generator)
    permutation = weights.random_permutation(generator)
    first = messages(weights.permute_features(features, permutation))
    second = messages.neurons.permute_features(messages(features), permutation)
    assert first.keys() == second.keys()
    for name in first:
        assert torch.allclose(first[name], second[name], rtol=1e-10, atol=1e-10)
    for name in features:
        changed = messages({**features, name: features[name] + 0.1})
        for out, before in messages(features).items():
            assert not torch.allclose(changed[out], before), f"{out} does not hear {name}"


def test_gradients_reach_all_weights(generator: torch.Generator) -> None:
    weights = space()
    encoder = LatentEncoder(weights, LatentEncoderConfig(latent_channels=8), generator=generator)
    encoder(random_features(weights, 1, generator=generator, dtype=torch.float32)).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in encoder.parameters())


def test_the_same_generator_gives_the_same_weights() -> None:
    def made() -> LatentEncoder:
        return LatentEncoder(space(), LatentEncoderConfig(), generator=torch.Generator().manual_seed(3))

    for one, other in zip(made().state_dict().values(), made().state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_blocks_mix_places_and_keep_their_size(generator: torch.Generator) -> None:
    block = ArrayBlock(16, 4, generator=generator).double().eval()
    array = torch.randn(3, 5, 16, generator=generator, dtype=torch.float64)
    out = block(array)
    order = torch.randperm(5, generator=generator)
    assert torch.allclose(block(array[:, order]), out[:, order])
    changed = array.clone()
    changed[:, 0, 0] += 1
    assert not torch.allclose(block(changed)[:, 1], out[:, 1])
    assert 0.7 < (out.std() / array.std()).item() < 1.5


def test_the_classifier_knows_places(generator: torch.Generator) -> None:
    config = ArrayClassifierConfig(places=4, latent_channels=6, classes=3, width=8, heads=2)
    classifier = ArrayClassifier(config, generator=generator).double().eval()
    array = torch.randn(2, 4, 6, generator=generator, dtype=torch.float64)
    logits = classifier(array)
    assert logits.shape == (2, 3)
    assert not torch.allclose(classifier(array.flip(1)), logits)


REFUSED = {
    "NP": (space("all"), "symmetry='hidden'"),
    "no biases": (WeightSpace.independent({"w": torch.zeros(3, 2)}), "take a body of NF-Layers"),
    "not a chain": (
        WeightSpace.independent({"w": torch.zeros(3, 2), "b": torch.zeros(3)}),
        "layers one after the other",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_messages_refuse_other_spaces(case: str) -> None:
    other, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        NeuronMessages(other)


def test_refused_options() -> None:
    with pytest.raises(TypeError, match="body is a InvariantConfig"):
        LatentEncoderConfig(body=InvariantConfig())
    with pytest.raises(ValueError, match="a multiple of heads, 4"):
        LatentEncoderConfig(latent_channels=6)
    with pytest.raises(ValueError, match="latents is 0"):
        LatentEncoderConfig(latents=0)
    with pytest.raises(ValueError, match="fourier_scale is 0"):
        NeuronMessagesConfig(fourier_scale=0)
    with pytest.raises(ValueError, match="heads to divide the width"):
        ArrayBlock(6, 4)
    with pytest.raises(ValueError, match="classes is 1"):
        ArrayClassifierConfig(classes=1)
    with pytest.raises(ValueError, match=r"array has shape \(2, 3, 64\), expected \(B, 16, 64\)"):
        ArrayClassifier()(torch.zeros(2, 3, 64))
