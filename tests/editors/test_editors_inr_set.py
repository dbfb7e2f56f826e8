"""Sets of INRs: selecting, joining, rendering, saving."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from editors.inr_set import InrSet
from editors.siren import Siren, SirenConfig, coordinates, initial_parameters
from nfn_opt.artifacts import ArtifactError, load_artifact, save_artifact

CONFIG = SirenConfig(hidden_width=6, out_channels=3, omega_0=12.0)


def make(count: int = 5, config: SirenConfig = CONFIG, labels: bool = True) -> InrSet:
    params = initial_parameters(config, count, torch.Generator().manual_seed(count))
    quality = torch.linspace(30, 50, count)
    return InrSet(
        params,
        config,
        quality,
        (4, 7),
        labels=torch.arange(count) if labels else None,
        meta={"source": {"name": "made", "checksum": "abc"}},
    )


def assert_same(first: InrSet, second: InrSet) -> None:
    assert first.config == second.config
    assert first.image_size == second.image_size
    assert first.meta == second.meta
    torch.testing.assert_close(dict(first.params), dict(second.params), rtol=0, atol=0)
    torch.testing.assert_close(first.psnr, second.psnr, rtol=0, atol=0, equal_nan=True)
    assert (first.labels is None) == (second.labels is None)
    if first.labels is not None and second.labels is not None:
        assert torch.equal(first.labels, second.labels)


def test_render_equals_the_modules() -> None:
    inrs = make()
    images = inrs.render(clamp=False)
    assert images.shape == (5, 4, 7, 3)
    for number in range(len(inrs)):
        expected = (inrs.module(number)(coordinates(4, 7)) + 1) / 2
        torch.testing.assert_close(images[number], expected.view(4, 7, 3).detach(), atol=1e-5, rtol=1e-5)


def test_render_at_another_size_keeps_the_corners_and_shared_pixels() -> None:
    inrs = make()
    small, large = inrs.render((3, 4), clamp=False), inrs.render((5, 7), clamp=False)
    torch.testing.assert_close(large[:, ::2, ::2], small, atol=1e-4, rtol=1e-4)


def test_render_in_chunks_and_clamped(monkeypatch: pytest.MonkeyPatch) -> None:
    inrs = make()
    whole = inrs.with_params({name: value * 3 for name, value in inrs.params.items()})
    free, clamped = whole.render(clamp=False), whole.render()
    assert free.min() < 0 or free.max() > 1
    torch.testing.assert_close(clamped, free.clamp(0, 1))
    monkeypatch.setattr("editors.inr_set.PIXELS_PER_CHUNK", 60)
    torch.testing.assert_close(whole.render(), clamped, atol=1e-5, rtol=1e-5)


def test_state_dict_and_module_are_copies() -> None:
    inrs = make()
    siren = Siren(CONFIG)
    siren.load_state_dict(inrs.state_dict(3))
    with torch.no_grad():
        for parameter in inrs.module(3).parameters():
            parameter.zero_()
        inrs.state_dict(3)["layers.0.weight"].zero_()
    assert torch.equal(siren.state_dict()["layers.0.weight"], inrs.params["layers.0.weight"][3])


@pytest.mark.parametrize(
    ("index", "numbers"),
    [
        (2, [2]),
        (-1, [4]),
        (slice(1, None, 2), [1, 3]),
        ([4, 0], [4, 0]),
        (torch.tensor([True, False, False, True, False]), [0, 3]),
        (slice(0, 0), []),
    ],
)
def test_selecting(index: int | slice | list[int] | torch.Tensor, numbers: list[int]) -> None:
    inrs = make()
    some = inrs[index]
    assert some.labels is not None
    assert some.labels.tolist() == numbers
    torch.testing.assert_close(some.psnr, inrs.psnr[numbers])
    torch.testing.assert_close(some.render(), inrs.render()[numbers], atol=1e-5, rtol=1e-5)


def test_selecting_what_is_not_there() -> None:
    with pytest.raises(IndexError, match="INR 5 of a set of 5"):
        make()[5]


def test_concat_undoes_slicing() -> None:
    inrs = make()
    assert_same(InrSet.concat([inrs[:2], inrs[2:]]), inrs)
    without = dataclasses.replace(inrs[2:], labels=None)
    assert InrSet.concat([inrs[:2], without]).labels is None


def test_concat_of_different_sets() -> None:
    with pytest.raises(ValueError, match=r"sets\[1\] is InrSet\(.*omega_0=30.*cannot be joined"):
        InrSet.concat([make(), make(config=SirenConfig(hidden_width=6, out_channels=3))])
    with pytest.raises(ValueError, match="at least one"):
        InrSet.concat([])


def test_with_params_forgets_the_psnr() -> None:
    inrs = make()
    edited = inrs.with_params({name: value + 1 for name, value in inrs.params.items()})
    assert edited.psnr.isnan().all()
    assert torch.equal(edited.labels, inrs.labels)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="psnr must have shape"):
        inrs.with_params(inrs[:2].params)


def test_it_prints_its_size_and_quality() -> None:
    assert repr(make()) == "InrSet(5 x Siren(2-6-6-3, omega_0=12) of 4 x 7 images, 30.0 to 50.0 dB)"
    assert "PSNR unknown" in repr(make().with_params(make().params))


@pytest.mark.parametrize("labels", [True, False])
def test_save_and_load(tmp_path: Path, labels: bool) -> None:
    inrs = make(labels=labels)
    path = inrs.save(tmp_path / "new" / "a.safetensors")
    assert_same(InrSet.load(path), inrs)
    _, metadata = load_artifact(path, kind="inr_set")
    assert metadata["value_range"] == [-1, 1]
    assert metadata["architecture"]["omega_0"] == 12.0


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"architecture": {"hidden_width": 7}}, "must have shape"),
        ({"architecture": {"depth": 7}}, "unexpected keyword argument 'depth'"),
        ({"image_size": [0, 3]}, "image_size"),
        ({"image_size": None}, "valid set of INRs"),
    ],
)
def test_file_that_contradicts_itself(tmp_path: Path, change: dict[str, object], match: str) -> None:
    path = make().save(tmp_path / "a.safetensors")
    tensors, metadata = load_artifact(path, kind="inr_set")
    save_artifact(path, tensors, kind="inr_set", metadata={**metadata, **change})
    with pytest.raises(ArtifactError, match=match):
        InrSet.load(path)


def test_other_files(tmp_path: Path) -> None:
    path = save_artifact(tmp_path / "a.safetensors", {"x": torch.ones(1)}, kind="editor")
    with pytest.raises(ArtifactError, match="holds a 'editor', expected a 'inr_set'"):
        InrSet.load(path)
    path = make().save(tmp_path / "b.safetensors")
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ArtifactError, match="not a complete safetensors file"):
        InrSet.load(path)


@pytest.mark.parametrize(
    ("field", "value", "match"),
    [
        ("psnr", torch.zeros(4), r"psnr must have shape \(5,\), one a network, got \(4,\)"),
        ("labels", torch.zeros(5, 1), "labels must have shape"),
        ("image_size", (0, 3), "image_size must be"),
        ("params", {}, "missing parameter"),
    ],
)
def test_parts_that_do_not_fit(field: str, value: object, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        dataclasses.replace(make(), **{field: value})  # type: ignore[arg-type]
