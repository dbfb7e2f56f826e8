from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from editors import draw_rows


def test_rows_show_their_images(tmp_path: Path) -> None:
    red = torch.tensor([1.0, 0.0, 0.0]).expand(2, 4, 4, 3)
    draw_rows(
        tmp_path / "a.png", {"gray": torch.full((2, 4, 4, 1), 0.2), "red": red, "bright": red + 5}, "A title"
    )
    picture = imread(tmp_path / "a.png")[..., :3]
    shares = {
        name: np.isclose(picture, color, atol=0.01).all(-1).mean()
        for name, color in {"gray": (0.2, 0.2, 0.2), "red": (1, 0, 0), "white": (1, 1, 1)}.items()
    }
    assert shares["gray"] > 0.02
    assert shares["red"] == pytest.approx(shares["gray"], rel=0.05)
    assert shares["white"] > 0.3  # values above 1 are shown as 1


@pytest.mark.parametrize(
    "rows", [{}, {"a": torch.rand(2, 4, 4, 1), "b": torch.rand(3, 4, 4, 1)}, {"a": torch.rand(0, 4, 4, 1)}]
)
def test_what_cannot_be_drawn_is_refused(rows: dict[str, torch.Tensor], tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"the numbers of images are .*, expected one number for all, at least 1"
    ):
        draw_rows(tmp_path / "a.png", rows, "A title")
    assert not list(tmp_path.iterdir())
