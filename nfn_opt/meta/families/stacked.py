"""Running many networks of one architecture at once, each on its own inputs: batched products by layer type."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nfn_opt.meta.families.modules import Sine

_ELEMENTWISE = (nn.ReLU, nn.Tanh, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Identity, Sine)


@functools.singledispatch
def run_stacked(module: nn.Module, x: Tensor, params: Mapping[str, Tensor], prefix: str = "") -> Tensor:
    """Outputs of ``n`` networks with the architecture of ``module``.

    The layers that are registered here and in the modules beside it compute all networks in one product each;
    any other one runs under ``vmap``, which is right, and slower for most. Register layers of your own with
    ``run_stacked.register(MyLayer)``.

    Args:
        module: The architecture; its own parameters are not read.
        x: Inputs of each network, shape (n, B, ...).
        params: Parameters, ``{name: (n, *shape)}``.
        prefix: What the names of this module's parameters start with in ``params``: "" or ``"layers.0."``.

    Returns:
        Outputs, shape (n, B, ...).

    Example:
        >>> from nfn_opt.meta import default_init
        >>> network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        >>> params = default_init(network, torch.Generator().manual_seed(0), 5)
        >>> run_stacked(network, torch.zeros(5, 7, 3), params).shape
        torch.Size([5, 7, 2])
    """
    own = {name: params[prefix + name] for name, _ in module.named_parameters()}

    def one(weights: dict[str, Tensor], inputs: Tensor) -> Tensor:
        return torch.func.functional_call(module, weights, (inputs,))

    if not own:
        return torch.func.vmap(module)(x)
    return torch.func.vmap(one)(own, x)


@run_stacked.register
def _sequential(module: nn.Sequential, x: Tensor, params: Mapping[str, Tensor], prefix: str = "") -> Tensor:
    for name, child in module.named_children():
        x = run_stacked(child, x, params, f"{prefix}{name}.")
    return x


def _elementwise(module: nn.Module, x: Tensor, params: Mapping[str, Tensor], prefix: str = "") -> Tensor:
    return module(x)


for _kind in _ELEMENTWISE:
    run_stacked.register(_kind, _elementwise)


@run_stacked.register
def _flatten(module: nn.Flatten, x: Tensor, params: Mapping[str, Tensor], prefix: str = "") -> Tensor:
    first, last = (axis + 1 if axis >= 0 else axis for axis in (module.start_dim, module.end_dim))
    return x.flatten(first, last)


@run_stacked.register
def _unflatten(module: nn.Unflatten, x: Tensor, params: Mapping[str, Tensor], prefix: str = "") -> Tensor:
    axis = int(module.dim)
    sizes = tuple(int(size) for size in module.unflattened_size)
    return x.unflatten(axis + 1 if axis >= 0 else axis, sizes)


@run_stacked.register
def _linear(module: nn.Linear, x: Tensor, params: Mapping[str, Tensor], prefix: str = "") -> Tensor:
    weight = params[f"{prefix}weight"].transpose(1, 2)
    flat = x.reshape(len(x), -1, x.shape[-1])
    if module.bias is None:
        y = torch.bmm(flat, weight)
    else:
        y = torch.baddbmm(params[f"{prefix}bias"].unsqueeze(1), flat, weight)
    return y.view(*x.shape[:-1], y.shape[-1])


@run_stacked.register
def _embedding(module: nn.Embedding, x: Tensor, params: Mapping[str, Tensor], prefix: str = "") -> Tensor:
    """Rows picked by a product with ones and zeros.

    For the small vocabularies of the families that takes no longer than looking them up, and its gradient is a
    product, too: compiled by PyTorch 2.13, the gradient of a lookup that is read twice was found to be lost.
    """
    weight = params[f"{prefix}weight"]
    ones = x.flatten(1).unsqueeze(-1) == torch.arange(weight.shape[1], device=x.device)
    return torch.bmm(ones.to(weight.dtype), weight).unflatten(1, x.shape[1:])


@run_stacked.register
def _conv2d(module: nn.Conv2d, x: Tensor, params: Mapping[str, Tensor], prefix: str = "") -> Tensor:
    """One grouped convolution; activations lie as (B, n, C, H, W) in memory, which makes the views free."""
    if isinstance(module.padding, str) or module.padding_mode != "zeros":
        raise NotImplementedError(
            f"a convolution with padding={module.padding!r} and padding_mode={module.padding_mode!r} cannot "
            "be stacked; give the number of zeros"
        )
    n = len(x)
    bias = None if module.bias is None else params[f"{prefix}bias"].flatten()
    y = F.conv2d(
        x.transpose(0, 1).flatten(1, 2),
        params[f"{prefix}weight"].flatten(0, 1),
        bias,
        module.stride,
        module.padding,
        module.dilation,
        n * module.groups,
    )
    return y.unflatten(1, (n, -1)).transpose(0, 1)


@run_stacked.register
def _group_norm(module: nn.GroupNorm, x: Tensor, params: Mapping[str, Tensor], prefix: str = "") -> Tensor:
    weight, bias = (params[f"{prefix}{part}"].flatten() if module.affine else None for part in _AFFINE)
    flat = x.transpose(0, 1).flatten(1, 2)
    y = F.group_norm(flat, len(x) * module.num_groups, weight, bias, module.eps)
    return y.unflatten(1, (len(x), -1)).transpose(0, 1)


@run_stacked.register
def _layer_norm(module: nn.LayerNorm, x: Tensor, params: Mapping[str, Tensor], prefix: str = "") -> Tensor:
    y = F.layer_norm(x, module.normalized_shape, None, None, module.eps)
    middle = (1,) * (x.dim() - 1 - len(module.normalized_shape))
    if module.weight is not None:
        weight = params[f"{prefix}weight"]
        y = y * weight.view(len(x), *middle, *weight.shape[1:])
    if module.bias is not None:
        bias = params[f"{prefix}bias"]
        y = y + bias.view(len(x), *middle, *bias.shape[1:])
    return y


@run_stacked.register
def _mean_pool(
    module: nn.AdaptiveAvgPool2d, x: Tensor, params: Mapping[str, Tensor], prefix: str = ""
) -> Tensor:
    if module.output_size not in (1, (1, 1)):
        return torch.func.vmap(module)(x)
    return x.mean((-2, -1), keepdim=True)


@run_stacked.register
def _upsample(module: nn.Upsample, x: Tensor, params: Mapping[str, Tensor], prefix: str = "") -> Tensor:
    return module(x.transpose(0, 1).flatten(1, 2)).unflatten(1, (len(x), -1)).transpose(0, 1)


_AFFINE = ("weight", "bias")
