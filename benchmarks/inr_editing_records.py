"""The trainings of :mod:`benchmarks.inr_editing`, kept on disk as they are finished."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nfn_opt.meta.config import differences
from nfn_opt.meta.run_folder import write_json


@dataclasses.dataclass(frozen=True)
class Trained:
    """One training: seconds of its steps, and the error on the test INRs."""

    error: float
    seconds: float
    steps: int
    parameters: int


class Records:
    """Finished trainings by name and seed.

    Args:
        path: JSON file that they are kept in.
        conditions: What all of them depend on.
        no_edit: Error of no edit at all.

    Attributes:
        found: The trainings asked for so far, by name.

    Raises:
        ValueError: If the file holds trainings under other conditions.
    """

    def __init__(self, path: Path, conditions: Mapping[str, Any], no_edit: float) -> None:
        self._path, self._conditions = path, json.loads(json.dumps(conditions))
        self.no_edit = no_edit
        self.found: dict[str, list[Trained]] = {}
        self._stored: dict[str, dict[str, Any]] = {}
        if path.exists():
            stored = json.loads(path.read_text())
            changed = differences(stored["conditions"], self._conditions)
            if changed:
                raise ValueError(
                    f"{path} holds trainings under other conditions: {'; '.join(changed)}; give another folder"
                )
            self._stored = stored["trainings"]

    def once(self, name: str, seed: int, make: Callable[[], Trained]) -> Trained:
        """The training of that name and seed, made if it is not there yet."""
        key = f"{name}, seed {seed}"
        if key not in self._stored:
            self._stored[key] = dataclasses.asdict(make())
            write_json(self._path, {"conditions": self._conditions, "trainings": self._stored})
        one = Trained(**self._stored[key])
        self.found.setdefault(name, []).append(one)
        print(
            f"{key}: error {one.error:.4f}, {one.error / self.no_edit:.3f} of no edit, {one.steps} steps in "
            f"{one.seconds:.0f} s",
            flush=True,
        )
        return one
