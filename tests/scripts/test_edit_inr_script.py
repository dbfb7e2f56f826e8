"""The command line that edits a picture: pictures of all kinds, and refusals that write nothing."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from editors import Editor, EditorConfig, SirenConfig
from nfn_opt.data import read_image
from nfn_opt.functionals import EquivariantConfig
from scripts.edit_inr import main

BODY = EquivariantConfig(hidden_channels=2, hidden_layers=1, fourier_frequencies=0, position_bands=1)


def save_editor(path: Path, edit: str = "dilate", channels: int = 1) -> Path:
    siren = SirenConfig(hidden_width=8, omega_0=8.0, out_channels=channels)
    config = EditorConfig(siren=siren, edit=edit, image_size=(6, 6), body=BODY)
    return Editor(config, generator=torch.Generator().manual_seed(0)).save(path)


@pytest.fixture
def editor(tmp_path: Path) -> Path:
    return save_editor(tmp_path / "editor.safetensors")


def save_picture(path: Path, mode: str = "L", size: tuple[int, int] = (9, 7)) -> Path:
    """A random picture of (width, height) pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return path


@pytest.mark.parametrize(
    ("name", "mode", "size", "channels"),
    [
        ("gray.png", "L", (9, 7), 1),
        ("colour.png", "RGB", (9, 7), 3),
        ("transparent.png", "RGBA", (9, 7), 3),
        ("dot.png", "L", (1, 1), 1),
        ("line.png", "L", (1, 8), 1),
        ("photo.jpg", "RGB", (9, 7), 3),
        ("gray.jpeg", "L", (6, 6), 1),
    ],
)
def test_pictures(
    name: str,
    mode: str,
    size: tuple[int, int],
    channels: int,
    tmp_path: Path,
    editor: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    picture, out = save_picture(tmp_path / name, mode, size), tmp_path / "new" / "out.png"
    assert main([str(picture), "--editor", str(editor), "-o", str(out)]) == 0
    assert read_image(out).shape == (size[1], size[0], channels)
    printed = capsys.readouterr().out
    assert f"{name} ({size[0]} x {size[1]}, {channels} channels)" in printed
    assert "mean squared error to the exact dilate" in printed
    assert printed.endswith(f"written: {out}\n")


def test_strength(tmp_path: Path, editor: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = save_picture(tmp_path / "a.png")
    made = []
    for strength in ("0", "0.5", "1"):
        out = tmp_path / f"{strength}.png"
        assert main([str(picture), "--editor", str(editor), "--strength", strength, "-o", str(out)]) == 0
        made.append(read_image(out))
        assert ("exact dilate" in capsys.readouterr().out) == (strength == "1")
    assert not torch.equal(made[0], made[2])
    assert 0 < (made[1] - made[0]).abs().mean() < (made[2] - made[0]).abs().mean()


def test_an_editor_of_a_users_own_edit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = save_editor(tmp_path / "own.safetensors", edit="halve")
    picture, out = save_picture(tmp_path / "a.png"), tmp_path / "out.jpg"
    assert main([str(picture), "--edit", "halve", "--editor", str(own), "-o", str(out)]) == 0
    assert read_image(out).shape == (7, 9, 1)
    assert "exact" not in capsys.readouterr().out


def test_an_edit_with_parameters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    editor = save_editor(tmp_path / "blur.safetensors", edit="blur(sigma=2)")
    picture, out = save_picture(tmp_path / "a.png"), tmp_path / "out.png"
    command = [str(picture), "--editor", str(editor), "-o", str(out), "--edit"]
    assert main([*command, "blur"]) == 2
    assert "give --edit 'blur(sigma=2)', or another editor" in capsys.readouterr().err
    assert main([*command, "blur( sigma=2.0 )"]) == 0
    assert "to the exact blur(sigma=2): " in capsys.readouterr().out


def test_the_pretrained_editor_of_an_edit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("editors.editor._PRETRAINED", tmp_path / "pretrained")
    save_editor(tmp_path / "pretrained" / "erode.safetensors", edit="erode")
    picture, out = save_picture(tmp_path / "a.png"), tmp_path / "out.png"
    assert main([str(picture), "--edit", "erode(size=3)", "-o", str(out)]) == 0
    assert out.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": "missing.png"}, "there is no picture '"),
        ({"image": "text.png"}, "as a picture"),
        ({"image": "cut.png"}, "as a picture"),
        ({"image": "folder.png"}, "there is no picture"),
        ({"--editor": "missing.safetensors"}, "there is no file"),
        ({"--editor": "text.png"}, "not a complete safetensors file"),
        ({"--editor": "colour.safetensors"}, "INRs have 3 channels, expected 1"),
        ({"--editor": "rotate.safetensors"}, "has learned 'rotate', expected 'dilate'; give --edit rotate"),
        ({"--editor": "rotate.safetensors", "--edit": "rotate"}, "'rotate' .* tile by tile"),
        ({"--edit": "invert"}, "has learned 'dilate', expected 'invert'; give --edit dilate"),
        ({"--editor": None, "--edit": "dilat"}, r"no pretrained editor for 'dilat'.* There are "),
        ({"--strength": "1.5"}, "strength is 1.5, expected 0"),
        ({"--overlap": "6"}, "overlap is 6, expected 0 to 5"),
        ({"-o": "out.pgn"}, r"out\.pgn, expected the name of a picture; let it end in \.png"),
        ({"-o": "text.png/out.png"}, "text.png"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_written(
    change: dict[str, str | None],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    whole = save_picture(tmp_path / "a.png").read_bytes()
    Path("cut.png").write_bytes(whole[: len(whole) // 2])
    Path("text.png").write_text("no picture")
    Path("folder.png").mkdir()
    save_editor(Path("editor.safetensors"))
    save_editor(Path("colour.safetensors"), channels=3)
    save_editor(Path("rotate.safetensors"), edit="rotate")
    before = sorted(Path().rglob("*"))
    options = {"image": "a.png", "--editor": "editor.safetensors", "-o": "out.png"} | change
    image = options.pop("image")
    words = [word for option, value in options.items() if value is not None for word in (option, value)]
    assert main([str(image), *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "error: " in captured.err
    assert captured.err.splitlines()[-1].startswith("error: ")
    assert re.search(message, captured.err), captured.err
    assert sorted(Path().rglob("*")) == before


def test_an_interrupt(
    tmp_path: Path, editor: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("editors.tiling.fit", interrupted)
    picture, out = save_picture(tmp_path / "a.png"), tmp_path / "out.png"
    assert main([str(picture), "--editor", str(editor), "-o", str(out)]) == 130
    assert "nothing was written" in capsys.readouterr().err
    assert not out.exists()


def test_an_output_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["a.png"])
    assert end.value.code == 2
    assert "--out" in capsys.readouterr().err
