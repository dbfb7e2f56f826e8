"""Training policies of control environments by evolution strategies: an inner problem without derivative."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nfn_opt.meta.classification import Activation
from nfn_opt.meta.classification import _activation as activation_module
from nfn_opt.meta.families.control import Environment
from nfn_opt.meta.families.initializers import Initializer
from nfn_opt.meta.families.networks import normed_mlp
from nfn_opt.meta.tasks import Params, Task
from nfn_opt.weight_space import WeightSpace

_LOOK = 5
"""Steps between two looks at whether every episode has ended."""


class PolicyTask(Task):
    r"""A policy in a control environment; the gradient is estimated by antithetic evolution strategies.

    .. math:: g = \frac{1}{2 \sigma P} \sum_{j=1}^{P} \left[ L(w + \sigma \epsilon_j) - L(w - \sigma \epsilon_j)
              \right] \epsilon_j, \qquad \epsilon_j \sim \mathcal{N}(0, 1)

    (arXiv:1703.03864), where :math:`L` is the environment's loss, averaged over the minibatch's initial states,
    which are the same for all perturbations. Environments and policies are deterministic, so that everything
    random is in the minibatch. Rollouts run eagerly and cannot be traced.

    Args:
        environment: The environment.
        hidden: Widths of the policy's hidden layers.
        activation: Of the hidden layers.
        horizon: Largest number of steps of an episode.
        pairs: Pairs of perturbations of each network, P.
        episodes: Initial states in a minibatch.
        sigma: Deviation of the perturbations.
        evaluated: Number of initial states of :meth:`full_losses`.
        evaluation_seed: Seed of their choice.
        initializer: How parameters start.
        device: Where to compute.
        dtype: Floating-point type.

    Raises:
        ValueError: If a number is not positive.

    Example:
        >>> from nfn_opt.meta.families.control import CartPole
        >>> task = PolicyTask(CartPole(), horizon=20)
        >>> generator = torch.Generator().manual_seed(0)
        >>> losses, grads = task.losses_and_grads(task.init(generator, 3), task.batch(generator, 3))
        >>> losses.shape, grads["0.weight"].shape
        (torch.Size([3]), torch.Size([3, 8, 4]))
    """

    traceable = False

    def __init__(
        self,
        environment: Environment,
        *,
        hidden: Sequence[int] = (8,),
        activation: Activation = "tanh",
        horizon: int = 100,
        pairs: int = 4,
        episodes: int = 2,
        sigma: float = 0.2,
        evaluated: int = 32,
        evaluation_seed: int = 0,
        initializer: Initializer | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if min(horizon, pairs, episodes, evaluated) < 1 or not sigma > 0:
            raise ValueError(
                f"got horizon={horizon}, pairs={pairs}, episodes={episodes}, evaluated={evaluated}, "
                f"sigma={sigma}; expected all of them positive"
            )
        self.environment, self.horizon = environment, horizon
        self.pairs, self.episodes, self.sigma = pairs, episodes, sigma
        self.device, self.dtype = torch.device(device), dtype
        self.network = normed_mlp((environment.observations, *hidden, environment.outputs), activation)
        self._activation = activation_module(activation)
        self.initializer = initializer or Initializer()
        self._space = WeightSpace.from_module(
            self.network, torch.zeros(1, environment.observations, device="meta")
        )
        generator = torch.Generator().manual_seed(evaluation_seed)
        self._evaluation = environment.reset(generator, (evaluated,)).to(device, dtype)

    @property
    def space(self) -> WeightSpace:
        """See :class:`Task`."""
        return self._space

    def init(self, generator: torch.Generator, n: int) -> Params:
        """Drawn by the initializer."""
        return self.initializer(self.network, generator, n, dtype=self.dtype, device=self.device)

    def batch(self, generator: torch.Generator, n: int) -> dict[str, Any]:
        """Initial states (n, episodes, variables) and perturbations ``{name: (n, pairs, *shape)}``."""
        states = self.environment.reset(generator, (n, self.episodes))
        noise = {
            name: torch.randn(
                (n, self.pairs, *p.shape), generator=generator, dtype=self.dtype, device=generator.device
            ).to(self.device)
            for name, p in self.network.named_parameters()
        }
        return {"states": states.to(self.device, self.dtype), "noise": noise}

    def loss(self, params: Mapping[str, Tensor], batch: dict[str, Any]) -> Tensor:
        """The environment's loss of one policy, without perturbation; it has no derivative."""
        params = {name: p.unsqueeze(0) for name, p in params.items()}
        return self._rollout(params, batch["states"].unsqueeze(0))[0]

    def losses(self, params: Mapping[str, Tensor], batch: dict[str, Any]) -> Tensor:
        """The environment's loss of each policy, without perturbation; it has no derivative."""
        return self._rollout(params, batch["states"])

    def losses_and_grads(self, params: Mapping[str, Tensor], batch: Any) -> tuple[Tensor, Params]:
        """Mean loss of the perturbed policies, whose gradient it is, and the estimate of the gradient."""
        n = len(batch["states"])
        noise: Params = batch["noise"]
        perturbed = {
            name: torch.stack((p.unsqueeze(1) + self.sigma * noise[name], p.unsqueeze(1) - self.sigma * noise[name]), 1)
            .flatten(0, 2)
            .detach()
            for name, p in params.items()
        }  # fmt: skip
        states = batch["states"].repeat_interleave(2 * self.pairs, 0)
        plus, minus = self._rollout(perturbed, states).view(n, 2, self.pairs).unbind(1)
        weights = (plus - minus).unsqueeze(1) / (2 * self.sigma * self.pairs)
        grads = {
            name: torch.bmm(weights, noise[name].flatten(2)).view(n, *noise[name].shape[2:])
            for name in params
        }
        return (plus + minus).mean(1) / 2, grads

    def full_losses(self, params: Mapping[str, Tensor]) -> Tensor:
        """The environment's loss of each policy over a fixed set of initial states."""
        n = len(next(iter(params.values())))
        return self._rollout(params, self._evaluation.expand(n, *self._evaluation.shape))

    @torch.no_grad()
    def _rollout(self, params: Mapping[str, Tensor], states: Tensor) -> Tensor:
        """Losses (m,) of m policies, averaged over episodes that start from states (m, E, variables)."""
        environment, layers = self.environment, self._policies_last(params)
        state = tuple(states.permute(2, 1, 0).contiguous().unbind(0))
        returns, alive = torch.zeros_like(state[0]), torch.ones_like(state[0])
        for t in range(self.horizon):
            x = environment.observe(state)
            for depth, (weight, bias) in enumerate(layers):
                x = self._activation(x) if depth else x
                x = (weight * x).sum(1) + bias
            state, reward, ended = environment.step(state, environment.act(x))
            returns = torch.addcmul(returns, reward, alive)
            if ended is not None:
                alive = alive * ~ended
                if t % _LOOK == _LOOK - 1 and not alive.any():
                    break
        return environment.loss(returns, self.horizon).mean(0)

    def _policies_last(self, params: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Weights (out, in, 1, m) and biases (out, 1, m) of each layer.

        The networks are so small that products of matrices take longer than products and sums over all of them.
        """
        found = []
        for place, layer in self.network.named_children():
            if isinstance(layer, nn.Linear):
                weight = params[f"{place}.weight"].permute(1, 2, 0).unsqueeze(2).contiguous()
                found.append((weight, params[f"{place}.bias"].t().unsqueeze(1).contiguous()))
        return found
