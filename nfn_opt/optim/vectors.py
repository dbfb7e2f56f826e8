r"""The update of biases, norms and other vectors in Celo2: Adam without correction of the start at zero.

.. math:: u = -\alpha \, m (v + 10^{-8})^{-1/2}

with the running means of the gradient as it is, not clipped (step 10 of Celo2, arXiv:2602.19142).
"""

from __future__ import annotations

from torch import Tensor

from nfn_opt.optim.accumulators import Accumulators, TensorStates
from nfn_opt.optim.features import ENTRY, Inputs
from nfn_opt.optim.layout import Layout
from nfn_opt.optim.rule import Tensors


class VectorAdam:
    """The direction :math:`m (v + 10^{-8})^{-1/2}` of each tensor.

    Args:
        momentum_decay: Decay of :math:`m`.
        second_moment_decay: Decay of :math:`v`.
    """

    def __init__(self, momentum_decay: float, second_moment_decay: float) -> None:
        self.accumulators = Accumulators(
            momentum_decays=(momentum_decay,), second_moment_decay=second_moment_decay, factor_decays=()
        )

    def init(self, layout: Layout, params: Tensors) -> TensorStates:
        """Running means of zero."""
        return self.accumulators.init(layout, params)

    def directions(
        self, layout: Layout, params: Tensors, grads: Tensors, states: TensorStates
    ) -> tuple[dict[str, Tensor], TensorStates]:
        """Directions in stored shapes, and the new running means."""
        gradient = layout.flatten(grads)
        means = self.accumulators.update(layout, gradient, states)
        direction = ENTRY["scaled_momentum"](Inputs(layout.flatten(params), gradient, means))
        parts = zip(layout.segments, layout.split(direction), strict=True)
        return {one.name: part.reshape(one.spec.shape) for one, part in parts}, means.state()
