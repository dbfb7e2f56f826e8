"""The command line that edits a picture: pictures of all kinds, and refusals that write nothing."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from editors import Editor, EditorConfig, SirenConfig, TiledPicture
from nfn_opt.data import read_image
from nfn_opt.functionals import EquivariantConfig
from scripts.edit_inr import main

BODY = EquivariantConfig(hidden_channels=2, hidden_layers=1, fourier_frequencies=0, position_bands=1)


def save_editor(path: Path, edit: str = "dilate", channels: int = 1, seed: int = 0) -> Path:
    siren = SirenConfig(hidden_width=8, omega_0=8.0, out_channels=channels)
    config = EditorConfig(siren=siren, edit=edit, image_size=(6, 6), body=BODY)
    editor = Editor(config, generator=torch.Generator().manual_seed(seed))
    editor.std.fill_(1 + seed)
    return editor.save(path)


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
    assert f"{name} ({size[0]} x {size[1]}, {'gray' if channels == 1 else 'colour'})" in printed
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


def test_an_editor_of_several_edits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    several = save_editor(tmp_path / "several.safetensors", edit="blur(sigma=0.5..2), invert")
    picture, out, gif = save_picture(tmp_path / "a.png"), tmp_path / "out.png", tmp_path / "a.gif"
    command = [str(picture), "-o", str(out), "--gif", str(gif), "--editor", str(several)]
    report = tmp_path / "a.html"
    assert main([*command, "--edit", "blur(sigma=1.3)", "--edit", "invert", "--report", str(report)]) == 0
    assert "blur(sigma=1.3), then invert" in report.read_text()
    assert "to the exact blur(sigma=1.3), then invert: " in capsys.readouterr().out
    assert main([*command, "--edit", "blur(sigma=0.5..2)"]) == 0
    assert "to the exact blur(sigma=2): " in capsys.readouterr().out
    with Image.open(gif) as frames:
        assert getattr(frames, "n_frames", 1) > 2
    for arguments, message in (
        (command, "has learned several edits, blur(sigma=0.5..2), invert; say which to make, as in"),
        ([*command[:-2], "--edit", str(several)], f"as in --editor {several} --edit invert"),
        ([*command, "--edit", "blur(sigma=3)"], "is 3.0, expected 0.5 to 2"),
        ([*command, "--edit", "dilate"], "'dilate' is no edit that the editor learned"),
        ([*command, "--edit", "blur(sigma=0.5..3)"], "is 3.0, expected 0.5 to 2"),
        ([*command, "--edit", "blur(sigma=0.1..2)"], "is 0.1, expected 0.5 to 2"),
    ):
        assert main(arguments) == 2
        assert message in capsys.readouterr().err


def test_the_pretrained_editor_of_an_edit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("editors.shipped.FOLDER", tmp_path / "pretrained")
    save_editor(tmp_path / "pretrained" / "colour-erode.safetensors", edit="erode")
    picture, out = save_picture(tmp_path / "a.png"), tmp_path / "out.png"
    assert main([str(picture), "--edit", "erode(size=3)", "-o", str(out)]) == 0
    assert out.exists()


def test_an_edit_that_only_an_editor_of_digits_has_learned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("editors.shipped.FOLDER", tmp_path / "pretrained")
    save_editor(tmp_path / "pretrained" / "mnist-erode.safetensors", edit="erode")
    picture, out = save_picture(tmp_path / "a.png"), tmp_path / "out.png"
    for name, warned in (("erode", True), ("mnist-erode", False)):
        assert main([str(picture), "--edit", name, "-o", str(out)]) == 0
        assert ("mnist-erode has seen gray digits only" in capsys.readouterr().err) == warned


def test_a_gray_picture_stays_gray_with_an_editor_of_colour_inrs(tmp_path: Path) -> None:
    editor, gif = save_editor(tmp_path / "colour.safetensors", channels=3), tmp_path / "a.gif"
    picture, out = save_picture(tmp_path / "a.png"), tmp_path / "out.png"
    assert main([str(picture), "--editor", str(editor), "-o", str(out), "--gif", str(gif)]) == 0
    assert read_image(out).shape == (7, 9, 1)
    with Image.open(gif) as frames:
        red, green, blue = frames.convert("RGB").split()
        assert red.tobytes() == green.tobytes() == blue.tobytes()


def test_the_inrs_of_a_gray_picture_are_gray_when_they_are_edited_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    editor, inrs = save_editor(tmp_path / "colour.safetensors", channels=3), tmp_path / "a.safetensors"
    picture, first, again = save_picture(tmp_path / "a.png"), tmp_path / "first.png", tmp_path / "again.png"
    command = ["--editor", str(editor), "--strength", "0"]
    assert main([str(picture), *command, "-o", str(first), "--save-inr", str(inrs)]) == 0
    assert "(9 x 7, gray)" in capsys.readouterr().out
    assert main([str(inrs), *command, "-o", str(again)]) == 0
    assert first.read_bytes() == again.read_bytes()
    assert read_image(first).shape == (7, 9, 1)


def test_a_size_to_render_is_refused_before_the_fit(
    tmp_path: Path, editor: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scripts.edit_inr.edit_picture", None)
    picture = save_picture(tmp_path / "a.png")
    words = [str(picture), "--editor", str(editor), "-o", str(tmp_path / "b.png"), "--render-size", "8", "50"]
    assert main(words) == 2
    assert "--render-size is 8 50, expected at least 9 7" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": "missing.png"}, "there is no picture '"),
        ({"image": "text.png"}, "as a picture"),
        ({"image": "cut.png"}, "as a picture"),
        ({"image": "folder.png"}, "is a folder, expected a picture"),
        ({"--editor": "missing.safetensors"}, "there is no file"),
        ({"--editor": "text.png"}, "not a complete safetensors file"),
        (
            {"--editor": "rotate.safetensors", "--edit": "dilate"},
            "has learned 'rotate', expected 'dilate'; give --edit rotate",
        ),
        ({"--editor": "rotate.safetensors", "--edit": "rotate"}, "'rotate' .* tile by tile"),
        ({"--edit": "invert"}, "has learned 'dilate', expected 'invert'; give --edit dilate"),
        ({"--editor": None, "--edit": "dilat"}, r"no pretrained editor for 'dilat'.* There are "),
        ({"--strength": "1.5"}, "strength is 1.5, expected 0"),
        ({"--overlap": "6"}, "overlap is 6, expected 0 to 5"),
        ({"-o": "out.pgn"}, r"out\.pgn, expected the name of a picture; let it end in \.png"),
        ({"-o": "text.png/out.png"}, "text.png"),
        ({"-o": "a.png"}, "over a picture that is read"),
        ({"--gif": "out.png"}, "gif is out.png, expected the name of a file that ends in .gif"),
        ({"--report": "out.htm"}, "report is out.htm, expected the name of a file that ends in .html"),
        ({"--save-inr": "out"}, "save-inr is out, expected the name of a file that ends in .safetensors"),
        ({"--max-pixels": "62"}, r"has 9 x 7 pixels, more than --max-pixels 62.*shrink it"),
        ({"--scale": "0.5"}, "scale is 0.5, expected 1 to 64"),
        ({"--scale": "nan"}, "scale is nan, expected 1 to 64"),
        ({"--scale": "2", "--render-size": "20 20"}, "not both"),
        ({"--render-size": "8 20"}, "--render-size is 8 20, expected at least 9 7"),
        ({"image": "editor.safetensors"}, "holds a 'editor', expected a 'inr_set'"),
        ({"image": "float.tiff"}, "floating-point pixels of unknown range"),
        (
            {"--editor": None, "--edit": "editor.safetensors --edit colour.safetensors"},
            "editor 2 of the chain",
        ),
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
    Image.fromarray(np.full((7, 9), np.nan, dtype=np.float32)).save("float.tiff")
    before = sorted(Path().rglob("*"))
    options = {"image": "a.png", "--editor": "editor.safetensors", "-o": "out.png"} | change
    image = options.pop("image")
    words = [
        word for option, value in options.items() if value is not None for word in (option, *value.split())
    ]
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
    assert "stopped" in capsys.readouterr().err
    assert not out.exists()


def test_an_output_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["a.png"])
    assert end.value.code == 2
    assert "--out" in capsys.readouterr().err


def test_there_is_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-o", str(tmp_path / "out.png")]) == 2
    assert "there is no picture to edit" in capsys.readouterr().err


def test_colour_inrs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    editor = save_editor(tmp_path / "colour.safetensors", channels=3)
    out = tmp_path / "out.png"
    for mode, channels in (("RGB", 3), ("L", 1)):
        picture = save_picture(tmp_path / f"{mode}.png", mode)
        assert main([str(picture), "--editor", str(editor), "-o", str(out)]) == 0
        assert read_image(out).shape == (7, 9, channels)
        assert "4 INRs" in capsys.readouterr().out


def test_a_chain_of_edits(tmp_path: Path, editor: Path, capsys: pytest.CaptureFixture[str]) -> None:
    second = save_editor(tmp_path / "second.safetensors", edit="blur", seed=3)
    picture = save_picture(tmp_path / "a.png")
    made = []
    for number, chain in enumerate(([editor], [editor, second], [second, editor])):
        out = tmp_path / f"{number}.png"
        words = [word for path in chain for word in ("--edit", str(path))]
        assert main([str(picture), *words, "-o", str(out)]) == 0
        made.append(out.read_bytes())
    assert len(set(made)) == 3
    printed = capsys.readouterr().out
    assert all(
        f"to the exact {edits}: " in printed for edits in ("dilate", "dilate, then blur", "blur, then dilate")
    )


def test_everything_that_can_be_written(
    tmp_path: Path, editor: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = save_picture(tmp_path / "a.png", "RGB")
    out, inrs, gif, page = (
        tmp_path / f"new/out{suffix}" for suffix in (".png", ".safetensors", ".gif", ".html")
    )
    words = ["--editor", str(editor), "--scale", "2.5", "--strength", "0.5"]
    words += ["--save-inr", str(inrs), "--gif", str(gif), "--report", str(page), "-o", str(out)]
    assert main([str(picture), *words]) == 0
    printed = capsys.readouterr().out
    assert all(f"written: {path}\n" in printed for path in (out, inrs, gif, page))
    written = read_image(out)
    assert written.shape == (18, 22, 3)
    rendered = TiledPicture.load(inrs).render((18, 22))
    torch.testing.assert_close(rendered, written, atol=0.5 / 255 + 1e-6, rtol=0)
    with Image.open(gif) as animation:
        assert animation.size == (22, 18)
        assert getattr(animation, "n_frames", 1) > 20
        assert animation.info["loop"] == 0
    text = page.read_text(encoding="utf-8")
    assert "<title>dilate: a.png</title>" in text
    assert "data:image/png;base64," in text


def test_inrs_are_edited_without_a_fit(tmp_path: Path, editor: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture, inrs = save_picture(tmp_path / "a.png"), tmp_path / "a.safetensors"
    first, again, size = (tmp_path / name for name in ("first.png", "again.png", "size.png"))
    fitted = ["--strength", "0", "--save-inr", str(inrs), "-o", str(tmp_path / "fitted.png")]
    assert main([str(picture), "--editor", str(editor), *fitted]) == 0
    assert main([str(picture), "--editor", str(editor), "-o", str(first)]) == 0
    monkeypatch.setattr("editors.tiling.fit", lambda *_, **__: pytest.fail("fitted"))
    assert main([str(inrs), "--editor", str(editor), "-o", str(again)]) == 0
    assert again.read_bytes() == first.read_bytes()
    assert main([str(inrs), "--editor", str(editor), "--render-size", "20", "30", "-o", str(size)]) == 0
    assert read_image(size).shape == (30, 20, 1)


def test_several_pictures(tmp_path: Path, editor: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [str(save_picture(tmp_path / name)) for name in ("a.png", "b.jpg", "c.png")]
    Path(names[1]).write_bytes(b"broken")
    out = tmp_path / "out"
    assert main([*names, "--editor", str(editor), "-o", str(out), "--gif", str(out)]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("error: ") == 1
    assert "b.jpg" in captured.err
    assert sorted(path.name for path in out.iterdir()) == ["a.gif", "a.png", "c.gif", "c.png"]
    assert main([names[0], "--editor", str(editor), "-o", str(out)]) == 0  # a folder for one picture, too


@pytest.mark.parametrize(
    ("names", "out", "message"),
    [
        (["a.png", "b.png"], "out.png", "expected a folder for 2 pictures"),
        (["a.png", "sub/a.png"], "out", "would be written twice"),
        (["a.png", "b.png"], ".", "over a picture that is read"),
    ],
)
def test_several_pictures_into_one_place(
    names: list[str],
    out: str,
    message: str,
    tmp_path: Path,
    editor: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("sub").mkdir()
    for name in names:
        save_picture(Path(name))
    assert main([*names, "--editor", str(editor), "-o", out]) == 2
    assert message in capsys.readouterr().err


def test_what_is_left_out_is_said(tmp_path: Path, editor: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, mode, said in (("a.png", "RGBA", True), ("b.png", "RGB", False)):
        words = [
            str(save_picture(tmp_path / name, mode)),
            "--editor",
            str(editor),
            "-o",
            str(tmp_path / "out.png"),
        ]
        assert main(words) == 0
        assert ("has transparent parts, which are laid over white" in capsys.readouterr().err) == said
