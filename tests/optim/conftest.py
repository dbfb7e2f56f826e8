"""Fixtures of the optimizer's tests."""

from __future__ import annotations

import pytest

from nfn_opt.optim import UpdateRule, make_rule
from tests.optim.rule_cases import RULES


@pytest.fixture(params=RULES, name="rule")
def make_each(request: pytest.FixtureRequest) -> UpdateRule:
    return RULES[request.param]()


@pytest.fixture
def mlp() -> UpdateRule:
    return make_rule("mlp", hidden=(4,))
