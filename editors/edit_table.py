"""The table of named edits: for each what it does, its parameters, whether it is local, and what undoes it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from editors import image_operations as op
from editors.contrast import equalize_contrast
from editors.inpainting import inpaint
from editors.named_edit import Edit, Inverse, Parameter

__all__ = ["EDITS"]


def _size(most: int = 31) -> Parameter:
    """Side of a square window."""
    return Parameter("size", "side of the window in pixels", 3, 1, most, odd=True)


def _fraction(name: str, doc: str, default: float, low: float = 0.0) -> Parameter:
    """A number up to 1."""
    return Parameter(name, doc, default, low, 1.0)


_SIGMA = Parameter("sigma", "standard deviation in pixels", 1.0, 0.1, 20.0)

_TONES = (
    Edit(
        "brightness",
        "adds an amount to each value",
        op.brighten,
        parameters=(_fraction("amount", "what is added", 0.2, low=-1.0),),
        undone_by=Inverse("amount = -amount, where no value was clipped", lambda amount: {"amount": -amount}),
    ),
    Edit(
        "contrast",
        "contrast-limited adaptive histogram equalisation of the lightness",
        equalize_contrast,
        local=False,
        parameters=(
            Parameter("tiles", "tiles along each side", 3, 1, 16),
            Parameter(
                "clip_limit", "largest count of a level in a tile, relative to the mean", 1.0, 0.0, 256.0
            ),
        ),
    ),
    Edit(
        "gamma",
        "each value to a power; above 1 darkens",
        op.gamma,
        parameters=(Parameter("exponent", "the power", 2.0, 0.1, 10.0),),
        undone_by=Inverse("exponent = 1 / exponent", lambda exponent: {"exponent": 1 / exponent}),
    ),
    Edit("invert", "negative: 1 minus the value", op.invert, undone_by=Inverse("itself", dict)),
    Edit(
        "threshold",
        "1 where the value is at least a level, 0 elsewhere",
        op.threshold,
        parameters=(_fraction("level", "the level", 0.5),),
    ),
)

_MORPHOLOGY = (
    Edit(
        "dilate",
        "brightest of the pixels in a square window; outside the border counts as absent",
        op.dilate,
        parameters=(_size(),),
    ),
    Edit(
        "erode",
        "darkest of the pixels in a square window; outside the border counts as absent",
        op.erode,
        parameters=(_size(),),
    ),
    Edit("open", "erode, then dilate: small bright spots go", op.open_, parameters=(_size(),)),
    Edit("close", "dilate, then erode: small dark spots go", op.close, parameters=(_size(),)),
    Edit("gradient", "morphological gradient: dilate minus erode", op.gradient, parameters=(_size(),)),
)

_FILTERS = (
    Edit("blur", "Gaussian blur, borders repeated", op.blur, parameters=(_SIGMA,)),
    Edit(
        "sharpen",
        "adds the difference to the blurred image (unsharp mask)",
        op.sharpen,
        parameters=(Parameter("amount", "factor of the difference", 1.0, 0.0, 10.0), _SIGMA),
    ),
    Edit(
        "median",
        "median in a square window, borders repeated: specks go",
        op.median,
        parameters=(_size(most=11),),
    ),
    Edit(
        "edges",
        "edge map: length of the Sobel gradient, borders repeated",
        op.edges,
        parameters=(Parameter("gain", "value at a straight step from 0 to 1", 1.0, 0.1, 10.0),),
    ),
)

_PLACES = (
    Edit(
        "flip",
        "mirror image",
        op.flip,
        local=False,
        parameters=(
            Parameter(
                "direction",
                "left to right or top to bottom",
                "horizontal",
                choices=("horizontal", "vertical"),
            ),
        ),
        undone_by=Inverse("itself", lambda direction: {}),
    ),
    Edit(
        "rotate",
        "rotation counter-clockwise about the centre, black outside",
        op.rotate,
        local=False,
        parameters=(Parameter("angle", "degrees", 30.0, -360.0, 360.0),),
        undone_by=Inverse(
            "angle = -angle, up to interpolation; corners that left the image stay black",
            lambda angle: {"angle": -angle},
        ),
    ),
    Edit(
        "translate",
        "shift, black where it came from outside",
        op.translate,
        local=False,
        parameters=(
            Parameter("right", "pixels to the right", 2.0, -1000.0, 1000.0),
            Parameter("down", "pixels down", 1.0, -1000.0, 1000.0),
        ),
        undone_by=Inverse(
            "right = -right, down = -down, up to interpolation; what left the image stays black",
            lambda right, down: {"right": -right, "down": -down},
        ),
    ),
    Edit(
        "zoom",
        "enlargement about the centre, black outside",
        op.zoom,
        local=False,
        parameters=(Parameter("factor", "enlargement; below 1 reduces", 1.5, 0.1, 10.0),),
    ),
    Edit(
        "inpaint",
        "fills a rectangle from the pixels around it, each the mean of its neighbours",
        inpaint,
        local=False,
        parameters=tuple(
            _fraction(name, f"{side} in fractions of the image", default)
            for name, side, default in (
                ("top", "upper border", 0.35),
                ("left", "left border", 0.35),
                ("height", "height", 0.3),
                ("width", "width", 0.3),
            )
        ),
    ),
)

_STYLES = (
    Edit(
        "pixelate",
        "mean of each square block",
        op.pixelate,
        local=False,
        parameters=(Parameter("size", "side of a block in pixels", 4, 1, 1000),),
    ),
    Edit(
        "posterize",
        "rounds values to a few levels",
        op.posterize,
        parameters=(Parameter("levels", "number of levels", 4, 2, 256),),
    ),
    Edit(
        "saturate",
        "stronger colours; 0 makes gray",
        op.saturate,
        parameters=(Parameter("factor", "factor of the difference to gray", 2.0, 0.0, 10.0),),
        color_only=True,
    ),
    Edit(
        "sepia",
        "brown tone of old photographs",
        op.sepia,
        parameters=(_fraction("amount", "share of the tone in the mixture", 1.0),),
        color_only=True,
    ),
    Edit(
        "solarize",
        "negative of the values from a level on",
        op.solarize,
        parameters=(_fraction("level", "the level", 0.5),),
    ),
    Edit(
        "vignette",
        "darkens towards the corners, with the square of the distance to the centre",
        op.vignette,
        local=False,
        parameters=(_fraction("amount", "darkening at the corners", 0.7),),
    ),
)

EDITS: Mapping[str, Edit] = MappingProxyType(
    {edit.name: edit for edit in (*_TONES, *_MORPHOLOGY, *_FILTERS, *_PLACES, *_STYLES)}
)
"""The named edits, with the defaults of their parameters."""
