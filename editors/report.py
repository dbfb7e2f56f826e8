"""A report of the edit of one picture: one HTML file that needs nothing else, not even a network."""

from __future__ import annotations

import base64
import html
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from editors.inr_set import InrSet
from editors.picture_edit import OneEdit, PictureEdit, check_editors, edit_tiles, strength_sweep
from editors.tiling import TiledPicture
from nfn_opt.artifacts import atomic_write
from nfn_opt.data.pictures import encode_image

__all__ = ["weight_changes", "write_report"]

FRAMES = 11
"""Strengths at which the picture is rendered, evenly from 0 to 1."""

LONGER_SIDE = 512
"""Smaller pictures are rendered larger, by a whole factor, so that their longer side comes close to it."""

LARGEST_FACTOR = 16
"""The largest such factor."""

LOSSLESS_PIXELS = 65_536
"""Larger pictures are stored as JPEG."""

COLOURS = matplotlib.colormaps["magma"]
"""Colours of errors and changes."""

TIMES = "\N{MULTIPLICATION SIGN}"

CHART = (420, 170, 52, 12, 28)
"""Size of the chart of the error, and its margins left, at the other sides, and below, in its own units."""


def write_report(
    path: str | os.PathLike[str],
    done: PictureEdit,
    editors: OneEdit | Sequence[OneEdit],
    *,
    name: str,
    seconds: float,
    size: tuple[int, int] | None = None,
) -> Path:
    """Write the report of an edit: the picture at all strengths, errors, and what changed in the weights.

    Args:
        path: HTML file to write, atomically.
        done: The edit, at any strength; the report shows all strengths.
        editors: The editors that made it.
        name: Name of the picture.
        seconds: Time that the edit took.
        size: (height, width) at which the picture is shown; chosen by the size of the picture if not given.

    Returns:
        The path written.

    Raises:
        ValueError: If the editors do not fit the picture's INRs.
        ArtifactError: If `path` is a folder.
    """
    chain = check_editors(editors)
    whole = done.after if done.strength == 1.0 else edit_tiles(done.before, chain)
    strengths = [number / (FRAMES - 1) for number in range(FRAMES)]
    sweep = strength_sweep(done.before, chain, strengths, whole=whole)
    size = size or _shown_size(done.before.shape)
    frames, errors = [], []
    for picture in sweep:
        frames.append(_data_uri(picture.render(size)))
        if done.exact is not None:
            errors.append((picture.render() - done.exact).square().mean().item())
    with atomic_write(path) as temporary:
        temporary.write_text(_page(done, whole, chain, name, seconds, size, frames, errors), encoding="utf-8")
    return Path(path)


def _shown_size(shape: Sequence[int]) -> tuple[int, int]:
    """(height, width) at which a picture is shown."""
    factor = min(max(round(LONGER_SIDE / max(shape[:2])), 1), LARGEST_FACTOR)
    return shape[0] * factor, shape[1] * factor


def _page(
    done: PictureEdit,
    whole: TiledPicture,
    chain: Sequence[OneEdit],
    name: str,
    seconds: float,
    size: tuple[int, int],
    frames: list[str],
    errors: list[float],
) -> str:
    """The filled template."""
    edit = ", then ".join(editor.config.edit for editor in chain)
    height, width, channels = done.before.shape
    tile, siren = done.before.inrs.image_size, done.before.inrs.config
    references = {"original": done.original, "INRs unedited": done.reconstructed}
    if done.exact is not None:
        references["exact edit"] = done.exact
    shown = [
        {"name": label, "source": _data_uri(_enlarged(picture, size))}
        for label, picture in references.items()
    ]
    chart = _chart_points(errors, _top(errors, done)) if done.exact is not None else []
    data = {"frames": frames, "references": shown, "chart": chart}
    architecture, edited = ("-".join(map(str, each.layer_sizes)) for each in (siren, whole.inrs.config))
    kind = "gray" if siren.out_channels == 1 else "colour"
    many = f"{done.tiles:,} {kind} INR{'s' if done.tiles > 1 else ''}"
    escaped = {
        "title": f"{edit}: {name}",
        "name": name,
        "edit": edit,
        "about": (
            f"{width} {TIMES} {height} pixels, edited through the weights of {many} "
            f"({architecture}), one for each tile of {tile[1]} {TIMES} {tile[0]} pixels"
            f"{' and channel' if channels != siren.out_channels else ''}. The picture itself is never edited."
        ),
        "alt": f"Left of the divider the picture to compare with, right of it {name} after the edit {edit}",
        "frames_note": (
            f"The edited weights at {FRAMES} strengths, rendered at {size[1]} {TIMES} {size[0]} pixels; between two of "
            "them the picture fades. Arrow keys move the slider and the divider."
        ),
        "weights_note": (
            f"At strength 1, over {many}: the root mean square of the change over that of the weights. "
            "Hidden neurons of an INR have no order of their own; here they are sorted, in each INR alike for all "
            "its tensors, by the change of the weights that enter them, the most changed one first."
        ),
        "footer": (
            f"{architecture} SIREN{'' if edited == architecture else f' ({edited} edited)'}, "
            f"omega_0 = {siren.omega_0:g}, overlap of tiles {done.before.overlap} pixels. "
            "Errors are mean squared, for pixel values in [0, 1]."
        ),
        "width": str(size[1]),
        "height": str(size[0]),
        "ratio": f"{size[1] / size[0]:.6f}",
        "still": frames[-1],
        "colours": ", ".join(matplotlib.colors.to_hex(COLOURS(step / 8)) for step in range(9)),
    }
    filled = {key: html.escape(value) for key, value in escaped.items()}
    filled["numbers"] = _numbers(done, seconds, errors)
    filled["error_sections"] = _error_sections(done, whole, errors, chart) if done.exact is not None else ""
    unedited = edit_tiles(done.before, chain, 0.0)  # of the architecture of the edited ones
    filled["weights"] = "\n".join(_weight_rows(unedited.inrs, whole.inrs))
    # "<" would let a name end the script.
    filled["data"] = json.dumps(data).replace("<", "\\u003c")
    template = files("editors").joinpath("report.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda match: filled[match[1]], template)


def _numbers(done: PictureEdit, seconds: float, errors: Sequence[float]) -> str:
    """The numbers of the edit as entries of a description list."""
    entries = {
        "Fit of the INRs": "unknown" if math.isnan(done.psnr) else f"{done.psnr:.1f} <small>dB PSNR</small>"
    }
    entries["INRs"] = f"{done.tiles:,}"
    if errors and done.no_edit_error is not None:
        entries["Error to the exact edit"] = f"{errors[-1]:.5f}"
        entries["The same without edit"] = f"{done.no_edit_error:.5f}"
        if done.no_edit_error > 0:
            entries["Error that is left"] = f"{100 * errors[-1] / done.no_edit_error:.0f} <small>%</small>"
    entries["Time"] = f"{seconds:.1f} <small>s</small>"
    return "\n".join(f"<div><dt>{label}</dt><dd>{value}</dd></div>" for label, value in entries.items())


def _error_sections(
    done: PictureEdit, whole: TiledPicture, errors: Sequence[float], chart: Sequence[tuple[float, float]]
) -> str:
    """Maps of the error, and its chart over the strength."""
    assert done.exact is not None
    maps = {
        "without edit": (done.original - done.exact).abs().mean(-1),
        "edited, strength 1": (whole.render() - done.exact).abs().mean(-1),
    }
    top = max(float(np.quantile(torch.stack(list(maps.values())).numpy(), 0.995)), 1e-6)
    small = " class=pixels" if max(done.before.shape[:2]) <= 128 else ""
    figures = "\n".join(
        f'<figure><img{small} src="{_data_uri(_coloured(error / top))}" alt="Map of the error {label}">'
        f"<figcaption>{label[0].upper()}{label[1:]}</figcaption></figure>"
        for label, error in maps.items()
    )
    return f"""<section>
<h2>Where it differs from the exact edit</h2>
<p class="note">Absolute difference of pixel values in [0, 1], mean over the channels.</p>
<div class="maps">
{figures}
</div>
<div class="legend num"><span>0</span><i></i><span>{top:.3f} and more</span></div>
</section>

<section>
<h2>Error over strength</h2>
<p class="note">To the exact edit, which is that of strength 1.</p>
{_chart(chart, done, errors)}
</section>
"""


def _top(errors: Sequence[float], done: PictureEdit) -> float:
    """The upper end of the chart."""
    return max(*errors, done.no_edit_error or 0.0, 1e-12) * 1.08


def _chart_points(errors: Sequence[float], top: float) -> list[tuple[float, float]]:
    """Errors as points of the chart, evenly from left to right."""
    width, height, left, margin, below = CHART
    across, up = width - left - margin, height - margin - below
    return [
        (round(left + across * i / (len(errors) - 1), 1), round(height - below - up * error / top, 1))
        for i, error in enumerate(errors)
    ]


def _chart(points: Sequence[tuple[float, float]], done: PictureEdit, errors: Sequence[float]) -> str:
    """The chart of the error over the strength as SVG."""
    width, height, left, margin, below = CHART
    bottom, right = height - below, width - margin
    none = done.no_edit_error or 0.0
    without = _chart_points([none] * 2, _top(errors, done))[0][1]
    line = " ".join(f"{x},{y}" for x, y in points)
    ticks = "".join(
        f'<text x="{points[i][0]}" y="{bottom + 20}" text-anchor="middle">{i / (len(points) - 1):g}</text>'
        for i in (0, len(points) // 2, len(points) - 1)
    )
    heights = [(without, f"{none:.4f}"), (min(y for _, y in points), f"{max(errors):.4f}"), (bottom, "0")]
    labels = "".join(
        f'<text x="{left - 8}" y="{y + 4}" text-anchor="end">{label}</text>' for y, label in _apart(heights)
    )
    return f"""<svg class="chart num" viewBox="0 0 {width} {height}" role="img" aria-label="Error over strength">
<line class="axis" x1="{left}" y1="{bottom}" x2="{right}" y2="{bottom}"/>
<line class="without" x1="{left}" y1="{without}" x2="{right}" y2="{without}"/>
<text x="{right}" y="{without + 16}" text-anchor="end">without edit</text>
{labels}
{ticks}
<polyline class="error" points="{line}"/>
<circle id="dot" r="6" cx="{points[-1][0]}" cy="{points[-1][1]}"/>
</svg>"""


def _apart(labels: Sequence[tuple[float, str]], distance: float = 16) -> list[tuple[float, str]]:
    """The labels, each with its height, without those that an earlier one would touch."""
    shown: list[tuple[float, str]] = []
    for height, label in labels:
        if all(abs(height - other) >= distance for other, _ in shown):
            shown.append((height, label))
    return shown


def weight_changes(before: InrSet, after: InrSet) -> Mapping[str, tuple[float, Tensor]]:
    """How much each parameter tensor changed.

    The hidden neurons of each INR are sorted by how much the weights that enter them changed, most first, in all
    tensors alike; without an order, the mean over INRs would be the same for all neurons.

    Args:
        before: INRs before the edit.
        after: The same INRs after it.

    Returns:
        For each parameter the root mean square of the change over that of the weights, and the mean absolute change
        of each weight over the INRs, of the parameter's shape.

    Example:
        >>> from editors import SirenConfig, fit
        >>> inrs = fit(torch.rand(2, 4, 4, 1, generator=torch.Generator().manual_seed(0)), steps=1)
        >>> double = inrs.with_params({name: 2 * value for name, value in inrs.params.items()})
        >>> {round(share, 5) for share, _ in weight_changes(inrs, double).values()}
        {1.0}
    """
    changes = {name: (after.params[name] - value).abs() for name, value in before.params.items()}
    columns: Tensor | None = None
    result = {}
    for layer in range(before.config.hidden_layers + 1):
        weight, bias = changes[f"layers.{layer}.weight"], changes[f"layers.{layer}.bias"]
        if columns is not None:
            weight = weight.gather(2, columns[:, None, :].expand_as(weight))
        columns = None
        if layer < before.config.hidden_layers:
            columns = (weight.square().sum(2) + bias.square()).argsort(1, descending=True)
            weight = weight.gather(1, columns[..., None].expand_as(weight))
            bias = bias.gather(1, columns)
        for name, change in ((f"layers.{layer}.weight", weight), (f"layers.{layer}.bias", bias)):
            size = before.params[name].square().mean().sqrt().clamp_min(1e-12)
            result[name] = ((change.square().mean().sqrt() / size).item(), change.mean(0))
    return result


def _weight_rows(before: InrSet, after: InrSet) -> list[str]:
    """Rows of the table of the parameters."""
    changes = weight_changes(before, after)
    largest = max(max(share for share, _ in changes.values()), 1e-12)
    rows = []
    for name, (share, change) in changes.items():
        shape = f" {TIMES} ".join(map(str, change.shape))
        line = f'<i style="width: {100 * share / largest:.1f}%"></i>'
        bar = f'<div class="bar num"><span>{100 * share:.1f} %</span>{line}</div>'
        cells = f"<code>{html.escape(name)}</code><small>{shape}</small>", bar, _heat_map(name, change)
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return rows


def _heat_map(name: str, change: Tensor) -> str:
    """The mean change of each weight of one parameter as a picture, and the largest as a number."""
    picture = change[None] if change.ndim == 1 else change
    if picture.shape[0] > picture.shape[1]:
        picture = picture.T  # lying tensors fit into a table
    top = float(picture.max())
    text = f'<small class="num">up to {top:.2g}</small>'
    if picture.numel() == 1:
        return text
    # Each weight is a cell of 5 x 5 pixels; those of vectors are higher, so that they can be seen.
    height = max(5 * picture.shape[0], 14)
    source = _data_uri(_coloured(picture / max(top, 1e-12)))
    return (
        f'<img class="heat" width="{5 * picture.shape[1]}" height="{height}" src="{source}" '
        f'alt="Mean change of each weight of {html.escape(name)}">{text}'
    )


def _coloured(values: Tensor) -> Tensor:
    """Values (H, W), limited to [0, 1], as colours (H, W, 3)."""
    return torch.from_numpy(COLOURS(values.clamp(0, 1).numpy())[..., :3].copy()).float()


def _enlarged(picture: Tensor, size: tuple[int, int]) -> Tensor:
    """Pixels interpolated to the size at which INRs are shown, corner on corner."""
    if tuple(picture.shape[:2]) == size:
        return picture
    planes = picture.movedim(-1, 0)[None]
    return F.interpolate(planes, size, mode="bilinear", align_corners=True)[0].movedim(0, -1)


def _data_uri(picture: Tensor) -> str:
    """A picture as part of a page: without loss where it is small."""
    if picture.shape[0] * picture.shape[1] <= LOSSLESS_PIXELS:
        form, content = "png", encode_image(picture, "PNG", optimize=True)
    else:
        form, content = "jpeg", encode_image(picture, "JPEG", quality=92, subsampling=0)
    return f"data:image/{form};base64,{base64.b64encode(content).decode('ascii')}"
