"""Pictures are read as they are meant to be seen, and written whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nfn_opt.data import read_image, write_animation, write_image
from nfn_opt.data.pictures import encode_image, picture_notes, picture_size

GRAY = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
COLOUR = np.random.default_rng(0).integers(0, 256, (3, 4, 3), dtype=np.uint8)
ALPHA = np.array([[0, 255, 128, 64]] * 3, dtype=np.uint8)


def over_white(pixels: np.ndarray) -> np.ndarray:
    alpha = ALPHA[..., None] / 255
    return pixels / 255 * alpha + 1 - alpha


def picture(mode: str) -> Image.Image:
    rgb = Image.fromarray(COLOUR)
    if mode == "RGBA":
        rgb.putalpha(Image.fromarray(ALPHA))
        return rgb
    if mode == "LA":
        gray = Image.fromarray(GRAY)
        gray.putalpha(Image.fromarray(ALPHA))
        return gray
    if mode == "I;16":
        return Image.fromarray(GRAY.astype(np.uint16) * 257)
    return {"L": Image.fromarray(GRAY), "RGB": rgb, "1": Image.fromarray(GRAY > 90), "P": rgb.convert("P")}[
        mode
    ]


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("L", GRAY[..., None] / 255),
        ("RGB", COLOUR / 255),
        ("1", (GRAY > 90)[..., None]),
        ("I;16", GRAY[..., None] / 255),
        ("RGBA", over_white(COLOUR)),
        ("LA", over_white(GRAY[..., None])),
        ("P", np.asarray(Image.fromarray(COLOUR).convert("P").convert("RGB")) / 255),
    ],
)
def test_modes(tmp_path: Path, mode: str, expected: np.ndarray) -> None:
    picture(mode).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert image.dtype == torch.float32
    torch.testing.assert_close(
        image, torch.tensor(expected, dtype=torch.float32), atol=0.5 / 255 + 1e-6, rtol=0
    )


def test_transparent_palette(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1]], dtype=np.uint8), mode=None).convert("P")
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.save(tmp_path / "a.png", transparency=0)
    torch.testing.assert_close(read_image(tmp_path / "a.png"), torch.tensor([[[1.0, 1, 1], [0, 0, 1]]]))


def test_sixteen_bits_are_kept(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 1, 65535]], dtype=np.uint16)).save(tmp_path / "a.png")
    torch.testing.assert_close(read_image(tmp_path / "a.png")[0, :, 0], torch.tensor([0, 1 / 65535, 1]))


def test_exif_orientation(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by 90 degrees
    Image.fromarray(COLOUR).save(tmp_path / "a.png", exif=exif)
    expected = torch.tensor(np.rot90(COLOUR, -1).copy() / 255, dtype=torch.float32)
    torch.testing.assert_close(read_image(tmp_path / "a.png"), expected)


def test_jpeg_and_channels(tmp_path: Path) -> None:
    flat = np.full((16, 16, 3), (200, 100, 50), dtype=np.uint8)
    Image.fromarray(flat).save(tmp_path / "a.jpg", quality=95)
    image = read_image(tmp_path / "a.jpg")
    torch.testing.assert_close(image[0, 0], torch.tensor([200.0, 100, 50]) / 255, atol=0.02, rtol=0)
    gray = read_image(tmp_path / "a.jpg", channels=1)
    assert gray[0, 0].item() == pytest.approx((0.299 * 200 + 0.587 * 100 + 0.114 * 50) / 255, abs=0.02)
    Image.fromarray(GRAY).save(tmp_path / "gray.png")
    assert read_image(tmp_path / "gray.png", channels=3).shape == (3, 4, 3)
    with pytest.raises(ValueError, match="channels must be 1"):
        read_image(tmp_path / "a.jpg", channels=2)


def test_missing_and_unreadable(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no picture .*nothing\.png"):
        read_image(tmp_path / "nothing.png")
    with pytest.raises(IsADirectoryError, match="is a folder, expected a picture"):
        read_image(tmp_path)
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(ValueError, match=r"cannot read .*text\.png"):
        read_image(tmp_path / "text.png")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)).save(
        tmp_path / "a.png"
    )
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"cannot read .*a\.png.*save it again"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("channels", [1, 3])
def test_written_pictures_are_read_back(tmp_path: Path, channels: int, generator: torch.Generator) -> None:
    image = torch.rand(5, 6, channels, generator=generator) * 1.2 - 0.1
    path = write_image(tmp_path / "new" / "a.png", image)
    torch.testing.assert_close(read_image(path), image.clamp(0, 1), atol=0.5 / 255 + 1e-6, rtol=0)


@pytest.mark.parametrize(
    ("name", "image", "match"),
    [
        ("a.png", torch.zeros(4, 4), r"shape \(H, W, C\)"),
        ("a.png", torch.zeros(4, 4, 4), "C = 1 or 3"),
        ("a.png", torch.full((4, 4, 1), torch.nan), "finite"),
        ("a.txt", torch.zeros(4, 4, 1), "does not end like a picture"),
    ],
)
def test_what_cannot_be_written(tmp_path: Path, name: str, image: torch.Tensor, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        write_image(tmp_path / name, image)
    assert list(tmp_path.iterdir()) == []


def test_interrupted_writing_keeps_the_old_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_image(tmp_path / "a.png", torch.zeros(4, 4, 1))
    before = path.read_bytes()

    def interrupted(self: Image.Image, file: Path, format: str) -> None:  # noqa: A002
        Path(file).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_image(path, torch.ones(4, 4, 1))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_the_size_without_reading(tmp_path: Path, orientation: int, monkeypatch: pytest.MonkeyPatch) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(COLOUR).save(tmp_path / "a.png", exif=exif)
    assert picture_size(tmp_path / "a.png") == read_image(tmp_path / "a.png").shape[:2]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert sorted(picture_size(tmp_path / "a.png")) == [3, 4]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1)
    with pytest.raises(ValueError, match="cannot read"):
        picture_size(tmp_path / "a.png")
    with pytest.raises(FileNotFoundError, match="no picture"):
        picture_size(tmp_path / "b.png")


def test_what_is_not_read_is_noted(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    for mode, count in (("L", 0), ("RGBA", 1), ("LA", 1), ("P", 0)):
        picture(mode).save(path)
        assert len(picture_notes(path)) == count
    picture("RGB").convert("RGBA").save(path)  # opaque
    assert picture_notes(path) == []
    write_animation(tmp_path / "a.gif", [torch.zeros(2, 2, 1), torch.ones(2, 2, 1)])
    assert picture_notes(tmp_path / "a.gif") == ["it has 2 frames, of which the first is read"]


@pytest.mark.parametrize("channels", [1, 3])
def test_an_animation_runs_forth_and_back(tmp_path: Path, channels: int) -> None:
    frames = [torch.full((4, 5, channels), level) for level in (0.0, 0.4, 1.0)]
    path = write_animation(tmp_path / "new" / "a.gif", frames, frame_ms=50, rest_ms=300)
    seen = []
    with Image.open(path) as animation:
        assert animation.info["loop"] == 0
        for number in range(getattr(animation, "n_frames", 1)):
            animation.seek(number)
            seen.append((animation.convert("L").getpixel((2, 2)), animation.info["duration"]))
    assert [duration for _, duration in seen] == [300, 50, 300, 50]
    levels = [int(level) for level, _ in seen if isinstance(level, int)]
    assert levels[0] == 0
    assert levels[2] == 255
    assert levels[1] == levels[3]
    if channels == 1:
        assert levels[1] == 102


@pytest.mark.parametrize(
    ("name", "frames", "match"),
    [
        ("a.png", [torch.zeros(2, 2, 1)], "let it end in .gif"),
        ("a.gif", [], "at least one"),
        ("a.gif", [torch.zeros(2, 2, 1), torch.zeros(2, 3, 1)], "pictures of one shape"),
        ("a.gif", [torch.full((2, 2, 1), torch.nan)], "finite"),
    ],
)
def test_what_is_no_animation(tmp_path: Path, name: str, frames: list[torch.Tensor], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        write_animation(tmp_path / name, frames)
    assert list(tmp_path.iterdir()) == []


def test_the_bytes_of_a_picture(tmp_path: Path) -> None:
    image = torch.tensor(COLOUR / 255, dtype=torch.float32)
    (tmp_path / "a.png").write_bytes(encode_image(image))
    assert torch.equal(read_image(tmp_path / "a.png"), image)
    assert encode_image(image, "JPEG", quality=50)[:2] == b"\xff\xd8"
