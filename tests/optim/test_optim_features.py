"""The features are those of the papers, and the fast first layer is the slow one."""

from __future__ import annotations

import pytest
import torch

from nfn_opt.optim import MLPConfig, MLPRule
from nfn_opt.optim.features import FEATURES, TIMESCALES, time_features
from nfn_opt.optim.layout import Layout
from nfn_opt.weight_space import Axis, TensorSpec, WeightSpace
from tests.optim import celo2_twin
from tests.optim.networks import draw_like, random_space
from tests.optim.rule_cases import SHAPES, draw, run


@pytest.mark.parametrize("base", [True, False])
@pytest.mark.parametrize("scale", [1.0, 1e-4, 1e4])
def test_celo2_is_the_published_rule(generator: torch.Generator, scale: float, base: bool) -> None:
    config = MLPConfig.celo2_base() if base else MLPConfig.celo2()
    rule = MLPRule(config).double().requires_grad_(False)
    for bias in (rule.first.bias, *rule.rest.biases):
        bias.normal_(generator=generator)
    params, gradients = draw(generator), [draw(generator) for _ in range(4)]
    gradients = [{name: scale * g for name, g in grads.items()} for grads in gradients]
    got, _ = run(rule, WeightSpace.independent(params), params, gradients)
    weights, biases = [rule.first.weight, *rule.rest.weights], [rule.first.bias, *rule.rest.biases]
    expected = celo2_twin.run(params, gradients, weights, biases, lr=1e-3, base=base)
    moved = {name: expected[name] - params[name] for name in params}
    assert all(m.abs().max() > 1e-4 for m in moved.values())
    torch.testing.assert_close({n: got[n] - params[n] for n in params}, moved, rtol=1e-10, atol=1e-13)


def test_celo2_base_has_the_published_size() -> None:
    rule = MLPRule(MLPConfig.celo2_base())
    assert rule.first.in_features == 30
    assert sum(p.numel() for p in rule.parameters()) == 347 - 2 * (8 + 1)  # one output of three
    assert not list(rule.step_size.parameters())


@pytest.mark.parametrize("feature", FEATURES)
def test_each_feature_is_read_from_its_own_columns(feature: str, generator: torch.Generator) -> None:
    """Against the twin's channels: a rule that sees one feature through one column of weight one."""
    needed = (
        (feature,)
        if feature not in ("row", "column", "inverse_root_row", "inverse_root_column")
        else (
            "gradient",
            feature,
        )
    )
    rule = MLPRule(MLPConfig(features=needed, use_time=False)).double().requires_grad_(False)
    params, grads = {"w": draw(generator)["w"]}, {"w": draw(generator)["w"]}
    space = WeightSpace.independent(params)
    layout = Layout.of(space, ("w",))
    from nfn_opt.optim.features import Inputs

    means = rule.accumulators.update(layout, layout.flatten(grads), rule.init(space, params)["tensors"])
    rule.first.weight.zero_()
    columns = rule.first.columns[feature]
    rule.first.weight[: len(columns), columns.start : columns.stop] = torch.eye(len(columns))
    (first,) = rule.first(Inputs(layout.flatten(params), layout.flatten(grads), means), torch.zeros(11))
    (hidden,) = first.blocks()
    p, g = (celo2_twin.to_reference(x["w"]) for x in (params, grads))
    channels, _ = celo2_twin.features(p, g, celo2_twin.new_state(p))
    reference = MLPRule(MLPConfig.celo2_base()).first.columns[feature]
    for i, column in enumerate(reference[: len(columns)]):
        expected = celo2_twin.from_reference(channels[column])
        torch.testing.assert_close(hidden[i].reshape(4, 3), expected, rtol=1e-10, atol=1e-12)


def test_time_features() -> None:
    got = time_features(torch.tensor(300), torch.float64)
    assert got.tolist() == pytest.approx(
        [float(torch.tanh(torch.tensor(300.0 / s - 1).double())) for s in TIMESCALES]
    )
    assert time_features(torch.tensor(10**9), torch.float32).isfinite().all()


@pytest.mark.parametrize(
    ("axes", "row", "column"),
    [
        ((Axis("out", 2), Axis("h", 4), Axis("pixel", 3, False)), (3, 2, 1), (3, 1, 12)),
        ((Axis("flat", 24),), (3, 24), None),
    ],
)
def test_statistics_are_of_the_stored_shape_unless_that_breaks_the_symmetry(
    axes: tuple[Axis, ...],
    row: tuple[int, ...],
    column: tuple[int, ...] | None,
    generator: torch.Generator,
) -> None:
    """A linear layer after a flatten, and a matrix that is flattened itself."""
    rule, params = MLPRule(), {"w": torch.randn(2, 12, generator=generator)}
    state = rule.init(WeightSpace((TensorSpec("w", (2, 12), axes),)), params)["tensors"]["w"]
    assert state["row"].shape == row
    assert (state["column"].shape if "column" in state else None) == column
    assert state["momentum"].shape == (3, 2, 12)


def test_the_symmetry_given_does_not_change_a_rule_for_each_weight(generator: torch.Generator) -> None:
    for seed in range(4):
        space = random_space(seed)
        params, gradients = draw_like(space, generator), [draw_like(space, generator) for _ in range(2)]
        rule = MLPRule(MLPConfig.celo2()).double()
        tied, loose = (run(rule, s, params, gradients) for s in (space, WeightSpace.independent(params)))
        torch.testing.assert_close(tied, loose, rtol=0, atol=0)


def test_accumulators_that_no_feature_reads_are_not_kept(generator: torch.Generator) -> None:
    params = draw(generator)
    state = MLPRule(MLPConfig(features=("gradient", "momentum"))).init(
        WeightSpace.independent(params), params
    )
    assert {key for tensor in state["tensors"].values() for key in tensor} == {
        "step",
        "momentum",
        "second_moment",
    }


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"features": ("momentun",)}, "no feature 'momentun' .did you mean 'momentum'"),
        ({"features": ("gradient", "gradient")}, "listed twice"),
        ({"features": ("row",)}, "at least one with a value for each weight"),
        ({"features": ()}, "at least one"),
        ({"momentum_decays": ()}, "momentum_decays is empty"),
        ({"factor_decays": (0.9,)}, "factor_decays has 1 values, expected 3"),
        ({"second_moment_decay": 1.0}, "a decay is 1.0"),
        ({"lr": 0.0}, "lr is 0.0, expected a positive number"),
        ({"base": "sgd"}, "base is 'sgd'"),
        ({"hidden": ()}, "hidden is"),
    ],
)
def test_refused_options(options: dict[str, object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        MLPConfig(**options)  # type: ignore[arg-type]


def test_shapes_cover_every_order() -> None:
    assert {len(shape) for shape in SHAPES.values()} == {0, 1, 2, 3, 4}


def test_order_of_features_is_the_order_of_columns(generator: torch.Generator) -> None:
    """Also where features that vectors lack come first."""
    rules = [MLPRule(MLPConfig(features=order)).double() for order in (FEATURES, FEATURES[::-1])]
    rules[1].load_state_dict(rules[0].state_dict())
    for feature in FEATURES:
        here, there = (list(rule.first.columns[feature]) for rule in rules)
        rules[1].first.weight.data[:, there] = rules[0].first.weight.data[:, here]
    params, gradients = draw(generator), [draw(generator) for _ in range(2)]
    space = WeightSpace.independent(params)
    forward, backward = (run(rule, space, params, gradients)[0] for rule in rules)
    torch.testing.assert_close(forward, backward, rtol=1e-12, atol=1e-14)


def test_blocks_are_the_whole(generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no graph is kept large tensors are worked on in blocks; the result is that of one block."""
    rule, params, gradients = MLPRule().double(), draw(generator), [draw(generator) for _ in range(2)]
    space = WeightSpace.independent(params)
    whole, _ = run(rule, space, params, gradients)
    monkeypatch.setattr("nfn_opt.optim.first_layer.BLOCK", 5)
    with torch.no_grad():
        blocks, _ = run(rule, space, params, gradients)
    torch.testing.assert_close(blocks, whole, rtol=1e-12, atol=1e-14)
