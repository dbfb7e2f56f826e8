"""The loop of supervised trainings."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from nfn_opt.artifacts import ArtifactError
from nfn_opt.training import Training, TrainingConfig, TrainingResult, train

CONFIG = TrainingConfig(steps=12, batch_size=4, lr=0.05, warmup=2, validate_every=4)


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 1))


def examples() -> dict[str, Tensor]:
    x = torch.randn(20, 2, generator=torch.Generator().manual_seed(1))
    return {"x": x, "y": x.prod(1, keepdim=True)}


def run(network: nn.Module, config: TrainingConfig = CONFIG, **options: object) -> TrainingResult:
    data = examples()

    def loss(batch: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        noise = 0.1 * torch.randn(batch["x"].shape, generator=generator)
        return (network(batch["x"] + noise) - batch["y"]).square().mean()

    def score() -> float:
        assert not network.training
        assert not torch.is_grad_enabled()
        return -(network(data["x"]) - data["y"]).square().mean().item()

    return train(network, data, loss, config=config, **{"score": score, **options})  # type: ignore[arg-type]


def assert_same(one: nn.Module, other: nn.Module) -> None:
    for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_it_learns_and_keeps_the_best_weights() -> None:
    network, data = model(), examples()
    result = run(network, TrainingConfig(steps=400, batch_size=16, lr=0.02, validate_every=50))
    scores = [one["score"] for one in result.history]
    assert result.best_score == max(scores) > scores[0]
    assert result.best_step == result.history[scores.index(max(scores))]["step"]
    found = -(network(data["x"]) - data["y"]).square().mean().item()
    assert found == pytest.approx(result.best_score)
    assert not network.training


def test_the_same_seed_gives_the_same_weights_and_leaves_the_random_state_alone() -> None:
    first, second = model(), model()
    run(first)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    run(second)
    assert torch.equal(torch.get_rng_state(), before)
    assert_same(first, second)
    other = model()
    run(other, TrainingConfig(steps=12, batch_size=4, lr=0.05, warmup=2, validate_every=4, seed=1))
    assert not torch.equal(other[0].weight, first[0].weight)  # type: ignore[arg-type]


def test_patience_ends_it() -> None:
    scores = iter([1.0, 2.0, 1.5, 2.0, 9.0])
    config = TrainingConfig(steps=100, batch_size=4, validate_every=3, patience=2)
    result = run(model(), config, score=lambda: next(scores))
    assert (result.steps, result.best_step, result.best_score) == (12, 6, 2.0)


def test_without_a_score_the_loss_decides() -> None:
    result = run(model(), score=None)
    assert result.best_score == max(-one["loss"] for one in result.history)


@pytest.mark.parametrize("stop", [4, 6])
def test_a_training_that_was_stopped_goes_on_to_the_same_bits(tmp_path: Path, stop: int) -> None:
    whole = model()
    expected = run(whole, folder=tmp_path / "whole")
    advance = Training.advance

    def stopping(self: Training) -> dict[str, float]:
        row = advance(self)
        if row["step"] == stop:
            signal.raise_signal(signal.SIGTERM)
        return row

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "advance", stopping)
        result = run(model(), folder=tmp_path / "run")
    assert (result.steps, result.stopped_by) == (stop, signal.SIGTERM)
    resumed = model()
    again = run(resumed, folder=tmp_path / "run", resume=True)
    assert_same(whole, resumed)
    for one, other in zip(expected.history, again.history, strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}
    rows = (tmp_path / "run" / "train.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["step", "4", "8", "12"]
    assert run(model(), folder=tmp_path / "run", resume=True).steps == 12


def test_the_folder_must_be_that_of_this_training(tmp_path: Path) -> None:
    run(model(), folder=tmp_path, record={"width": 8})
    with pytest.raises(FileExistsError, match="holds another run"):
        run(model(), folder=tmp_path)
    with pytest.raises(ValueError, match="width"):
        run(model(), folder=tmp_path, record={"width": 9}, resume=True)
    with pytest.raises(ValueError, match="resume is asked for without a folder"):
        run(model(), resume=True)
    (tmp_path / "checkpoint.safetensors").write_bytes(b"no")
    with pytest.raises(ArtifactError, match="the checkpoint cannot be used"):
        run(model(), folder=tmp_path, record={"width": 8}, resume=True)


def test_a_loss_that_is_not_finite_leaves_the_best_weights() -> None:
    network, data = model(), examples()
    seen: list[float] = []

    def loss(batch: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        error = (network(batch["x"]) - batch["y"]).square().mean()
        seen.append(error.item())
        return error * (torch.nan if len(seen) == 7 else 1.0)

    reference = model()

    def same(batch: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        return (reference(batch["x"]) - batch["y"]).square().mean()

    short = TrainingConfig(**{**vars(CONFIG), "schedule": "constant"})
    with pytest.raises(FloatingPointError, match="nan at step 6"):
        train(network, data, loss, config=short)
    train(reference, data, same, config=TrainingConfig(**{**vars(short), "steps": 4}))
    assert_same(network, reference)


def test_a_score_that_is_not_finite() -> None:
    with pytest.raises(FloatingPointError, match="the error is nan after the last step"):
        run(model(), score=lambda: float("nan"))


def test_data_of_different_lengths() -> None:
    with pytest.raises(ValueError, match=r"\{'x': 3, 'y': 4\} examples"):
        train(model(), {"x": torch.zeros(3, 2), "y": torch.zeros(4, 1)}, lambda *_: torch.tensor(0.0))
    with pytest.raises(ValueError, match="there are no examples"):
        train(model(), {"x": torch.zeros(0, 2)}, lambda *_: torch.tensor(0.0))
