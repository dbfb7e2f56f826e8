"""Families of character models and of policies."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from nfn_opt.meta.families.base import TaskFamily, choose, integer, log_uniform
from nfn_opt.meta.families.control import ENVIRONMENTS
from nfn_opt.meta.families.initializers import Initializer
from nfn_opt.meta.families.modules import CharRecurrent, CharTransformer
from nfn_opt.meta.families.network_tasks import CharTask
from nfn_opt.meta.families.policies import PolicyTask
from nfn_opt.meta.families.sources import DataSources
from nfn_opt.meta.tasks import Task


class RecurrentFamily(TaskFamily):
    """GRU, LSTM and simple recurrent character models of width 16 to 48, on excerpts of 8 to 24 characters."""

    family = "recurrent"

    def sample(self, generator: torch.Generator) -> Task:
        """See :class:`TaskFamily`."""
        text = self.data.text()
        kind = choose(generator, ("gru", "lstm", "tanh", "relu"))
        embedding, hidden = integer(generator, 8, 24), round(log_uniform(generator, 16, 48))
        with torch.device("meta"):
            network = CharRecurrent(len(text.alphabet), embedding, hidden, kind)
        return CharTask(
            network,
            text,
            length=integer(generator, 8, 24),
            batch_size=round(log_uniform(generator, 4, 32)),
            initializer=Initializer(kind="irnn" if kind == "relu" else "default"),
        )


class TransformerFamily(TaskFamily):
    """Causal Transformer character models: 1 or 2 blocks of width 16 to 48, 1 to 4 heads."""

    family = "transformer"

    def sample(self, generator: torch.Generator) -> Task:
        """See :class:`TaskFamily`."""
        text, length = self.data.text(), integer(generator, 8, 24)
        heads = choose(generator, (1, 2, 4))
        dim = 8 * integer(generator, 2, 6)
        with torch.device("meta"):
            network = CharTransformer(
                len(text.alphabet), length, dim=dim, heads=heads, blocks=integer(generator, 1, 2)
            )
        initializer = Initializer(kind="gpt" if integer(generator, 0, 1) else "default")
        batch_size = round(log_uniform(generator, 4, 16))
        return CharTask(network, text, length=length, batch_size=batch_size, initializer=initializer)


class PolicyFamily(TaskFamily):
    """Small policies of gymnasium's classic control environments, by evolution strategies.

    Args:
        data: Not needed.
        environments: Names of environments; acrobot takes five times as long as the others.
    """

    family = "policy"

    def __init__(
        self,
        data: DataSources | None = None,
        *,
        environments: Sequence[str] = ("cartpole", "pendulum", "acrobot"),
    ) -> None:
        super().__init__(data)
        unknown = set(environments) - set(ENVIRONMENTS)
        if unknown or not environments:
            raise ValueError(
                f"environments is {tuple(environments)}, expected some of {', '.join(ENVIRONMENTS)}"
            )
        self.environments = tuple(environments)

    def sample(self, generator: torch.Generator) -> Task:
        """See :class:`TaskFamily`."""
        name = choose(generator, self.environments)
        hidden = (integer(generator, 4, 16),) * integer(generator, 1, 2)
        return PolicyTask(
            ENVIRONMENTS[name](),
            hidden=hidden,
            horizon=integer(generator, 60, 120) if name != "acrobot" else 200,
            pairs=choose(generator, (4, 8)),
            sigma=log_uniform(generator, 0.05, 0.3),
        )
