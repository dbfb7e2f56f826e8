"""Every example of ``docs/task_families.md`` runs as it stands, alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

TEXT = (Path(__file__).parents[1] / "docs" / "task_families.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def run(block: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(block, "docs/task_families.md", "exec"), names)
    return names


def test_examples_run() -> None:
    first, second = map(run, BLOCKS)
    assert [task.name for task in first["tasks"]] == ["transformer-text-small", "siren-patch"]
    assert len(first["built"]) == 2
    losses = second["curves"].losses
    assert losses.shape == (4, 100)
    assert losses[:, -10:].mean() < 0.5 * losses[:, 0].mean()
