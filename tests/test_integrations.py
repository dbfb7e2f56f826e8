"""The examples of ``docs/integrations.md`` run as they stand, train, and save what can be continued."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

TEXT = (Path(__file__).parents[1] / "docs" / "integrations.md").read_text()
SECTIONS = dict(re.findall(r"^#+ ([^\n]*)\n.*?```python\n(.*?)```", TEXT, re.DOTALL | re.MULTILINE))
COMMON = "Learned optimizers in training frameworks"

QUIET = {
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
}


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Any]:
    """Runs the example of a section, and gives the names that it leaves behind."""
    level = logging.getLogger().level
    state = torch.random.get_rng_state()

    def run_section(title: str) -> dict[str, Any]:
        names: dict[str, Any] = {"folder": str(tmp_path), "quiet": QUIET}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the frameworks warn of their own settings, and of few workers
            for section in (COMMON, title):
                exec(compile(SECTIONS[section], f"docs/integrations.md, {section}", "exec"), names)
        return names

    yield run_section
    torch.random.set_rng_state(state)
    logging.getLogger().setLevel(level)


def loss_of(names: dict[str, Any], model: nn.Module) -> float:
    x, y = names["dataset"].tensors
    with torch.no_grad():
        return nn.functional.cross_entropy(model(x), y).item()


def test_an_ordinary_script(run: Any) -> None:
    names = run("An ordinary script")
    assert loss_of(names, names["model"]) < 0.8 * loss_of(names, names["make_model"]())
    assert [rule.kind for rule in names["optimizer"].rules.values()] == ["spectral", "adamw"]


def test_lightning(run: Any) -> None:
    names = run("PyTorch Lightning")
    assert loss_of(names, names["classifier"].model) < 0.8 * loss_of(names, names["make_model"]())
    state = torch.load(f"{names['folder']}/lightning.ckpt", weights_only=False)["optimizer_states"][0]
    assert state["param_groups"][0]["step"] == 40
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        resumed = names["lightning"].Trainer(max_epochs=6, accelerator="cpu", **QUIET)
        loader = names["DataLoader"](names["dataset"], batch_size=32)
        resumed.fit(names["Classifier"](), loader, ckpt_path=f"{names['folder']}/lightning.ckpt")
    assert resumed.optimizers[0].param_groups[0]["step"] == 48


def test_hugging_face_trainer(run: Any) -> None:
    names = run("Hugging Face Trainer")
    assert names["history"][-1] < names["history"][0]
    assert len(names["history"]) == 20
    assert names["optimizer"].param_groups[0]["lr"] == pytest.approx(0.0)
    state = torch.load(f"{names['folder']}/trainer/checkpoint-10/optimizer.pt", weights_only=True)
    assert state["param_groups"][0]["step"] == 10


def test_accelerate(run: Any) -> None:
    names = run("Accelerate")
    assert sum(names["losses"][-8:]) < 0.8 * sum(names["losses"][:8])
    assert names["optimizer"].optimizer.param_groups[0]["step"] == 40


def test_distributed_checkpoints(run: Any) -> None:
    names = run("Distributed checkpoints")
    assert names["its_optimizer"].param_groups[0]["step"] == 16
    names["train"](names["model"], names["optimizer"])
    for expected, got in zip(names["model"].parameters(), names["resumed"].parameters(), strict=True):
        assert torch.equal(expected, got)


def test_higher(run: Any) -> None:
    losses = run("Differentiable inner loops by `higher`")["meta_losses"]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
