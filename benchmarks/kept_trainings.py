"""Finished trainings of a benchmark, kept on disk, so that the same command goes on where it was stopped."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nfn_opt.meta.config import differences
from nfn_opt.meta.run_folder import write_json


class KeptTrainings:
    """Records of finished trainings by name and seed.

    Args:
        path: JSON file that they are kept in.
        conditions: What all of them depend on, as JSON values.

    Raises:
        ValueError: If the file holds trainings under other conditions.
    """

    def __init__(self, path: Path, conditions: Mapping[str, Any]) -> None:
        self._path, self._conditions = path, json.loads(json.dumps(conditions))
        self._stored: dict[str, dict[str, Any]] = {}
        if path.exists():
            stored = json.loads(path.read_text())
            changed = differences(stored["conditions"], self._conditions)
            if changed:
                raise ValueError(
                    f"{path} holds trainings under other conditions: {'; '.join(changed)}; give another folder"
                )
            self._stored = stored["trainings"]

    def once(self, name: str, seed: int, make: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """The record of that name and seed, made if it is not there yet."""
        key = f"{name}, seed {seed}"
        if key not in self._stored:
            self._stored[key] = dict(make())
            write_json(self._path, {"conditions": self._conditions, "trainings": self._stored})
        return self._stored[key]
