from pathlib import Path

import pytest
import torch

from nfn_opt.weight_space import operators
from nfn_opt.weight_space.operators.elementwise import pointwise

PAGE = Path(__file__).parents[2] / "docs" / "operators.md"


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == operators.operator_page()


def test_every_rule_is_in_the_table_once() -> None:
    cells = [row.split(" | ")[-1] for row in operators.operator_table().splitlines()[2:]]
    names = [name for cell in cells for name in cell.removesuffix(" |").replace("`", "").split(", ")]
    assert sorted(names) == sorted(str(packet).removeprefix("aten.") for packet in operators.RULES)


@pytest.mark.parametrize("name", ["relu", "sigmoid", "where", "mul", "erf", "masked_fill", "leaky_relu"])
def test_operators_named_as_entry_by_entry_have_that_rule(name: str) -> None:
    assert f"`{name}`" in operators.operator_page().rsplit("\n\n", 1)[1]
    packet = getattr(torch.ops.aten, name)
    rules = {operators.find_rule(getattr(packet, overload)) for overload in packet.overloads()}
    assert pointwise in rules
