"""Predicted returns: what a policy earns, from its weights alone."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from nfn_opt.data.policies.architecture import Policy, PolicyArchitecture
from nfn_opt.data.policies.rollouts import check_params
from nfn_opt.data.zoos.zoo import Zoo
from nfn_opt.predictors import NetworkGroup, Predictor, PredictorConfig, kendall_tau, permute_each
from nfn_opt.training import TrainingConfig, train
from nfn_opt.weight_space import WeightSpace

__all__ = ["DecidingPolicy", "ReturnPredictor", "ReturnScale", "flip_signs", "train_return_predictor"]


class ReturnScale(nn.Module):
    """Returns as shares of the training policies that they beat, and back.

    Returns crowd (a solved environment gives many the same), so that differences that matter are tiny beside others.
    Shares are evenly spread. Between the training policies' returns the map is linear, outside it ends.

    Args:
        count: Number of returns that it is fitted to.

    Example:
        >>> scale = ReturnScale(3)
        >>> scale.fit(torch.tensor([10.0, 500.0, 20.0]))
        >>> scale.scores(torch.tensor([10.0, 15.0, 500.0])).tolist()
        [0.0, 0.25, 1.0]
        >>> scale.returns(torch.tensor([0.25, 2.0])).tolist()
        [15.0, 500.0]
    """

    knots: Tensor

    def __init__(self, count: int) -> None:
        super().__init__()
        self.register_buffer("knots", torch.linspace(0, 1, count))

    def fit(self, returns: Tensor) -> None:
        """Take the returns of the training policies, shape (count,)."""
        self.knots.copy_(returns.sort().values)

    def scores(self, returns: Tensor) -> Tensor:
        """Shares in [0, 1] of returns, any shape; the middle of those that are equal."""
        returns = returns.to(self.knots).contiguous()
        left = torch.searchsorted(self.knots, returns)
        right = torch.searchsorted(self.knots, returns, right=True)
        last = len(self.knots) - 1
        low, high = (left - 1).clamp(0, last), left.clamp(0, last)
        width = (self.knots[high] - self.knots[low]).clamp_min(torch.finfo(self.knots.dtype).tiny)
        between = low + ((returns - self.knots[low]) / width).clamp(0, 1) * (high - low)
        position = torch.where(right > left, (left + right - 1) / 2, between)
        return position / max(last, 1)

    def returns(self, scores: Tensor) -> Tensor:
        """Returns of shares, any shape."""
        position = scores.clamp(0, 1) * (len(self.knots) - 1)
        low = position.floor().long()
        return torch.lerp(self.knots[low], self.knots[position.ceil().long()], position - low)


class DecidingPolicy(Policy):
    """A policy whose outputs are decisions, softened so that they have a derivative.

    Of scores only their differences decide, of actions only what lies within the bounds: outputs are the tanh of
    scores minus their mean, or of actions.

    Args:
        architecture: What it is.
    """

    def __init__(self, architecture: PolicyArchitecture) -> None:
        super().__init__(architecture)
        self.discrete = architecture.head == "discrete"

    def forward(self, observations: Tensor) -> Tensor:
        """Decisions in (-1, 1), shape (B, outputs), for observations (B, observations)."""
        outputs = super().forward(observations)
        return (outputs - outputs.mean(-1, keepdim=True) if self.discrete else outputs).tanh()


class ReturnPredictor(nn.Module):
    """A predictor of shares, with the scale that makes them returns.

    Args:
        architecture: The policies.
        config: What the predictor is made of; its target is ``"score"``.
        count: Number of training policies.
        probes: For kind ``"probing"``, observations at which policies are first asked for decisions, shape
            (P, observations), such as those that they visit; normal ones if not given. They are trained.
        generator: Source of the initial weights.

    Attributes:
        architecture: The policies.
        predictor: Gives logits of shares.
        scale: Between shares and returns.

    Example:
        >>> architecture = PolicyArchitecture(observations=4, outputs=2)
        >>> predictor = ReturnPredictor(architecture, PredictorConfig(kind="hnp"), 10)
        >>> params = {name: torch.randn(3, *shape) for name, shape in architecture.parameter_shapes.items()}
        >>> predictor(params).shape, predictor.returns(params).shape
        (torch.Size([3]), torch.Size([3]))
    """

    def __init__(
        self,
        architecture: PolicyArchitecture,
        config: PredictorConfig,
        count: int,
        *,
        probes: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        generator = generator or torch.Generator().manual_seed(0)
        self.architecture = architecture
        network = DecidingPolicy(architecture)
        space = WeightSpace.from_module(
            network, torch.zeros(1, architecture.observations), symmetry=config.symmetry
        )
        if config.kind == "probing" and probes is None:
            probes = torch.randn(config.probes, architecture.observations, generator=generator)
        self.predictor = Predictor(space, config, network=network, probes=probes, generator=generator)
        self.scale = ReturnScale(count)

    def forward(self, params: Mapping[str, Tensor]) -> Tensor:
        """Logits of the predicted shares (B,); they have a gradient."""
        logits: Tensor = self.predictor(params)
        return logits.squeeze(1)

    @torch.no_grad()
    def returns(self, params: Mapping[str, Tensor]) -> Tensor:
        """Predicted mean returns (B,) of policies ``{name: (B, *shape)}``, in evaluation mode.

        Raises:
            ValueError: If weights do not fit, or are not finite.
        """
        check_params(params, self.architecture)
        return self.scale.returns(self.predictor.predict(params).squeeze(1))


def flip_signs(params: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """Flip the signs of hidden neurons at random: as tanh is odd, a policy computes the same as before.

    Args:
        params: Weights of B policies ``{name: (B, *shape)}``.
        generator: Source of the signs.

    Example:
        >>> from nfn_opt.data.policies.architecture import stacked_outputs
        >>> architecture = PolicyArchitecture(observations=3, outputs=1)
        >>> params = {name: torch.randn(2, *shape) for name, shape in architecture.parameter_shapes.items()}
        >>> flipped, seen = flip_signs(params, torch.Generator().manual_seed(0)), torch.randn(2, 5, 3)
        >>> torch.allclose(stacked_outputs(flipped, seen), stacked_outputs(params, seen), atol=1e-6)
        True
    """
    flipped, last = dict(params), len(params) // 2 - 1
    for number in range(last):
        bias = flipped[f"layers.{number}.bias"]
        signs = (torch.randint(2, bias.shape, generator=generator) * 2 - 1).to(bias)
        flipped[f"layers.{number}.bias"] = bias * signs
        flipped[f"layers.{number}.weight"] = flipped[f"layers.{number}.weight"] * signs.unsqueeze(2)
        behind = f"layers.{number + 1}.weight"
        flipped[behind] = flipped[behind] * signs.unsqueeze(1)
    return flipped


def train_return_predictor(
    train_zoo: Zoo,
    val_zoo: Zoo,
    *,
    config: PredictorConfig | None = None,
    training: TrainingConfig | None = None,
    probes: Tensor | None = None,
    flip: bool = True,
    folder: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: bool = False,
    prepare: Callable[[ReturnPredictor], object] | None = None,
) -> ReturnPredictor:
    """Train a predictor of the mean return on a zoo of policies.

    It ends with the weights of the largest Kendall's tau on the validation policies, which must come from other
    training runs (:func:`~nfn_opt.data.policies.building.split_runs`).

    Args:
        train_zoo: Policies with the column ``mean_return``.
        val_zoo: Policies of the same architecture.
        config: What the predictor is made of.
        training: How it is trained; its seed is that of the predictor's initial weights too.
        probes: See :class:`ReturnPredictor`.
        flip: Flip the signs of the policies' hidden neurons at random at every step (:func:`flip_signs`).
        folder: See :func:`nfn_opt.training.train`; and so for ``resume`` and ``progress``.
        resume: See there.
        progress: See there.
        prepare: Called with the predictor before the training, to change it in place.

    Raises:
        ValueError: If a zoo has no returns, or the two have different architectures.
    """
    architecture = train_zoo.architecture
    if not isinstance(architecture, PolicyArchitecture) or val_zoo.architecture != architecture:
        raise ValueError(
            f"got {train_zoo!r} and {val_zoo!r}, expected zoos of policies of one architecture; build them with "
            "build_policy_zoo"
        )
    config, training = config or PredictorConfig(), training or TrainingConfig()
    generator = torch.Generator().manual_seed(training.seed)
    model = ReturnPredictor(architecture, config, len(train_zoo), probes=probes, generator=generator)
    if prepare is not None:
        prepare(model)
    model.scale.fit(_returns(train_zoo))
    scores = model.scale.scores(_returns(train_zoo))
    model.predictor.fit([NetworkGroup(train_zoo.params, scores)])
    shuffled = config.kind == "mlp-augmented"

    def loss(batch: Mapping[str, Tensor], draw: torch.Generator) -> Tensor:
        params = {name: batch[name] for name in architecture.parameter_shapes}
        params = flip_signs(params, draw) if flip else params
        params = permute_each(params, model.predictor.space, draw) if shuffled else params
        return model.predictor.loss(model.predictor(params), batch["score"])

    train(
        model,
        {**train_zoo.params, "score": scores},
        loss,
        config=training,
        score=lambda: kendall_tau(model.returns(val_zoo.params).double(), _returns(val_zoo)),
        folder=folder,
        resume=resume,
        progress=progress,
    )
    return model.eval()


def _returns(zoo: Zoo) -> Tensor:
    column = zoo.table.get("mean_return")
    if not isinstance(column, Tensor):
        raise ValueError(f"{zoo!r} has not the column 'mean_return', of numbers; it has {list(zoo.table)}")
    return column.double()
