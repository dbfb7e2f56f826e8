"""Networks with what is to be predicted of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor

from nfn_opt.weight_space import WeightSpace

__all__ = ["NetworkGroup", "failed_networks"]


@dataclasses.dataclass(frozen=True, eq=False)
class NetworkGroup:
    """Networks of one architecture.

    Attributes:
        params: Weights ``{name: (N, *shape)}``.
        targets: What is to be predicted, shape (N,) or (N, outputs): scores, values, or numbers of classes.
        inputs: The further numbers that the predictor is given, shape (N, I); None if there are none.
        space: Their weight space; None for the predictor's own.

    Raises:
        ValueError: If they are not N each, or a number is not finite.

    Example:
        >>> group = NetworkGroup({"w": torch.zeros(3, 2)}, torch.tensor([0.1, 0.5, 0.9]))
        >>> len(group), len(group[torch.tensor([0, 2])])
        (3, 2)
    """

    params: Mapping[str, Tensor]
    targets: Tensor
    inputs: Tensor | None = None
    space: WeightSpace | None = None

    def __post_init__(self) -> None:
        counts = {name: len(value) for name, value in self.params.items()}
        counts |= {"inputs": len(self.inputs)} if self.inputs is not None else {}
        wrong = [f"{name} has {count}" for name, count in counts.items() if count != len(self)]
        if wrong or not len(self) or not counts:
            raise ValueError(
                f"{', '.join(wrong) or 'there are no networks'}, expected as many as targets, {len(self)}, and one or "
                "more: one row a network"
            )
        failed = int(failed_networks(self.params).sum())
        if failed or not torch.isfinite(self.targets).all():
            raise ValueError(
                f"{failed} of {len(self)} networks have weights that are not finite, and "
                f"{int((~torch.isfinite(self.targets)).sum())} targets are not, expected finite numbers; leave these "
                "networks out"
            )

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: Tensor) -> NetworkGroup:
        """Some of the networks, by numbers or a boolean mask."""
        return NetworkGroup(
            {name: value[index] for name, value in self.params.items()},
            self.targets[index],
            None if self.inputs is None else self.inputs[index],
            self.space,
        )


def failed_networks(params: Mapping[str, Tensor]) -> Tensor:
    """Which networks ``{name: (N, *shape)}`` have a weight that is not finite, bool, shape (N,)."""
    marks = [~value.isfinite().reshape(len(value), -1).all(1) for value in params.values()]
    return torch.stack(marks).any(0)
