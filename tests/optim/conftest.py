"""Fixtures of the optimizer's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from nfn_opt.optim import UpdateRule, make_rule
from nfn_opt.optim.shell_fast import FastStep
from tests.optim.rule_cases import RULES


@pytest.fixture(autouse=True)
def fast_for_small_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests' models are small, and are to be updated as large ones are."""
    monkeypatch.setattr(FastStep, "least", 0)


@pytest.fixture(params=RULES, name="rule")
def make_each(request: pytest.FixtureRequest) -> UpdateRule:
    return RULES[request.param]()


@pytest.fixture
def mlp() -> UpdateRule:
    return make_rule("mlp", hidden=(4,))


@pytest.fixture
def double_scalars() -> Iterator[None]:
    """torch keeps the scalars of its optimizers in the default type; here float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)
