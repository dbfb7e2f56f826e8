"""Families of edits: text, refusals, what tells one edit from another, draws and grids."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from editors import Edit, EditFamily, get_edit
from editors.edit_family import VariedEdit, find_family

FAMILY = EditFamily.read("dilate, blur(sigma=0.5..2), median(size=3..7), sharpen(amount=1..3, sigma=2)")


@pytest.mark.parametrize(
    ("text", "written", "width"),
    [
        ("dilate,invert", "dilate, invert", 2),
        ("blur(sigma=0.5..2)", "blur(sigma=0.5..2)", 2),
        (" blur( sigma = .5..2.0 ) ,  invert ", "blur(sigma=0.5..2), invert", 3),
        ("brightness(amount=-0.3..0.3), erode(size=5)", "brightness(amount=-0.3..0.3), erode(size=5)", 3),
        ("sharpen(sigma=1..2, amount=2)", "sharpen(amount=2, sigma=1..2)", 2),
        ("translate(right=-2..2, down=-1..1)", "translate(right=-2..2, down=-1..1)", 3),
        ("flip, flip(direction=vertical)", "flip, flip(direction=vertical)", 2),
        ("blur(sigma=0.5..1), blur(sigma=1.5..2)", "blur(sigma=0.5..1), blur(sigma=1.5..2)", 4),
    ],
)
def test_a_family_writes_itself_and_is_read_again(text: str, written: str, width: int) -> None:
    family = find_family(text)
    assert family is not None
    assert (str(family), family.width) == (written, width)
    assert EditFamily.read(written) == family


@pytest.mark.parametrize(
    "text", ["dilate", "blur(sigma=2)", "translate(right=3, down=1)", "mine", "<lambda>"]
)
def test_one_edit_is_no_family(text: str) -> None:
    assert find_family(text) is None


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("blur, dilat", "no edit 'dilat'; did you mean 'dilate'"),
        ("blur(sigma=1..2), mine", "no edit 'mine'; did you mean 'invert'"),
        ("dilate,", "has an empty edit, expected edits with one comma between two"),
        (", dilate", "has an empty edit"),
        ("blur(sigma=2..0.5)", r"goes from 2 to 0\.5, expected the smaller number first"),
        ("blur(sigma=2..2)", "goes from 2 to 2"),
        ("blur(sigma=0..2)", r"sigma of the edit 'blur' is 0\.0, expected a number from 0\.1 to 20"),
        ("blur(sigma=1..nan)", "sigma of the edit 'blur' is nan"),
        ("blur(sigma=..)", "sigma of the edit 'blur' is '', expected a number"),
        ("blur(sigma=1..2..3)", r"is '2\.\.3', expected a number"),
        ("blur(width=1..2)", "no parameter 'width'. It has sigma"),
        ("median(size=3..6)", "size of the edit 'median' is 6, expected an odd whole number"),
        ("flip(direction=horizontal..vertical)", "words have no range; write an edit for each"),
        ("blur(sigma=1..2, invert", "cannot be read"),
        ("dilate, invert, dilate(size=3)", "'dilate' and 'dilate' of a family have edits in common"),
        (
            "blur(sigma=0.5..1), blur",
            r"'blur\(sigma=0\.5\.\.1\)' and 'blur' of a family have edits in common",
        ),
        ("translate(right=0..2), translate(down=0..2)", "have edits in common"),
    ],
)
def test_families_that_are_refused(text: str, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        EditFamily.read(text)


def test_a_family_of_nothing() -> None:
    with pytest.raises(ValueError, match="the family has no edits, expected at least one"):
        EditFamily(())


@pytest.mark.parametrize(
    ("edit", "condition"),
    [
        ("dilate", [1, 0, 0, 0, 0, 0, 0]),
        ("blur(sigma=0.5)", [0, 1, 0, 0, -1, 0, 0]),
        ("blur(sigma=1.25)", [0, 1, 0, 0, 0, 0, 0]),
        (get_edit("blur", sigma=2), [0, 1, 0, 0, 1, 0, 0]),
        ("median", [0, 0, 1, 0, 0, -1, 0]),
        ("median(size=5)", [0, 0, 1, 0, 0, 0, 0]),
        ("sharpen(sigma=2, amount=3)", [0, 0, 0, 1, 0, 0, 1]),
    ],
)
def test_what_tells_one_edit_from_another(edit: str | Edit, condition: list[float]) -> None:
    assert FAMILY.condition(edit) == pytest.approx(condition)


@pytest.mark.parametrize(
    ("edit", "match"),
    [
        (
            "dilat",
            r"'dilat' is unknown, .*; did you mean 'dilate'\? It learned dilate, blur\(sigma=0\.5\.\.2\)",
        ),
        ("invert", r"'invert' is no edit that the editor learned\. It learned dilate, "),
        (
            "blur(sigma=2.1)",
            r"sigma of the edit 'blur\(sigma=2\.1\)' is 2\.1, expected 0\.5 to 2; the editor learned",
        ),
        ("dilate(size=5)", "size of the edit .* is 5, expected 3"),
        ("sharpen(amount=2)", r"sigma of the edit 'sharpen\(amount=2\)' is 1\.0, expected 2"),
        ("median(size=4)", "expected an odd whole number"),
        ("blur(sigma=0.5..2)", r"is '0\.5\.\.2', expected a number"),
    ],
)
def test_edits_outside_of_the_family(edit: str, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        FAMILY.condition(edit)


def test_conditions_of_several_inrs() -> None:
    assert torch.equal(FAMILY.conditions("dilate", 2), FAMILY.conditions(["dilate", "dilate"], 2))
    assert FAMILY.conditions([], 0).shape == FAMILY.conditions("dilate", 0).shape == (0, 7)
    for edit, match in (
        (None, r"edit is missing: .* as in edit='dilate'"),
        (["dilate"], "1 edits for 2 INRs"),
    ):
        with pytest.raises(ValueError, match=match):
            FAMILY.conditions(edit, 2)


def test_draws_take_turns_and_stay_in_the_family() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = [FAMILY.draw(9, generator) for _ in range(20)]
    numbers = [[FAMILY.find(edit)[0] for edit in edits] for edits in drawn]
    assert all((later - now) % 4 == 1 for turn in numbers for now, later in pairwise(turn))
    assert {turn[0] for turn in numbers} == {0, 1, 2, 3}
    every = [edit for edits in drawn for edit in edits]
    assert {edit.values["size"] for edit in every if edit.name == "median"} == {3, 5, 7}
    sigmas = [edit.values["sigma"] for edit in every if edit.name == "blur"]
    assert len(set(sigmas)) == len(sigmas) > 30
    again = torch.Generator().manual_seed(0)
    assert [FAMILY.draw(9, again) for _ in range(20)] == drawn


def test_a_grid_reaches_the_ends() -> None:
    grid = FAMILY.grid()
    assert [len(edits) for edits in grid] == [1, 5, 3, 5]
    assert [edit.values["sigma"] for edit in grid[1]] == [0.5, 0.875, 1.25, 1.625, 2.0]
    assert [edit.values["size"] for edit in grid[2]] == [3, 5, 7]
    both = VariedEdit.read("translate(right=-2..2, down=0..4)").grid()
    for name, low in (("right", -2), ("down", 0)):
        assert sorted(edit.values[name] for edit in both) == [low + step for step in range(5)]
    assert both == VariedEdit.read("translate(right=-2..2, down=0..4)").grid()
    examples = [str(edit) for edit in FAMILY.examples]
    assert examples == ["dilate", "blur(sigma=1.625)", "median(size=7)", "sharpen(amount=2.5, sigma=2)"]
