"""The equivariant linear layer as a module: initial size, gradients, transforms, saving, other architectures."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap

from nfn_opt.layers import NFLinear, PerParameterLinear, Pointwise, RelationLinear, Sharing
from nfn_opt.layers.relations import RELATIONS, plan_by_relation
from nfn_opt.testing import assert_equivariant, assert_sensitive, random_features
from nfn_opt.weight_space import Features, Symmetry, WeightSpace
from tests.layers.spaces import SYMMETRIES, Residual, cnn, mlp, space_of

SHARINGS: tuple[Sharing, ...] = ("per_parameter", "by_relation")
NETWORKS = {
    "2 layers": (mlp(3, 5, 2), (3,)),
    "SIREN": (mlp(2, 32, 32, 1), (2,)),
    "6 layers": (mlp(9, 8, 7, 6, 5, 4, 3), (9,)),
    "no bias": (mlp(4, 16, 16, 3, bias=False), (4,)),
    "wide": (mlp(64, 128, 128, 10), (64,)),
    "CNN": (cnn(1, 8, 8, 10), (1, 5, 5)),
    "flattened CNN": (cnn(1, 8, 8, 10, pooled=False), (1, 5, 5)),
    "residual": (Residual(3, 16, 2), (3,)),
}


def space_named(name: str, symmetry: Symmetry = "hidden") -> WeightSpace:
    model, shape = NETWORKS[name]
    return space_of(model, *shape, symmetry=symmetry)


def loss(features: Features) -> Tensor:
    return torch.stack([t.square().sum() for t in features.values()]).sum()


@pytest.mark.parametrize("sharing", SHARINGS)
@pytest.mark.parametrize("symmetry", SYMMETRIES)
@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_have_the_size_of_the_inputs(
    name: str, symmetry: Symmetry, sharing: Sharing, generator: torch.Generator
) -> None:
    space = space_named(name, symmetry)
    layer = NFLinear(space, 16, 32, sharing=sharing, generator=generator)
    with torch.no_grad():
        out = layer(random_features(space, 16, 8, generator=generator, dtype=torch.float32))
    assert list(out) == list(space.names)
    for spec in space.parameters:
        assert out[spec.name].shape == (8, *spec.view_shape, 32)
        assert 0.25 < out[spec.name].square().mean() < 2, spec.name


@pytest.mark.parametrize("symmetry", SYMMETRIES)
@pytest.mark.parametrize("sharing", SHARINGS)
def test_most_of_the_variance_is_an_entrys_own(
    sharing: Sharing, symmetry: Symmetry, generator: torch.Generator
) -> None:
    space = space_named("wide", symmetry)
    layer = NFLinear(space, 16, 64, sharing=sharing, generator=generator)
    features = random_features(space, 16, 8, generator=generator, dtype=torch.float32)
    for name in ("0.bias", "2.weight", "2.bias"):
        alone = {n: t if n == name else torch.zeros_like(t) for n, t in features.items()}
        with torch.no_grad():
            assert 0.75 < layer(alone)[name].square().mean() < 1.15, name


@pytest.mark.parametrize("sharing", SHARINGS)
def test_the_layer_is_linear(sharing: Sharing, generator: torch.Generator) -> None:
    space = space_named("residual", "all")
    layer = NFLinear(space, 2, 3, sharing=sharing, generator=generator).double()
    assert layer.bias is not None
    torch.nn.init.normal_(layer.bias, generator=generator)
    a, b = (random_features(space, 2, generator=generator) for _ in range(2))
    zero = {n: torch.zeros_like(t) for n, t in a.items()}
    got = layer({n: 3 * a[n] - 2 * b[n] for n in a})
    for name in space.names:
        expected = 3 * layer(a)[name] - 2 * layer(b)[name]  # the constants count 3 - 2 = 1 times
        torch.testing.assert_close(got[name], expected)
        assert layer(zero)[name].abs().min() > 0


@pytest.mark.parametrize("sharing", SHARINGS)
def test_inputs_are_not_changed(sharing: Sharing, generator: torch.Generator) -> None:
    space = space_named("residual")
    features = random_features(space, 2, generator=generator)
    before = copy.deepcopy(features)
    NFLinear(space, 2, 2, sharing=sharing, generator=generator).double()(features)
    assert all(torch.equal(features[name], before[name]) for name in features)


@pytest.mark.parametrize("name", ["2 layers", "CNN", "residual"])
def test_gradients_reach_every_weight(name: str, generator: torch.Generator) -> None:
    space = space_named(name)
    features = random_features(space, 2, generator=generator)
    layer = PerParameterLinear(space, 2, 3, generator=generator).double()
    loss(layer(features)).backward()
    assert all(p.grad is not None and bool((p.grad != 0).all()) for p in layer.parameters())


@pytest.mark.parametrize("name", ["2 layers", "CNN", "residual"])
def test_gradients_reach_the_relations_that_occur(name: str, generator: torch.Generator) -> None:
    space = space_named(name)
    layer = RelationLinear(space, 2, 3, generator=generator).double()
    loss(layer(random_features(space, 2, generator=generator))).backward()
    occurring = {relation for writing in plan_by_relation(space) for relation, _ in writing.sources}
    assert layer.weight.grad is not None
    for relation in range(len(RELATIONS)):
        assert bool((layer.weight.grad[relation] != 0).all()) == (relation in occurring)
        assert bool((layer.weight[relation] != 0).all()) == (relation in occurring)


@pytest.mark.parametrize("sharing", SHARINGS)
@pytest.mark.parametrize("name", ["2 layers", "CNN", "residual"])
def test_first_and_second_derivatives(name: str, sharing: Sharing, generator: torch.Generator) -> None:
    space = space_named(name)
    layer = NFLinear(space, 1, 2, sharing=sharing, generator=generator).double()
    features = random_features(space, 1, 1, generator=generator)
    inputs = tuple(t.requires_grad_() for t in features.values())

    def apply(*tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(layer(dict(zip(features, tensors, strict=True))).values())

    assert torch.autograd.gradcheck(apply, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(apply, inputs, fast_mode=True)


@pytest.mark.parametrize("sharing", SHARINGS)
@pytest.mark.parametrize("name", ["2 layers", "residual"])
def test_vmap_over_layers_and_over_features(name: str, sharing: Sharing, generator: torch.Generator) -> None:
    space = space_named(name)
    layers = [NFLinear(space, 2, 3, sharing=sharing, generator=generator).double() for _ in range(3)]
    inputs = [random_features(space, 2, generator=generator) for _ in range(3)]
    parameters, buffers = stack_module_state(layers)
    batched = {n: torch.stack([x[n] for x in inputs]) for n in space.names}

    def apply(state: dict[str, Tensor], x: Features) -> Features:
        return functional_call(layers[0], (state, buffers), (x,))

    cases = [
        ((0, 0), batched, [layer(x) for layer, x in zip(layers, inputs, strict=True)]),
        ((0, None), inputs[0], [layer(inputs[0]) for layer in layers]),
    ]
    for in_dims, x, expected in cases:
        got = vmap(apply, in_dims=in_dims)(parameters, x)
        for n in space.names:
            torch.testing.assert_close(got[n], torch.stack([e[n] for e in expected]))


@pytest.mark.parametrize("sharing", SHARINGS)
@pytest.mark.parametrize("name", ["2 layers", "CNN", "residual"])
def test_vmap_over_one_tensor_of_many(name: str, sharing: Sharing, generator: torch.Generator) -> None:
    space = space_named(name)
    layer = NFLinear(space, 2, 3, sharing=sharing, generator=generator).double()
    features = random_features(space, 2, generator=generator)
    for single in space.names:
        stacked = torch.stack([features[single], 2 * features[single]])
        got = vmap(lambda t, single=single: layer({**features, single: t}))(stacked)
        expected = layer({**features, single: 2 * features[single]})
        assert all(torch.allclose(got[n][1], expected[n], rtol=1e-12, atol=1e-12) for n in space.names)
    assert layer.bias is not None
    state = dict(layer.named_parameters())
    biases = torch.stack([layer.bias, layer.bias + 1])
    shifted = vmap(lambda b: functional_call(layer, {**state, "bias": b}, (features,)))(biases)
    plain = layer(features)
    assert all(torch.allclose(shifted[n][0], plain[n]) for n in space.names)


@pytest.mark.parametrize("sharing", SHARINGS)
def test_functional_gradients(sharing: Sharing, generator: torch.Generator) -> None:
    space = space_named("residual")
    layer = NFLinear(space, 2, 3, sharing=sharing, generator=generator).double()
    features = random_features(space, 2, 3, generator=generator)
    state = {name: p.detach() for name, p in layer.named_parameters()}

    def objective(parameters: dict[str, Tensor], x: Features) -> Tensor:
        return loss(functional_call(layer, parameters, (x,)))

    loss(layer(features)).backward()
    got = grad(objective)(state, features)
    for name, parameter in layer.named_parameters():
        torch.testing.assert_close(got[name], parameter.grad)
    single = {n: t[:, None] for n, t in features.items()}
    each = vmap(grad(objective), in_dims=(None, 0))(state, single)
    for name in state:
        torch.testing.assert_close(each[name].sum(0), got[name])


@pytest.mark.parametrize("sharing", SHARINGS)
def test_state_dict_round_trip(sharing: Sharing, generator: torch.Generator) -> None:
    space = space_named("CNN")
    layer, other = (NFLinear(space, 2, 3, sharing=sharing, generator=generator) for _ in range(2))
    features = random_features(space, 2, generator=generator, dtype=torch.float32)
    assert not torch.equal(layer(features)["0.bias"], other(features)["0.bias"])
    other.load_state_dict(layer.state_dict())
    for clone in (other, copy.deepcopy(layer)):
        assert all(torch.equal(layer(features)[n], clone(features)[n]) for n in space.names)


@pytest.mark.parametrize("sharing", SHARINGS)
def test_weights_come_from_the_generator_alone(sharing: Sharing) -> None:
    space, state = space_named("2 layers"), torch.get_rng_state()
    first, again, other = (
        NFLinear(space, 2, 3, sharing=sharing, generator=torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    )
    assert torch.equal(state, torch.get_rng_state())
    pairs = list(zip(first.parameters(), again.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b, _ in pairs)
    assert any(not torch.equal(a, c) for a, _, c in pairs)


@pytest.mark.parametrize("sharing", SHARINGS)
def test_sequential(sharing: Sharing, generator: torch.Generator) -> None:
    space = space_named("flattened CNN", "all")
    network = nn.Sequential(
        NFLinear(space, 1, 8, sharing=sharing, generator=generator),
        Pointwise(nn.ReLU()),
        NFLinear(space, 8, 1, sharing=sharing, bias=False, generator=generator),
    ).double()
    assert_equivariant(network, space, 1, generator)
    assert_sensitive(network, space, 1, generator)
    assert sum(p.numel() for p in network[2].parameters()) < sum(p.numel() for p in network[0].parameters())


@pytest.mark.parametrize("name", NETWORKS)
def test_one_set_of_relations_serves_every_architecture(name: str, generator: torch.Generator) -> None:
    layer = RelationLinear(space_named("2 layers"), 2, 16, generator=generator).double()
    for symmetry in SYMMETRIES:
        space = space_named(name, symmetry)
        other = RelationLinear(space, 2, 16).double()
        other.load_state_dict(layer.state_dict())
        features = random_features(space, 2, generator=generator)
        here, there = layer(features, space=space), other(features)
        assert all(torch.equal(here[n], there[n]) for n in space.names)
        assert_equivariant(other, space, 2, generator)
        assert_sensitive(other, space, 2, generator)
        assert all(0.2 < t.square().mean() < 4 for t in there.values())


def test_relations_do_not_grow_with_depth_or_width() -> None:
    counts = {sum(p.numel() for p in RelationLinear(space_named(n), 2, 3).parameters()) for n in NETWORKS}
    assert counts == {(len(RELATIONS) * 2 + 2) * 3}


def test_weights_per_parameter_do_not_grow_with_hidden_widths() -> None:
    def count(*widths: int) -> int:
        return sum(
            p.numel() for p in PerParameterLinear(space_of(mlp(*widths), widths[0]), 2, 3).parameters()
        )

    assert count(3, 4, 5, 2) == count(3, 40, 50, 2) < count(3, 4, 4, 4, 2)


def test_printed_form() -> None:
    space = space_named("2 layers", "all")
    assert "1 -> 16, per_parameter, symmetry='all'" in str(NFLinear(space, 1, 16))
    assert str(NFLinear(space, 1, 16, sharing="by_relation")) == "RelationLinear(1 -> 16, by_relation)"


@pytest.mark.parametrize("sharing", SHARINGS)
@pytest.mark.parametrize("name", ["2 layers", "SIREN", "CNN", "residual"])
def test_autocast(name: str, sharing: Sharing, generator: torch.Generator) -> None:
    space = space_named(name)
    layers = [NFLinear(space, c, 3, sharing=sharing, generator=generator) for c in (2, 3)]
    network = nn.Sequential(*layers)
    features = random_features(space, 2, generator=generator, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = network(features)
    for n, exact in network(features).items():
        torch.testing.assert_close(out[n].float(), exact, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("sharing", SHARINGS)
def test_compiles_in_one_graph(sharing: Sharing, generator: torch.Generator) -> None:
    space = space_named("residual")
    layer = NFLinear(space, 2, 3, sharing=sharing, generator=generator)
    features = random_features(space, 2, generator=generator, dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)  # inside torch's own compiler
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        out = compiled(features)
    for name, exact in layer(features).items():
        torch.testing.assert_close(out[name], exact)


def test_weights_are_named_by_their_groups() -> None:
    layer = PerParameterLinear(space_named("2 layers", "all"), 1, 1)
    assert set(layer.weights) == {"h1+in1", "h1+out1", "h1", "in1", "out1", "constant"}
    assert set(layer.state_dict()) == {"bias", *(f"weights.{name}" for name in layer.weights)}
