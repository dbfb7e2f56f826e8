"""PyTorch's default initial parameters, drawn for many networks at once from a generator."""

from __future__ import annotations

from math import prod, sqrt

import torch
from torch import Tensor, nn

_LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.LayerNorm, nn.GroupNorm)


def default_init(
    module: nn.Module,
    generator: torch.Generator,
    n: int,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> dict[str, Tensor]:
    r"""Draw the initial parameters of ``n`` networks.

    Weights and biases of linear and convolutional layers are uniform in
    :math:`\pm 1/\sqrt{\text{fan in}}`, those of recurrent layers in :math:`\pm 1/\sqrt{\text{hidden size}}`,
    embeddings are standard normal, normalisations start at scale one and shift zero: the distributions of
    ``reset_parameters`` in PyTorch.

    Args:
        module: The architecture; its own parameters are not read and may be on the meta device.
        generator: Source of randomness; numbers are drawn on its device, then moved.
        n: Number of networks.
        dtype: Floating-point type of the result.
        device: Where the result lives.

    Returns:
        ``{name: (n, *shape)}`` in the order of ``module.named_parameters()``.

    Raises:
        NotImplementedError: If a layer with parameters is of a type whose default is not known here.

    Example:
        >>> params = default_init(nn.Linear(4, 3), torch.Generator().manual_seed(0), 5)
        >>> params["weight"].shape, bool(params["weight"].abs().max() <= 0.5)
        (torch.Size([5, 3, 4]), True)
    """
    drawn: dict[str, Tensor] = {}
    for path, layer in module.named_modules():
        for name, parameter in layer.named_parameters(prefix=path, recurse=False):
            shape = (n, *parameter.shape)
            if isinstance(layer, _LINEAR):
                bound = 1 / sqrt(prod(layer.weight.shape[1:]))
                tensor = _uniform(shape, bound, generator, dtype)
            elif isinstance(layer, nn.RNNBase):
                tensor = _uniform(shape, 1 / sqrt(layer.hidden_size), generator, dtype)
            elif isinstance(layer, nn.Embedding) and layer.padding_idx is None:
                tensor = torch.randn(shape, generator=generator, dtype=dtype, device=generator.device)
            elif isinstance(layer, _NORMS):
                tensor = torch.full(shape, float(name.endswith("weight")), dtype=dtype)
            else:
                raise NotImplementedError(
                    f"no initial distribution is known for {name!r} of a {type(layer).__name__}; "
                    "use linear, convolution, recurrent, embedding and normalisation layers only, or "
                    "override the task's init"
                )
            drawn[name] = tensor.to(device)
    return {name: drawn[name] for name, _ in module.named_parameters()}


def _uniform(shape: tuple[int, ...], bound: float, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """Uniform between plus and minus the bound."""
    return (2 * torch.rand(shape, generator=generator, dtype=dtype, device=generator.device) - 1) * bound
