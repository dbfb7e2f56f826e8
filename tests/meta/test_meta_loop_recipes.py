"""Recipes and the configuration: what can be said, what is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nfn_opt.meta import (
    EvolutionStrategies,
    FamilyConfig,
    InnerConfig,
    MetaTrainConfig,
    MixedReparametrization,
    Mixture,
    OuterConfig,
    PersistentES,
    TruncatedBackprop,
    available_recipes,
    load_recipe,
)
from nfn_opt.meta.config import differences
from nfn_opt.meta.estimator_choice import make_estimator
from nfn_opt.meta.records import from_record
from nfn_opt.optim import make_rule


@pytest.mark.parametrize("name", available_recipes())
def test_shipped_recipes_make_their_rule_and_estimator(name: str) -> None:
    config = load_recipe(name, out=Path("runs/x"))
    assert config.out == Path("runs/x")
    for family in config.families:
        make_estimator(config, family)
    make_rule(config.rule, **config.rule_options)


def test_the_recipe_of_the_documentation(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "meta_training.md").read_text()
    found = re.search(r"```toml\n(.*?)```", text, re.DOTALL)
    assert found is not None
    (tmp_path / "doc.toml").write_text(found[1])
    config = load_recipe(tmp_path / "doc.toml", out=tmp_path)
    assert [family.instances for family in config.families] == [6, 2]
    assert [family.name for family in config.evaluation_families] == ["cnn"]


def test_differences_are_named_in_families(tmp_path: Path) -> None:
    one, two = (MetaTrainConfig(out=tmp_path, families=(FamilyConfig(instances=n),)).record() for n in (1, 2))
    assert differences(one, two) == ["families.0.instances was 1, now 2"]


def test_a_record_gives_the_configuration_back(tmp_path: Path) -> None:
    config = MetaTrainConfig(
        out=tmp_path,
        rule="mlp",
        rule_options={"hidden": [8]},
        families=(FamilyConfig(instances=2, networks=3), FamilyConfig(name="other", options={"a": [1]})),
        inner=InnerConfig(rescale=("none", "global"), mixture={"pes": 1.0, "backprop": 0.5}),
        outer=OuterConfig(ema=0.9, lr_factors={"body.*": 0.1}),
        start_from=None,
        minutes=3,
    )
    record = json.loads(json.dumps(config.record()))
    assert from_record(MetaTrainConfig, record) == config
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"command": "x", "config": record}))
    assert load_recipe(path, out=tmp_path) == config


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("rul = 'mlp'", r"there is no option rul \(did you mean 'rule'\?\)"),
        ("[inner]\nhorizons = 3", r"there is no option inner.horizons \(did you mean 'horizon'\?\)"),
        ("[[families]]\ninstances = 0", "instances of the family 'images' is 0"),
        ("seed = 'one'", "seed is 'one', expected a value of type int"),
        ("quiet = 1", "quiet is 1, expected a value of type bool"),
        ("seed = true", "seed is True, expected a value of type int"),
        ("outer = 3", "outer is 3, expected a value of type Mapping"),
        ("seed =", "is not valid TOML"),
    ],
)
def test_a_wrong_recipe_is_refused(text: str, match: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=match):
        load_recipe(path, out=tmp_path)


def test_a_recipe_that_is_a_list_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text("[1]")
    with pytest.raises(ValueError, match=r"config.json is a list, expected options by name"):
        load_recipe(path, out=tmp_path)


def test_an_unknown_recipe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"there is no recipe 'celo' \(did you mean 'celo2'\?\); expected one of"
    ):
        load_recipe("celo", out=tmp_path)
    with pytest.raises(ValueError, match=r"mine.toml: no such file"):
        load_recipe(tmp_path / "mine.toml", out=tmp_path)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: InnerConfig(estimator="pse"), "estimator is 'pse', expected one of backprop, es, pes"),  # type: ignore[arg-type]
        (lambda: InnerConfig(mixture={"pes": 0}), "mixture has pes=0"),
        (lambda: InnerConfig(sigma=0.0), "sigma is 0.0"),
        (lambda: InnerConfig(compile=True), "compile=True and backpropagation are both asked for"),
        (lambda: OuterConfig(ema=1.0), "ema is 1.0, expected a decay"),
        (lambda: OuterConfig(lr_factors={"a": -1}), "the factor of 'a' in lr_factors is -1"),
        (lambda: OuterConfig(give_up_after=0), "give_up_after is 0"),
        (lambda: OuterConfig(tasks_per_step=0), "tasks_per_step is 0"),
        (lambda: FamilyConfig(options={"a": 1}), "the family 'images' has options"),
        (lambda: MetaTrainConfig(out=Path("x"), families=()), "families is empty"),
        (lambda: MetaTrainConfig(out=Path("x"), minutes=0), "minutes is 0, expected a positive"),
        (lambda: MixedReparametrization(levels=()), "levels is empty"),
    ],
)
def test_refused_options(make: Callable[[], Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make()


def test_estimators_are_what_the_configuration_says() -> None:
    def estimator(family: FamilyConfig | None = None, **options: Any) -> Any:
        config = MetaTrainConfig(out=Path("x"), inner=InnerConfig(**options))
        return make_estimator(config, family)

    assert estimator(second_order=True) == TruncatedBackprop(tasks=8, truncation=10, second_order=True)
    assert isinstance(estimator(estimator="es", sigma=0.1), EvolutionStrategies)
    pes = estimator(FamilyConfig(networks=3, horizon=40, shortest_horizon=20), estimator="pes", measure="log")
    assert isinstance(pes, PersistentES)
    assert (pes.tasks, pes.horizon, pes.shortest_horizon, pes.objective.measure) == (3, 40, 20, "log")
    mixture = estimator(mixture={"backprop": 0.5, "pes": 1})
    assert isinstance(mixture, Mixture)
    assert mixture.weights == (0.5, 1.0)
    assert [type(one) for one in mixture.estimators] == [TruncatedBackprop, PersistentES]


def test_a_mixed_reparametrisation_draws_every_level() -> None:
    params = {"w": torch.zeros(200, 3, 4), "b": torch.zeros(200, 3)}
    augmentation = MixedReparametrization(levels=("none", "global", "tensor", "parameter"), low=0.1, high=10)
    scale = augmentation.sample(torch.Generator().manual_seed(0), params)
    w, b = (scale[name].expand(p.shape) for name, p in params.items())
    alike = (w == w[:, :1, :1]).flatten(1).all(1)
    none, shared = (w == 1).flatten(1).all(1), alike & (w[:, 0, 0] == b[:, 0])
    counts = torch.stack([none, shared & ~none, alike & ~shared, ~alike]).sum(1)
    assert counts.sum() == 200
    assert ((counts > 30) & (counts < 70)).all()
