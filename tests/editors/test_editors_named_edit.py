"""Parameters of edits, their text, and the edits that undo them."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from editors import EDITS, Edit, EditorConfig, SirenConfig, find_edit, get_edit
from editors.named_edit import Parameter, Value

TEXTS = [  # as given, as the edit writes itself
    ("blur", "blur"),
    ("blur(sigma=2)", "blur(sigma=2)"),
    ("blur(sigma=1)", "blur"),
    ("blur( sigma = 2.50 )", "blur(sigma=2.5)"),
    ("dilate(size=5)", "dilate(size=5)"),
    ("flip(direction=vertical)", "flip(direction=vertical)"),
    ("rotate(angle=-1e1)", "rotate(angle=-10)"),
    ("rotate(angle=-0)", "rotate(angle=0)"),
    ("rotate(angle=+0.1)", "rotate(angle=0.1)"),
    ("translate(down=3,right=2)", "translate(down=3)"),
    ("translate(down=-.5, right=0.30000000000000004)", "translate(right=0.30000000000000004, down=-0.5)"),
    ("rotate(angle=0.00001)", "rotate(angle=1e-05)"),
]


def extremes(parameter: Parameter) -> tuple[Value, ...]:
    """The ends of a parameter's range, or all its words."""
    if parameter.choices:
        return parameter.choices
    return parameter.read(f"{parameter.low:g}"), parameter.read(f"{parameter.high:g}")


@pytest.mark.parametrize(("text", "canonical"), TEXTS)
def test_an_edit_reads_what_it_writes(text: str, canonical: str) -> None:
    edit = get_edit(text)
    assert str(edit) == canonical
    assert repr(edit) == f"Edit({canonical!r})"
    assert get_edit(canonical) == edit == find_edit(text)
    assert hash(get_edit(canonical)) == hash(edit)
    assert (edit == EDITS[edit.name]) == (canonical == edit.name)


@pytest.mark.parametrize("name", EDITS)
def test_the_table(name: str) -> None:
    edit = EDITS[name]
    assert edit.name == str(edit) == name
    assert len(edit.doc) > 10
    assert "\n" not in edit.doc
    assert get_edit(name) is edit
    assert copy.deepcopy(edit) == edit
    for parameter in edit.parameters:
        assert len(parameter.doc) > 2
        for value in extremes(parameter):
            changed = edit.with_parameters(**{parameter.name: value})
            assert get_edit(str(changed)) == changed
            assert type(changed.values[parameter.name]) is type(parameter.default)


@pytest.mark.parametrize("name", EDITS)
def test_edits_at_the_ends_of_their_ranges(name: str) -> None:
    images = torch.rand(1, 20, 23, 3, generator=torch.Generator().manual_seed(0))
    for parameter in EDITS[name].parameters:
        for value in extremes(parameter):
            EDITS[name].with_parameters(**{parameter.name: value})(images)


def test_numbers_of_numpy() -> None:
    assert get_edit("dilate", size=np.int64(5)) == get_edit("dilate(size=5)")
    assert get_edit("blur", sigma=np.float32(2)) == get_edit("blur", sigma=2) == get_edit("blur(sigma=2)")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("blur(2)", r"'blur\(2\)' cannot be read, expected .* write it as in 'blur\(sigma=2\)'"),
        ("blur()", "cannot be read"),
        ("blur(", "cannot be read"),
        ("blur(sigma=2", "cannot be read"),
        ("blur(sigma=2)x", "cannot be read"),
        ("blur(sigma=2))", "cannot be read"),
        ("blur(sigma=2,)", "cannot be read"),
        ("blur(sigma=2 3)", "cannot be read"),
        ("blur(sigma=1, sigma=2)", "at most once"),
        ("blur(sigmma=2)", "'blur' has no parameter 'sigmma'; did you mean 'sigma'. It has sigma"),
        ("sharpen(x=2)", r"'sharpen' has no parameter 'x'\. It has amount, sigma"),
        ("invert(x=2)", r"'invert' has no parameter 'x'\. It has none"),
        ("blur(sigma=0)", "sigma of the edit 'blur' is 0.0, expected a number from 0.1 to 20"),
        ("blur(sigma=nan)", "is nan, expected a number from"),
        ("blur(sigma=inf)", "is inf, expected a number from"),
        ("blur(sigma=wide)", "is 'wide', expected a number from"),
        ("dilate(size=4)", "size of the edit 'dilate' is 4, expected an odd whole number from 1 to 31"),
        ("dilate(size=3.0)", "is '3.0', expected an odd whole number"),
        ("posterize(levels=1)", "levels of the edit 'posterize' is 1, expected a whole number from 2 to 256"),
        ("flip(direction=up)", "is 'up', expected horizontal or vertical"),
    ],
)
def test_texts_that_are_refused(text: str, match: str) -> None:
    for function in (get_edit, find_edit):
        with pytest.raises(ValueError, match=match):
            function(text)


@pytest.mark.parametrize(
    ("edit", "values", "match"),
    [
        ("blur", {"sigma": "2"}, "sigma of the edit 'blur' is '2', expected a number"),
        ("blur", {"sigma": True}, "is True, expected a number"),
        ("blur", {"sigma": None}, "is None, expected a number"),
        ("dilate", {"size": 3.0}, "is 3.0, expected an odd whole number"),
        ("flip", {"direction": 1}, "is 1, expected horizontal or vertical"),
        (torch.square, {"size": 3}, "the edit 'square' has no parameter 'size'. It has none"),
    ],
)
def test_values_that_are_refused(edit: str, values: dict[str, Value], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        get_edit(edit, **values)


def test_settings_of_the_wrong_number() -> None:
    with pytest.raises(ValueError, match="the edit 'mine' has 2 settings, expected 1"):
        Edit("mine", "", torch.square, parameters=(Parameter("x", "", 1),), settings=(1, 2))


def test_a_users_edit_with_parameters() -> None:
    def fade(images: torch.Tensor, *, share: float) -> torch.Tensor:
        return images * (1 - share)

    edit = Edit("fade", "Darker.", fade, parameters=(Parameter("share", "of the light", 0.5, 0.0, 1.0),))
    images = torch.ones(1, 2, 2, 1)
    assert edit(images).unique().tolist() == [0.5]
    assert get_edit(edit, share=0.25)(images).unique().tolist() == [0.75]
    assert edit.inverse is None
    assert find_edit("fade") is find_edit("<lambda>") is None


def inner_blob(values: tuple[float, float] = (0.0, 1.0)) -> torch.Tensor:
    """A smooth blob of each colour that ends well before the border."""
    y, x = torch.meshgrid(*2 * (torch.linspace(-1, 1, 33, dtype=torch.float64),), indexing="ij")
    low, high = values
    blobs = [
        torch.exp(-(((x - c) ** 2 + 2 * (y + c) ** 2) / 0.05)).where(x**2 + y**2 < 0.6, 0)
        for c in (-0.2, 0, 0.2)
    ]
    return (low + (high - low) * torch.stack(blobs, -1)).unsqueeze(0)


INVERSES = [  # edit, its inverse, values of the images, largest error
    ("brightness", "brightness(amount=-0.2)", (0.0, 0.8), 1e-12),
    ("brightness(amount=-0.3)", "brightness(amount=0.3)", (0.3, 1.0), 1e-12),
    ("gamma", "gamma(exponent=0.5)", (0.0, 1.0), 1e-12),
    ("gamma(exponent=0.1)", "gamma(exponent=10)", (0.0, 1.0), 1e-12),
    ("gamma(exponent=3)", f"gamma(exponent={1 / 3})", (0.0, 1.0), 1e-12),
    ("invert", "invert", (0.0, 1.0), 1e-12),
    ("flip", "flip", (0.0, 1.0), 0.0),
    ("flip(direction=vertical)", "flip(direction=vertical)", (0.0, 1.0), 0.0),
    ("rotate", "rotate(angle=-30)", (0.0, 1.0), 0.08),
    ("rotate(angle=90)", "rotate(angle=-90)", (0.0, 1.0), 1e-12),
    ("translate(right=3, down=-2)", "translate(right=-3, down=2)", (0.0, 1.0), 1e-12),
    ("translate(right=1.5, down=0.3)", "translate(right=-1.5, down=-0.3)", (0.0, 1.0), 0.12),
]


@pytest.mark.parametrize(("text", "undoing", "values", "error"), INVERSES)
def test_the_inverse_undoes(text: str, undoing: str, values: tuple[float, float], error: float) -> None:
    images, edit = inner_blob(values), get_edit(text)
    inverse = edit.inverse
    assert inverse is not None
    assert str(inverse) == undoing
    assert inverse.inverse is not None
    edited = edit(images)
    assert (edited - images).abs().max() > 0.1
    assert (inverse(edited) - images).abs().max() <= error


def test_which_edits_have_an_inverse() -> None:
    having = {name for name, edit in EDITS.items() if edit.inverse is not None}
    assert having == {text.partition("(")[0] for text, *_ in INVERSES}


def test_an_editor_keeps_the_text_of_its_edit() -> None:
    def config(edit: str) -> EditorConfig:
        return EditorConfig(siren=SirenConfig(hidden_width=4), edit=edit, image_size=(4, 4))

    assert config("blur(sigma=2.0)").edit == "blur(sigma=2)"
    assert config("blur(sigma=1)").edit == "blur"
    assert config("my_function").edit == "my_function"
    with pytest.raises(ValueError, match="no parameter 'sigmma'"):
        config("blur(sigmma=2)")
