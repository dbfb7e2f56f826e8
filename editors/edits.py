"""Edits of images: the targets that learned edits of weights are trained to reach.

An edit is a function from images to images of the same shape, (B, H, W, C) with values in [0, 1]. The named ones are
in the table `EDITS`, with parameters; docs/edits.md lists and shows them. `get_edit` also takes any function of a
user's.

Example:
    >>> import torch
    >>> images = torch.zeros(1, 5, 5, 1)
    >>> images[0, 2, 2] = 1
    >>> int(get_edit("dilate")(images).sum()), int(get_edit("dilate(size=5)")(images).sum())
    (9, 25)
    >>> get_edit("dilat")
    Traceback (most recent call last):
    ...
    ValueError: there is no edit 'dilat'; did you mean 'dilate'? Known are blur, brightness, ...
"""

from __future__ import annotations

import re
from collections.abc import Callable

from torch import Tensor

from editors.edit_table import EDITS
from editors.named_edit import Edit, Value, closest

__all__ = ["EDITS", "Edit", "find_edit", "get_edit"]


def get_edit(edit: str | Edit | Callable[..., Tensor], **values: Value) -> Edit:
    """The edit that a text stands for, or the edit that applies a function.

    The text is a name in `EDITS`, or a name with parameters as in ``blur(sigma=2)`` and
    ``translate(right=3, down=1)``. An edit reads its own text back: ``get_edit(str(edit)) == edit`` for named edits.

    Args:
        edit: Text, an `Edit`, or a function from images (B, H, W, C) in [0, 1] to the same.
        **values: Parameters to change.

    Raises:
        ValueError: If there is no edit of that name, or no such parameter, or a value is out of range.
        TypeError: If `edit` is none of these.

    Example:
        >>> print(get_edit("translate(down=3, right=2.0)"))
        translate(down=3)
        >>> get_edit("blur(sigma=2)") == get_edit("blur", sigma=2)
        True
        >>> get_edit("blur(sigma=-1)")
        Traceback (most recent call last):
        ...
        ValueError: sigma of the edit 'blur' is -1.0, expected a number from 0.1 to 20
    """
    if isinstance(edit, str):
        found = _read(edit)
    elif isinstance(edit, Edit):
        found = edit
    elif callable(edit):
        name = getattr(edit, "__name__", type(edit).__name__)
        found = Edit(name, (edit.__doc__ or "").strip().split("\n")[0], edit)
    else:
        raise TypeError(f"edit must be a name, an Edit or a function of images, got {type(edit).__name__}")
    return found.with_parameters(**values) if values else found


def find_edit(text: str) -> Edit | None:
    """The named edit that a text stands for; None if it names another, such as a function of a user's.

    Raises:
        ValueError: If it names one but its parameters are wrong.

    Example:
        >>> find_edit("my_function") is None
        True
    """
    return _read(text) if text.partition("(")[0] in EDITS else None


def _read(text: str) -> Edit:
    """The edit of a name, or of a name with parameters."""
    edit, given = read_parts(text)
    values = {key: edit.parameter(key).read(value) for key, value in given.items()}
    return edit.with_parameters(**values) if values else edit


def read_parts(text: str) -> tuple[Edit, dict[str, str]]:
    """The edit that a text names, with its defaults, and the parameters that the text gives, as text.

    Raises:
        ValueError: If there is no edit of that name, or the parameters cannot be read.
    """
    name, parenthesis, rest = text.partition("(")
    if name not in EDITS:
        hint = closest(re.split(r"\W", name)[0], EDITS)
        raise ValueError(
            f"there is no edit {name!r}{hint} Known are {', '.join(sorted(EDITS))}; parameters are written as in "
            "'blur(sigma=2)'"
        )
    edit = EDITS[name]
    if not parenthesis:
        return edit, {}
    pairs = [
        re.fullmatch(r"\s*(\w+)\s*=\s*([\w.+-]+)\s*", part) for part in rest.removesuffix(")").split(",")
    ]
    given = {pair[1]: pair[2] for pair in pairs if pair}
    if not rest.endswith(")") or len(given) < len(pairs):
        raise ValueError(
            f"the edit {text!r} cannot be read, expected a name and, in parentheses, each parameter at most once with "
            "its value; write it as in 'blur(sigma=2)' or 'translate(right=3, down=1)'"
        )
    return edit, given
