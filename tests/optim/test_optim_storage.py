"""Rules come back from their files as they were, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nfn_opt.artifacts import ArtifactError, load_artifact, save_artifact
from nfn_opt.optim import (
    available_rules,
    load_rule,
    make_rule,
    pretrained,
    register_rule,
    rule_metadata,
    save_rule,
)
from nfn_opt.optim.classic import AdamRule, SGDRule
from nfn_opt.weight_space import WeightSpace
from tests.optim.rule_cases import RULES, draw, run

METADATA = {"command": "python scripts/meta_train.py", "scores": {"digits": 0.5}}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", RULES)
def test_round_trip(name: str, dtype: torch.dtype, tmp_path: Path, generator: torch.Generator) -> None:
    rule = RULES[name]().to(dtype)
    for p in rule.parameters():
        p.data += 0.1 * torch.randn(p.shape, generator=generator, dtype=dtype)
    loaded = load_rule(save_rule(rule, tmp_path / "rule.safetensors", METADATA))
    assert type(loaded) is type(rule)
    assert loaded.config == rule.config
    assert rule_metadata(tmp_path / "rule.safetensors") == METADATA
    params, gradients = draw(generator, dtype=dtype), [draw(generator, dtype=dtype) for _ in range(2)]
    space = WeightSpace.independent(params)
    torch.testing.assert_close(
        run(loaded, space, params, gradients), run(rule, space, params, gradients), rtol=0, atol=0
    )


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save_rule(make_rule("mlp", hidden=(4,)), tmp_path / "rule.safetensors")


def test_truncated_and_foreign_files(saved: Path, tmp_path: Path) -> None:
    saved.write_bytes(saved.read_bytes()[:-10])
    with pytest.raises(ArtifactError, match="not a complete safetensors file"):
        load_rule(saved)
    torch.save({}, tmp_path / "rule.pt")
    with pytest.raises(ArtifactError, match="not a complete safetensors file"):
        load_rule(tmp_path / "rule.pt")
    save_artifact(tmp_path / "editor", {}, kind="editor")
    for load in (load_rule, rule_metadata):
        with pytest.raises(ArtifactError, match=r"holds a 'editor', expected an? 'update_rule'"):
            load(tmp_path / "editor")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load_rule(tmp_path / "nothing")


def _drop(tensors: dict[str, torch.Tensor], record: dict[str, object]) -> None:
    del tensors["first.bias"]


def _reshape(tensors: dict[str, torch.Tensor], record: dict[str, object]) -> None:
    tensors["first.bias"] = torch.zeros(5)


def _spoil(tensors: dict[str, torch.Tensor], record: dict[str, object]) -> None:
    tensors["first.bias"][0] = float("nan")


def _add(tensors: dict[str, torch.Tensor], record: dict[str, object]) -> None:
    tensors["more"] = torch.zeros(1)


def _integers(tensors: dict[str, torch.Tensor], record: dict[str, object]) -> None:
    tensors["first.bias"] = tensors["first.bias"].long()


def _other_kind(tensors: dict[str, torch.Tensor], record: dict[str, object]) -> None:
    record["rule"] = "mpl"


def _other_config(tensors: dict[str, torch.Tensor], record: dict[str, object]) -> None:
    record["config"] = {"depth": 3}


def _no_config(tensors: dict[str, torch.Tensor], record: dict[str, object]) -> None:
    del record["config"]


def _other_space(tensors: dict[str, torch.Tensor], record: dict[str, object]) -> None:
    record["space"] = "0123"


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (_drop, "no tensor 'first.bias'"),
        (_reshape, r"'first.bias' of shape \(5,\), expected \(4,\)"),
        (_spoil, "'first.bias' with values that are not finite"),
        (_add, "an unknown tensor 'more'"),
        (_integers, "'first.bias' of dtype torch.int64"),
        (_other_kind, "no rule of kind 'mpl' .did you mean 'mlp'"),
        (_other_config, "no option 'depth'"),
        (_no_config, "not written by save_rule"),
        (_other_space, "a rule for one weight space .0123.; pass that space="),
    ],
)
def test_what_does_not_fit_is_named(saved: Path, damage: object, match: str) -> None:
    tensors, record = load_artifact(saved, kind="update_rule")
    damage(tensors, record)  # type: ignore[operator]
    save_artifact(saved, tensors, kind="update_rule", metadata=record)
    with pytest.raises(ArtifactError, match=match):
        load_rule(saved)


def test_metadata_must_be_json(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="metadata must be JSON"):
        save_rule(make_rule("sgd"), tmp_path / "rule.safetensors", {"loss": torch.ones(1)})
    assert list(tmp_path.iterdir()) == []


def test_unknown_pretrained_rule_lists_the_known() -> None:
    with pytest.raises(ValueError, match=r"no pretrained rule 'defualt' .* expected one of \["):
        pretrained("defualt")
    assert all(name and "/" not in name for name in available_rules())


def test_registry() -> None:
    assert register_rule(AdamRule) is AdamRule

    class Impostor(SGDRule):
        kind = "adam"

    with pytest.raises(ValueError, match="the kind 'adam' belongs to AdamRule; give Impostor another"):
        register_rule(Impostor)
    with pytest.raises(ValueError, match=r"an? 'adam' rule has no option 'momentum'"):
        make_rule("adam", momentum=0.9)
    with pytest.raises(TypeError, match="config of AdamRule is a SGDConfig, expected a AdamConfig"):
        AdamRule(SGDRule().config)
