"""The estimator of the outer gradient that a configuration asks for."""

from __future__ import annotations

from typing import Any

from nfn_opt.meta.config import FamilyConfig, InnerConfig, MetaTrainConfig
from nfn_opt.meta.estimators import TruncatedBackprop
from nfn_opt.meta.estimators_es import EvolutionStrategies, PersistentES
from nfn_opt.meta.mixture import Mixture
from nfn_opt.meta.objective import Objective
from nfn_opt.meta.pieces import MetaGradient


def make_estimator(config: MetaTrainConfig, family: FamilyConfig | None = None) -> MetaGradient:
    """The estimator for inner problems of a family.

    Raises:
        ValueError: If the lengths do not fit together.
    """
    inner, family = config.inner, family or FamilyConfig()
    lengths = {
        "tasks": family.networks or inner.tasks,
        "truncation": inner.truncation,
        "shortest_truncation": inner.shortest_truncation,
        "horizon": family.horizon or inner.horizon,
        "shortest_horizon": family.shortest_horizon or inner.shortest_horizon,
        "stagger": inner.stagger,
        "reparametrization": inner.reparametrization(),
        "sensitivity": inner.sensitivity,
    }
    if not inner.mixture:
        return _one(inner.estimator, inner, lengths)
    estimators = tuple(_one(name, inner, lengths) for name in inner.mixture)
    return Mixture(estimators, tuple(float(weight) for weight in inner.mixture.values()))


def _one(name: str, inner: InnerConfig, lengths: dict[str, Any]) -> MetaGradient:
    if name == "backprop":
        return TruncatedBackprop(**lengths, second_order=inner.second_order)
    objective = Objective(measure=inner.measure, cap=inner.cap, floor=inner.floor, emphasis=inner.emphasis)
    kind = {"es": EvolutionStrategies, "pes": PersistentES}[name]
    return kind(**lengths, sigma=inner.sigma, objective=objective, compiled=inner.compile)
