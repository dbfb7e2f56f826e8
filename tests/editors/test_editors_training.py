"""Training of editors: the error falls, the best weights are kept, and bad input or numbers are refused."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from editors import (
    Editor,
    EditorConfig,
    InrSet,
    SirenConfig,
    TrainEditorConfig,
    editing_error,
    fit,
    get_edit,
    no_edit_error,
    train_editor,
)
from editors.siren import initial_parameters
from editors.training import EditorTraining
from nfn_opt.data import load_images
from nfn_opt.functionals import EquivariantConfig
from nfn_opt.meta.processes import Processes

BODY = EquivariantConfig(
    hidden_channels=8,
    hidden_layers=2,
    fourier_frequencies=4,
    fourier_scale=0.5,
    position_bands=2,
    norm=True,
    out_scale=0.1,
)
SHORT = TrainEditorConfig(steps=6, batch_size=4, lr=1e-2, warmup=2, validate_every=2)


@pytest.fixture(scope="module")
def digits() -> tuple[InrSet, Tensor]:
    """INRs of digits, and the digits."""
    data = load_images("digits").subset(48)
    return fit(data, steps=40, config=SirenConfig(hidden_width=16, omega_0=10)), data.images


def make_editor(inrs: InrSet, edit: str = "dilate") -> Editor:
    config = EditorConfig(siren=inrs.config, edit=edit, image_size=inrs.image_size, body=BODY)
    return Editor(config, generator=torch.Generator().manual_seed(1))


def small() -> tuple[InrSet, Tensor]:
    """A few INRs that no image was fitted to, and images."""
    siren = SirenConfig(hidden_width=4, omega_0=5.0)
    params = initial_parameters(siren, 5, torch.Generator().manual_seed(0))
    return InrSet(params, siren, torch.full((5,), 40.0), (4, 3)), torch.rand(
        5, 4, 3, 1, generator=torch.Generator().manual_seed(1)
    )


def weights(editor: Editor) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in editor.state_dict().items()}


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    torch.testing.assert_close(first, second, rtol=0, atol=0)


@pytest.mark.parametrize("edit", ["dilate", "invert"])
def test_the_held_out_error_falls_below_that_of_no_edit(digits: tuple[InrSet, Tensor], edit: str) -> None:
    inrs, images = digits
    targets = get_edit(edit)(images)
    editor, held_out = make_editor(inrs, edit), (inrs[32:], targets[32:])
    before = no_edit_error(*held_out)
    config = TrainEditorConfig(steps=60, batch_size=16, lr=1e-2, warmup=5, validate_every=20)
    history = train_editor(editor, inrs[:32], targets[:32], config=config, validation=held_out)
    assert [record["step"] for record in history] == [20, 40, 60]
    after = editing_error(editor, *held_out)
    assert after < 0.7 * before
    assert after == min(record["validation"] for record in history)
    assert editing_error(editor, *held_out, strength=0.0) == before
    assert history[-1]["train"] < history[0]["train"]
    assert history[-1]["seconds"] >= history[0]["seconds"] > 0


def test_errors_are_those_of_the_rendered_images(digits: tuple[InrSet, Tensor]) -> None:
    inrs, images = digits
    expected = 4 * (inrs.render(clamp=False) - images.flip(1)).square().mean()
    assert no_edit_error(inrs, images.flip(1)) == pytest.approx(expected.item(), rel=1e-5)


def test_a_users_own_function_is_an_edit(digits: tuple[InrSet, Tensor]) -> None:
    inrs, images = digits

    def halve(pictures: Tensor) -> Tensor:
        """Half as bright."""
        return pictures / 2

    edit = get_edit(halve)
    assert (edit.name, edit.doc) == ("halve", "Half as bright.")
    targets, editor = edit(images), make_editor(inrs, edit.name)
    config = TrainEditorConfig(steps=20, batch_size=16, lr=1e-2, warmup=5)
    train_editor(editor, inrs[:32], targets[:32], config=config)
    assert editing_error(editor, inrs[32:], targets[32:]) < 0.7 * no_edit_error(inrs[32:], targets[32:])


@pytest.mark.parametrize(("seed", "equal"), [(0, True), (1, False)])
def test_the_seed_decides_everything(seed: int, equal: bool) -> None:
    inrs, targets = small()
    editors = [make_editor(inrs), make_editor(inrs)]
    torch.rand(3)  # the global generator has no say
    for editor, own in zip(editors, (0, seed), strict=True):
        train_editor(
            editor, inrs, targets, config=TrainEditorConfig(steps=4, batch_size=2, warmup=0, seed=own)
        )
    first, second = (weights(editor) for editor in editors)
    assert all(torch.equal(first[name], second[name]) for name in first) == equal


def test_the_weights_of_the_best_validation_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    inrs, targets = small()
    seen: list[dict[str, Tensor]] = []
    errors = iter([3.0, 1.0, 2.0])

    def measured(editor: Editor, *validation: Any) -> float:
        seen.append(weights(editor))
        return next(errors)

    monkeypatch.setattr("editors.training.editing_error", measured)
    editor = make_editor(inrs)
    history = train_editor(editor, inrs, targets, config=SHORT, validation=(inrs, targets))
    assert [record["validation"] for record in history] == [3.0, 1.0, 2.0]
    assert_same(weights(editor), seen[1])
    assert any(not torch.equal(seen[2][name], seen[1][name]) for name in seen[1])


def test_an_error_that_is_not_finite_keeps_the_best_weights() -> None:
    inrs, targets = small()
    editor = make_editor(inrs)
    seen: list[dict[str, Tensor]] = []
    change, calls = editor.change, 0

    def breaks(*inputs: Any) -> dict[str, Tensor]:
        nonlocal calls
        calls += 1
        if calls == 4:  # two steps, a validation, and then
            seen.append(weights(editor))
        factor = torch.nan if calls == 5 else 1.0
        return {name: value * factor for name, value in change(*inputs).items()}

    editor.change = breaks  # type: ignore[method-assign, assignment]
    with pytest.raises(FloatingPointError, match=r"the error is nan at step 3; lower lr \(now 0\.01\)"):
        train_editor(editor, inrs, targets, config=SHORT, validation=(inrs, targets))
    assert_same(weights(editor), seen[0])


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_targets_that_are_not_finite(value: float) -> None:
    inrs, targets = small()
    targets[:, 0, 0] = value
    editor = make_editor(inrs)
    with pytest.raises(FloatingPointError, match="at step 0"):
        train_editor(editor, inrs, targets, config=SHORT)
    assert all(tensor.isfinite().all() for tensor in editor.state_dict().values())


def test_an_only_validation_that_is_not_finite() -> None:
    inrs, targets = small()
    editor, broken = make_editor(inrs), torch.full_like(targets, torch.nan)
    with pytest.raises(FloatingPointError, match="the error is nan after the last step"):
        train_editor(editor, inrs, targets, config=SHORT, validation=(inrs, broken))


@pytest.mark.parametrize(
    ("shape", "count"),
    [((5, 3, 4, 1), 5), ((5, 4, 3), 5), ((5, 4, 3, 3), 5), ((4, 4, 3, 1), 5), ((5, 4, 3, 1), 4)],
)
@pytest.mark.parametrize("where", ["training", "validation"])
def test_targets_of_another_shape(shape: tuple[int, ...], count: int, where: str) -> None:
    inrs, targets = small()
    editor, wrong = make_editor(inrs), (inrs[:count], torch.zeros(shape))
    untouched = weights(editor)
    training, validation = (wrong, None) if where == "training" else ((inrs, targets), wrong)
    with pytest.raises(ValueError, match=rf"targets have shape .*, expected \({count}, 4, 3, 1\)"):
        train_editor(editor, *training, config=SHORT, validation=validation)
    assert_same(weights(editor), untouched)


@pytest.mark.parametrize("where", ["training", "validation"])
def test_inrs_of_another_architecture(where: str) -> None:
    inrs, targets = small()
    siren = SirenConfig(hidden_width=6)
    params = initial_parameters(siren, 5, torch.Generator().manual_seed(0))
    other = InrSet(params, siren, inrs.psnr, inrs.image_size)
    editor = make_editor(inrs)
    untouched = weights(editor)
    wrong = (other, targets)
    training, validation = (wrong, None) if where == "training" else ((inrs, targets), wrong)
    with pytest.raises(ValueError, match=r"the INRs have hidden_width=6, expected hidden_width=4"):
        train_editor(editor, *training, config=SHORT, validation=validation)
    assert_same(weights(editor), untouched)


def test_a_single_inr_can_be_trained_on() -> None:
    inrs, targets = small()
    editor = make_editor(inrs)
    before = no_edit_error(inrs[:1], targets[:1])
    train_editor(editor, inrs[:1], targets[:1], config=TrainEditorConfig(steps=10, batch_size=1, warmup=0))
    assert editing_error(editor, inrs[:1], targets[:1]) < before


def test_learning_rate_warms_up_and_falls() -> None:
    config = TrainEditorConfig(steps=100, lr=0.5, warmup=10)
    rates = [config.learning_rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.05)
    assert max(rates) == rates[9] == pytest.approx(0.5, rel=0.03)
    assert all(a < b for a, b in pairwise(rates[:10]))
    assert all(a > b for a, b in pairwise(rates[9:]))
    assert rates[50] == pytest.approx(0.25)
    assert 0 < rates[-1] < 1e-3
    assert TrainEditorConfig(steps=4, lr=0.5, warmup=0).learning_rate(0) == 0.5


def test_the_optimizer_follows_the_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    inrs, targets = small()
    used: list[float] = []
    step = torch.optim.AdamW.step

    def spied(optimizer: torch.optim.AdamW, *arguments: Any) -> Any:
        used.append(optimizer.param_groups[0]["lr"])
        return step(optimizer, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", spied)
    train_editor(make_editor(inrs), inrs, targets, config=SHORT)
    assert used == [SHORT.learning_rate(i) for i in range(SHORT.steps)]


def test_a_constant_learning_rate() -> None:
    config = TrainEditorConfig(steps=10, lr=0.5, warmup=4, schedule="constant")
    rates = [config.learning_rate(step) for step in range(10)]
    assert rates == [0.125, 0.25, 0.375, *[0.5] * 7]


def measured(monkeypatch: pytest.MonkeyPatch, errors: list[float]) -> None:
    """Let the validations give these errors."""
    given = iter(errors)
    monkeypatch.setattr("editors.training.editing_error", lambda *_: next(given))


def test_patience_ends_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    inrs, targets = small()
    measured(monkeypatch, [3.0, 4.0, 2.0, torch.nan, 2.0])
    config = TrainEditorConfig(steps=20, batch_size=4, validate_every=2, patience=2)
    training = EditorTraining(
        make_editor(inrs), inrs, targets, config=config, validation=(inrs[:2], targets[:2])
    )
    while not training.finished:
        training.advance()
        if training.validation_due:
            training.validate()
    assert (training.step, training.best, training.best_step, training.stopped_early) == (10, 2.0, 6, True)
    measured(monkeypatch, [3.0, 4.0, 2.0, torch.nan, 2.0])
    history = train_editor(
        make_editor(inrs), inrs, targets, config=config, validation=(inrs[:2], targets[:2])
    )
    assert [record["step"] for record in history] == [2, 4, 6, 8, 10]


def break_changes(editor: Editor, calls: set[int]) -> None:
    """Let some calls of the editor give NaN."""
    change, made = editor.change, 0

    def breaks(*inputs: Any) -> dict[str, Tensor]:
        nonlocal made
        made += 1
        factor = torch.nan if made in calls else 1.0
        return {name: value * factor for name, value in change(*inputs).items()}

    editor.change = breaks  # type: ignore[method-assign, assignment]


def test_a_step_that_is_not_finite_changes_nothing() -> None:
    inrs, targets = small()
    editor = make_editor(inrs)
    config = TrainEditorConfig(steps=9, batch_size=4, warmup=0, give_up_after=2)
    training = EditorTraining(editor, inrs, targets, config=config)
    break_changes(editor, {2, 4, 5})
    first = training.advance()
    before = weights(editor)
    second = training.advance()
    assert_same(weights(editor), before)
    assert (first["skipped"], second["skipped"]) == (0, 1)
    assert torch.tensor(second["error"]).isnan()
    training.advance()
    assert any(not torch.equal(value, before[name]) for name, value in weights(editor).items())
    training.advance()
    with pytest.raises(
        FloatingPointError, match=r"the error is nan at step 4, as in 2 steps in a row; lower lr"
    ):
        training.advance()


def test_a_gradient_that_is_not_finite_changes_nothing() -> None:
    inrs, targets = small()
    editor = make_editor(inrs)
    training = EditorTraining(editor, inrs, targets, config=TrainEditorConfig(batch_size=2))
    parameter = next(editor.parameters())
    parameter.register_hook(lambda gradient: gradient * torch.inf)
    before = weights(editor)
    with pytest.raises(FloatingPointError, match="the norm of the gradient is inf at step 0"):
        training.advance()
    assert_same(weights(editor), before)


@pytest.mark.parametrize("stop", [3, 4])
def test_a_training_that_is_restored_goes_on_as_if_nothing_had_been(stop: int) -> None:
    inrs, targets = small()
    trainings = [
        EditorTraining(make_editor(inrs), inrs[:4], targets[:4], config=SHORT, validation=(inrs, targets))
        for _ in range(2)
    ]
    for training in trainings:
        for _ in range(SHORT.steps):
            if training is trainings[1] and training.step == stop:
                saved = {key: value.clone() for key, value in training.tensors().items()}
                counters = training.counters()
                training = EditorTraining(
                    make_editor(inrs), inrs[:4], targets[:4], config=SHORT, validation=(inrs, targets)
                )
                training.restore(saved, counters)
                trainings[1] = training
            training.advance()
            if training.validation_due:
                training.validate()
    assert_same(*(training.tensors() for training in trainings))
    whole, resumed = ({**training.counters(), "seconds": 0} for training in trainings)
    for counters in (whole, resumed):
        counters["history"] = [{**record, "seconds": 0} for record in counters["history"]]
    assert whole == resumed


class OneOf(Processes):
    """A process of several that run one after another: the sum is taken later."""

    def sum(self, tensor: Tensor) -> Tensor:
        return tensor


@pytest.mark.parametrize("size", [2, 3])
def test_processes_share_the_gradient_of_the_batch(size: int) -> None:
    inrs, targets = small()
    inrs = inrs.with_params({name: value.double() for name, value in inrs.params.items()})
    config = TrainEditorConfig(batch_size=5, max_norm=torch.inf)
    losses, gradients, errors = [], [], []
    for processes in (Processes(), *(OneOf(rank, size) for rank in range(size))):
        training = EditorTraining(
            make_editor(inrs).double(),
            inrs,
            targets.double(),
            config=config,
            validation=(inrs, targets.double()),
            processes=processes,
        )
        losses.append(training.gradient()[0])
        gradients.append([p.grad for p in training.editor.parameters()])
        errors.append(training.validate()["validation"])
    assert sum(losses[1:]) == pytest.approx(losses[0], rel=1e-12)
    assert sum(errors[1:]) == pytest.approx(errors[0], rel=1e-12)
    for whole, *parts in zip(*gradients, strict=True):
        torch.testing.assert_close(torch.stack(parts).sum(0), whole, rtol=1e-9, atol=1e-15)


def test_more_processes_than_inrs_in_a_batch() -> None:
    inrs, targets = small()
    with pytest.raises(ValueError, match="there are 3 processes for batches of 2;"):
        EditorTraining(
            make_editor(inrs),
            inrs,
            targets,
            config=TrainEditorConfig(batch_size=2),
            processes=Processes(0, 3),
        )


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 0},
        {"batch_size": 0},
        {"validate_every": -1},
        {"patience": 0},
        {"give_up_after": 0},
        {"lr": 0.0},
        {"lr": float("nan")},
        {"max_norm": -1.0},
        {"warmup": -1},
        {"weight_decay": -0.1},
        {"schedule": "linear"},
    ],
)
def test_options_out_of_range(options: dict[str, Any]) -> None:
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"{name} is {value!r}, expected"):
        TrainEditorConfig(**options)
