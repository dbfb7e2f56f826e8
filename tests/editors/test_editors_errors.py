"""Errors of editors: of each image and their mean, in chunks, and what is told of an editor."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from editors import (
    Editor,
    EditorConfig,
    InrSet,
    SirenConfig,
    editing_error,
    editing_errors,
    editing_scores,
    no_edit_error,
    score_table,
)
from editors.siren import initial_parameters
from nfn_opt.functionals import EquivariantConfig


@pytest.fixture
def inrs(generator: torch.Generator) -> InrSet:
    siren = SirenConfig(hidden_width=4, omega_0=5.0)
    return InrSet(initial_parameters(siren, 7, generator), siren, torch.full((7,), 40.0), (4, 3))


@pytest.fixture
def targets(generator: torch.Generator) -> Tensor:
    return torch.rand(7, 4, 3, 1, generator=generator)


@pytest.fixture
def editor(inrs: InrSet) -> Editor:
    body = EquivariantConfig(hidden_channels=4, fourier_frequencies=2, position_bands=1, out_scale=0.1)
    return Editor(EditorConfig(siren=inrs.config, edit="dilate", image_size=(4, 3), body=body))


def test_the_mean_of_the_errors_of_the_images(editor: Editor, inrs: InrSet, targets: Tensor) -> None:
    errors = editing_errors(editor, inrs, targets)
    expected = 4 * (editor(inrs).render(clamp=False) - targets).square().mean((1, 2, 3))
    torch.testing.assert_close(errors, expected)
    assert errors.mean().item() == pytest.approx(editing_error(editor, inrs, targets), rel=1e-6)
    without = editing_errors(None, inrs, targets)
    assert without.mean().item() == pytest.approx(no_edit_error(inrs, targets), rel=1e-6)
    half = editing_errors(editor, inrs, targets, 0.5)
    assert half.mean().item() == pytest.approx(editing_error(editor, inrs, targets, 0.5), rel=1e-6)


def test_chunks_change_nothing(
    inrs: InrSet, targets: Tensor, editor: Editor, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = editing_errors(editor, inrs, targets), editing_error(editor, inrs, targets)
    monkeypatch.setattr("editors.errors.INRS_PER_CHUNK", 3)
    torch.testing.assert_close(editing_errors(editor, inrs, targets), whole[0])
    assert editing_error(editor, inrs, targets) == pytest.approx(whole[1], rel=1e-6)


def test_scores(editor: Editor, inrs: InrSet, targets: Tensor) -> None:
    scores, errors = editing_scores(editor, inrs, targets), editing_errors(editor, inrs, targets)
    assert scores["images"] == 7
    assert scores["error"] == editing_error(editor, inrs, targets)
    assert scores["no_edit_error"] == no_edit_error(inrs, targets)
    assert scores["share"] == pytest.approx(scores["error"] / scores["no_edit_error"])
    assert scores["error_of_mean"] == pytest.approx(errors.std().item() / 7**0.5)
    assert (scores["median_error"], scores["worst_error"]) == (errors.median().item(), errors.max().item())
    assert scores["inr_psnr_db"] == pytest.approx(40)
    lines = score_table({"validation": scores, "test": scores}).splitlines()
    assert [line.split()[0] for line in lines] == ["images", "validation", "test"]
    assert len({len(line) for line in lines}) == 1


def test_scores_of_one_image(editor: Editor, inrs: InrSet, targets: Tensor) -> None:
    scores = editing_scores(editor, inrs[0], targets[:1])
    assert (scores["images"], scores["error_of_mean"]) == (1, 0.0)


def test_targets_of_another_shape(editor: Editor, inrs: InrSet, targets: Tensor) -> None:
    with pytest.raises(ValueError, match=r"targets have shape \(6, 4, 3, 1\), expected \(7, 4, 3, 1\)"):
        editing_errors(editor, inrs, targets[1:])
