"""Policies: small MLPs from observations to actions, one description and an ordinary module of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, ClassVar, Literal

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn

from nfn_opt.data.zoos.architecture import ZooArchitecture

__all__ = ["Head", "Policy", "PolicyArchitecture", "check_spaces", "stacked_outputs"]

Head = Literal["discrete", "continuous"]
"""``"discrete"``: a score for each action, the largest is taken. ``"continuous"``: actions, clipped to their bounds."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicyArchitecture(ZooArchitecture):
    """Linear layers with tanh between them: observations in, scores of actions or continuous actions out.

    Attributes:
        observations: Numbers that the policy sees.
        outputs: Numbers that it puts out: one a discrete action, or one for each dimension of a continuous action.
        hidden: Widths of the hidden layers.
        head: What the outputs are.

    Raises:
        ValueError: If a number is below 1, there is no hidden layer, or there is no such head.

    Example:
        >>> PolicyArchitecture.of_environment("CartPole-v1")
        PolicyArchitecture(observations=4, outputs=2, hidden=(16, 16), head='discrete')
        >>> _.parameters
        386
    """

    kind: ClassVar[str] = "policy"
    scores: ClassVar[tuple[str, ...]] = ("mean_return",)

    observations: int
    outputs: int
    hidden: tuple[int, ...] = (16, 16)
    head: Head = "discrete"

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", tuple(self.hidden))
        if not self.hidden or min(self.sizes) < 1:
            raise ValueError(f"a policy needs at least one hidden layer, and no number below 1, got {self}")
        if self.head not in ("discrete", "continuous"):
            raise ValueError(f"head is {self.head!r}, expected 'discrete' or 'continuous'")

    @classmethod
    def of_environment(cls, environment: str, hidden: tuple[int, ...] = (16, 16)) -> PolicyArchitecture:
        """The architecture whose inputs and outputs fit an environment of gymnasium.

        Args:
            environment: Its name, such as "CartPole-v1".
            hidden: Widths of the hidden layers.

        Raises:
            ValueError: If its observations are no vector, or its actions neither discrete nor a vector.
        """
        seen, acted = _spaces(environment)
        if isinstance(acted, gymnasium.spaces.Discrete):
            return cls(observations=seen, outputs=int(acted.n), hidden=hidden)
        return cls(observations=seen, outputs=acted.shape[0], hidden=hidden, head="continuous")

    @property
    def sizes(self) -> tuple[int, ...]:
        """Widths from observations to outputs."""
        return (self.observations, *self.hidden, self.outputs)

    @property
    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every parameter, by the names of `Policy`."""
        shapes: dict[str, tuple[int, ...]] = {}
        for number, (into, out) in enumerate(pairwise(self.sizes)):
            shapes |= {f"layers.{number}.weight": (out, into), f"layers.{number}.bias": (out,)}
        return shapes

    @property
    def summary(self) -> str:
        """Kind and widths, such as "policy 4-16-16-2"."""
        return "policy " + "-".join(map(str, self.sizes))

    def module(self, row: Mapping[str, Any] | None = None) -> Policy:
        """A policy; a row of a zoo's table says nothing more of it."""
        return Policy(self)

    def example_inputs(self) -> tuple[Tensor, ...]:
        """One observation."""
        return (torch.zeros(1, self.observations),)

    def range_text(self, scores: Tensor) -> str:
        """The range of mean returns in words."""
        return f"mean return {scores.min():.1f} to {scores.max():.1f}"


class Policy(nn.Module):
    """A policy as an ordinary module.

    Args:
        architecture: What it is.

    Example:
        >>> policy = Policy(PolicyArchitecture(observations=4, outputs=2))
        >>> policy(torch.zeros(5, 4)).shape
        torch.Size([5, 2])
    """

    def __init__(self, architecture: PolicyArchitecture) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(into, out) for into, out in pairwise(architecture.sizes))

    def forward(self, observations: Tensor) -> Tensor:
        """Outputs of shape (B, outputs) for observations (B, observations)."""
        for number, layer in enumerate(self.layers):
            observations = layer(observations.tanh() if number else observations)
        return observations


def stacked_outputs(params: Mapping[str, Tensor], observations: Tensor) -> Tensor:
    """Outputs of N policies, each for its own observations, in one pass.

    Args:
        params: By the names of `Policy`, shape (N, *shape).
        observations: Shape (N, B, observations).

    Returns:
        Shape (N, B, outputs).
    """
    for number in range(len(params) // 2):
        weight, bias = params[f"layers.{number}.weight"], params[f"layers.{number}.bias"]
        seen = observations.tanh() if number else observations
        observations = torch.baddbmm(bias.unsqueeze(1), seen, weight.transpose(1, 2))
    return observations


def check_spaces(architecture: PolicyArchitecture, environment: str) -> None:
    """Refuse an environment that a policy does not fit.

    Raises:
        ValueError: If the spaces differ; the message says how.
    """
    fitting = PolicyArchitecture.of_environment(environment, architecture.hidden)
    if fitting != architecture:
        raise ValueError(
            f"the policies do not fit {environment}: they take {_words(architecture)}, expected {_words(fitting)}; "
            f"give the environment that they were made for, or make policies with "
            f"PolicyArchitecture.of_environment({environment!r})"
        )


def _words(architecture: PolicyArchitecture) -> str:
    kind = "scores of actions" if architecture.head == "discrete" else "continuous actions"
    return f"{architecture.observations} observations and give {architecture.outputs} {kind}"


def _spaces(environment: str) -> tuple[int, gymnasium.spaces.Discrete | gymnasium.spaces.Box]:
    """Length of the observations, and the space of the actions."""
    try:
        made = gymnasium.make(environment)
    except gymnasium.error.Error as error:
        raise ValueError(f"gymnasium cannot make the environment {environment!r}: {error}") from error
    with made:
        seen, acted = made.observation_space, made.action_space
    if not isinstance(seen, gymnasium.spaces.Box) or len(seen.shape) != 1:
        raise ValueError(
            f"{environment} has observations {seen}, expected a Box of one dimension; wrap the environment so that it "
            "gives vectors (gymnasium.wrappers.FlattenObservation), and register that"
        )
    if isinstance(acted, gymnasium.spaces.Discrete) and acted.start == 0:
        return seen.shape[0], acted
    if (
        isinstance(acted, gymnasium.spaces.Box)
        and len(acted.shape) == 1
        and np.issubdtype(acted.dtype, np.floating)
    ):
        return seen.shape[0], acted
    raise ValueError(
        f"{environment} has actions {acted}, expected a Discrete that starts at 0, or a Box of one dimension; "
        "choose another environment, or wrap it"
    )
