"""Evaluations of a run on held-out tasks: log rows, snapshots of the rule, and the picture."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm

from nfn_opt.meta.baseline import load_baseline, save_baseline
from nfn_opt.meta.curves import draw_curves
from nfn_opt.meta.evaluate import Curves, Tuned
from nfn_opt.meta.initial_rule import started_from
from nfn_opt.meta.logs import RunLog, read_csv
from nfn_opt.meta.run import Run
from nfn_opt.meta.run_folder import RunFolder
from nfn_opt.optim import save_rule

DRAW_EVERY = 60.0
"""Seconds between two drawings of the picture, at least."""


class Evaluations:
    """Evaluates a run; all processes call each method together, and the main one writes.

    Args:
        run: The run.
        folder: Its files.
        command: How the run was started.
    """

    def __init__(self, run: Run, folder: RunFolder, command: str) -> None:
        self.run, self.folder, self.command = run, folder, command
        self._started_from = started_from(run.config)
        self._latest: tuple[int, dict[str, Curves]] | None = None
        self._adam: dict[str, Tuned] | None = None
        self._drawn = -math.inf

    def curves(self) -> dict[str, Curves]:
        """How the rule trains on each held-out task."""
        if self._latest is None or self._latest[0] != self.run.step:
            self._latest = self.run.step, self.run.evaluate()
        return self._latest[1]

    def adam(self) -> dict[str, Tuned]:
        """The same with tuned Adam; computed once for a run, and empty if the configuration leaves it out."""
        if not self.run.config.compare_with_adam:
            return {}
        if self._adam is None:
            self._adam = self.run.processes.shared(self._stored())
        if self._adam is None:
            self._adam = self.run.adam()
            if self.run.processes.main:
                save_baseline(self.folder.adam, self._adam)
        return self._adam

    def log(self, log: RunLog | None, bar: tqdm) -> None:
        """Evaluate, log, keep the rule, and draw if the last picture is some time ago."""
        curves, adam = self.curves(), self.adam()
        if log is None:
            return
        for name, one in curves.items():
            row = {
                "step": self.run.step,
                "task": name,
                "final_loss": float(one.final.mean()),
                "final_loss_std": one.spread,
                "failed": int(one.failed.sum()),
            }
            log.evaluation(row)
        if not self.run.config.quiet:
            bar.write(f"outer step {self.run.step}: {_summary(curves, adam)}")
        self.save(self.folder.snapshot(self.run.step), {})
        if time.monotonic() - self._drawn > DRAW_EVERY:
            self.draw()

    def save(self, path: Any, scores: Mapping[str, Any]) -> None:
        """Write the rule as it is now."""
        record = {
            "command": self.command,
            "scores": dict(scores),
            "outer_steps": self.run.step,
            "meta_training": self.run.config.record(),
        }
        if self._started_from is not None:
            record["started_from"] = self._started_from
        save_rule(self.run.outer.trained, path, record)

    def draw(self) -> None:
        """Draw the run so far."""
        self._drawn = time.monotonic()
        rows = read_csv(self.folder.train_log)
        meta_losses = [(int(row["step"]), float(row["meta_loss"])) for row in rows]
        evaluations: dict[str, list[tuple[int, float]]] = {}
        for row in read_csv(self.folder.evaluation_log):
            evaluations.setdefault(row["task"], []).append((int(row["step"]), float(row["final_loss"])))
        draw_curves(self.folder.curves, meta_losses, evaluations, self.curves(), self.adam())

    def metrics(self) -> dict[str, float | None]:
        """Scores on each held-out task, and counters of the run."""
        curves, adam = self.curves(), self.adam()
        metrics: dict[str, float] = {}
        for name, one in curves.items():
            metrics |= {
                f"{name}/final_loss": float(one.final.mean()),
                f"{name}/final_loss_std": one.spread,
                f"{name}/failed": int(one.failed.sum()),
            }
            if name in adam:
                best = adam[name].best_curves
                metrics |= {
                    f"{name}/adam_final_loss": float(best.final.mean()),
                    f"{name}/adam_final_loss_std": best.spread,
                    f"{name}/adam_lr": adam[name].best,
                }
        run = self.run
        metrics |= {
            "outer_steps": run.step,
            "inner_steps_per_s": round(run.updates / run.seconds, 1) if run.seconds else math.nan,
            "dropped": int(run.counts[:, 1].sum()),
            "left_out": run.left_out,
            "skipped": run.skipped,
        }
        return {key: value if math.isfinite(value) else None for key, value in metrics.items()}

    def _stored(self) -> dict[str, Tuned] | None:
        """Adam's curves of an earlier sitting."""
        if not self.run.processes.main or not self.folder.adam.exists():
            return None
        adam = load_baseline(self.folder.adam)
        return adam if list(adam) == [source.name for source in self.run.held_out] else None


def _summary(curves: Mapping[str, Curves], adam: Mapping[str, Tuned]) -> str:
    if len(curves) == 1:
        ((name, one),) = curves.items()
        loss = f"{float(one.final.mean()):.4g} +- {one.spread:.2g} ({len(one.final)} seeds)"
        return f"training on held-out {name} ends at loss {loss}"
    if not adam:
        losses = ", ".join(f"{name} {one.score:.4g}" for name, one in curves.items())
        return f"training on held-out tasks ends at {losses}"
    pairs = [(one.score, adam[name].best_curves.score) for name, one in curves.items()]
    positive = [rule / other for rule, other in pairs if 0 < rule < math.inf and 0 < other < math.inf]
    ratio = f"{statistics.geometric_mean(positive):.3f}" if positive else "-"
    wins = sum(rule < other for rule, other in pairs)
    return f"held-out final loss {ratio} times tuned Adam's (geometric mean), lower on {wins} of {len(pairs)} tasks"
