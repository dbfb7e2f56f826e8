"""Moving weight features: pooled readings out of them, and products and small terms into new ones.

Eager code would spend its time on large temporaries: one for every term that is added, and again for every gradient.
Here each large tensor is read once or twice and written once: small terms are first added up and spread over the
output, the product is then added in place, and the gradients take the same way. Where something has to see through
the code (function transforms, compilers, second derivatives) the same sums are formed out of place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nfn_opt.layers.compilation import transformed
from nfn_opt.layers.patterns import Pattern
from nfn_opt.layers.pool import Pool, add_spread, empty, pool, spread, spread_anew

CHUNK = 1 << 23
"""Most entries of a temporary copy: 32 MiB in float32."""


@dataclass(frozen=True)
class Sources:
    """What is read of one parameter.

    Attributes:
        pool: Patterns whose means are taken.
        whole: Whether the features themselves are needed too.
    """

    pool: Pool
    whole: bool


@dataclass(frozen=True)
class Target:
    """What is written to one parameter.

    Attributes:
        shape: ``(*axes, C)``.
        pool: Patterns of the small terms, as their gradients are pooled.
        products: Full patterns of the products.
    """

    shape: tuple[int, ...]
    pool: Pool
    products: tuple[Pattern, ...]

    @property
    def terms(self) -> tuple[Pattern, ...]:
        """Patterns of the small terms."""
        return self.pool.patterns

    @property
    def inputs(self) -> int:
        """How many tensors it takes: the terms, and two factors of each product."""
        return len(self.terms) + 2 * len(self.products)


def _transparent() -> bool:
    """Whether a transform or compiler must see through the code."""
    if transformed():
        return True
    return torch.autograd.forward_ad._current_level >= 0


def mix(features: Tensor, weight: Tensor) -> Tensor:
    """``features @ weight`` as one product of two matrices.

    Where ``vmap`` maps over the weight too, that is one batched product; of features with more axes it would make
    one for each index, with copies of the weight.
    """
    if features.dim() == 2:
        return features @ weight
    return (features.reshape(-1, weight.shape[0]) @ weight).reshape(*features.shape[:-1], weight.shape[1])


def gather(sources: Sequence[Sources], tensors: Sequence[Tensor]) -> list[Tensor]:
    """For every parameter the features, where they are needed whole, and the mean of each pattern.

    Args:
        sources: What is read of each parameter.
        tensors: Features of each, ``(B, *axes, C)``.

    Returns:
        For all parameters in turn: the features if ``whole``, and for each pattern ``(B, *layout, C)`` with size 1
        where an index is free.
    """
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors) and not _transparent():
        return list(_Gather.apply(tuple(sources), *tensors))
    return _gather(sources, tensors)


def _gather(sources: Sequence[Sources], tensors: Sequence[Tensor]) -> list[Tensor]:
    out: list[Tensor] = []
    for source, tensor in zip(sources, tensors, strict=True):
        out += [tensor] if source.whole else []
        out += pool(tensor, source.pool, mean=True)
    return out


class _Gather(torch.autograd.Function):
    """:func:`gather` whose gradient adds what comes back from all readings into one tensor."""

    @staticmethod
    def forward(ctx: Any, sources: tuple[Sources, ...], *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.sources, ctx.shapes = sources, [tensor.shape for tensor in tensors]
        ctx.set_materialize_grads(False)
        return tuple(_gather(sources, tensors))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        place, out = 0, []
        for source, shape, needed in zip(ctx.sources, ctx.shapes, ctx.needs_input_grad[1:], strict=True):
            whole = gradients[place] if source.whole else None
            place += source.whole
            patterns = source.pool.patterns
            pairs = zip(patterns, gradients[place : place + len(patterns)], strict=True)
            place += len(patterns)
            terms = [(p, g * (1.0 / p.count) if p.count > 1 else g) for p, g in pairs if g is not None]
            out.append(_gathered_gradient(whole, terms, shape) if needed else None)
        return None, *out


def _gathered_gradient(
    whole: Tensor | None, terms: list[tuple[Pattern, Tensor]], shape: torch.Size
) -> Tensor | None:
    if not terms:
        return whole
    if torch.is_grad_enabled():
        return spread_anew(terms, whole).expand(shape)
    if whole is not None:  # made by the backward pass of the product, and nobody else's
        return add_spread(whole, terms)
    plain = [term for term in terms if not term[0].diagonal]
    out = spread(plain, shape) if plain else terms[0][1].new_zeros(shape)
    return add_spread(out, [term for term in terms if term[0].diagonal])


def scatter(targets: Sequence[Target], tensors: Sequence[Tensor]) -> list[Tensor]:
    """For every parameter the sum of its small terms and of its products.

    Args:
        targets: What is written to each parameter.
        tensors: For all parameters in turn: for each term ``(B, *layout, C)`` with size 1 where an index is free,
            and for each product the features that are read ``(B, *connected, fold * C)`` and the weight.

    Returns:
        For each parameter ``(B, *axes, C)``.
    """
    device = tensors[0].device.type
    if _transparent():
        return _scatter_anew(targets, tensors)
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    if dtype is not None:
        tensors = [tensor.to(dtype) for tensor in tensors]
    elif any(tensor.dtype != tensors[0].dtype for tensor in tensors):
        return _scatter_anew(targets, tensors)
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return list(_Scatter.apply(tuple(targets), *tensors))
    return _scatter(targets, tensors)


def _scatter_anew(targets: Sequence[Target], tensors: Sequence[Tensor]) -> list[Tensor]:
    """Out of place."""
    out, place = [], 0
    for target in targets:
        given, place = tensors[place : place + target.inputs], place + target.inputs
        terms = list(zip(target.terms, given, strict=False))
        total: Tensor | None = None
        for i, pattern in enumerate(target.products):
            source, weight = given[len(terms) + 2 * i : len(terms) + 2 * i + 2]
            product = pattern.place(mix(source, weight))
            total = product if total is None else total + product
        total = spread_anew(terms, total) if terms else total
        if total is None:
            out.append(tensors[0].new_zeros(tensors[0].shape[0], *target.shape))
            continue
        out.append(total.expand(total.shape[0], *target.shape))
    return out


def _scatter(targets: Sequence[Target], tensors: Sequence[Tensor]) -> list[Tensor]:
    """In place."""
    out, place = [], 0
    for target in targets:
        given, place = tensors[place : place + target.inputs], place + target.inputs
        out.append(_write(target, given, tensors[0]))
    return out


def _write(target: Target, given: Sequence[Tensor], like: Tensor) -> Tensor:
    """One output: the terms spread, the products added, what stands on diagonals added."""
    terms = list(zip(target.terms, given, strict=False))
    plain = [term for term in terms if not term[0].diagonal]
    shape = (like.shape[0], *target.shape)
    out = spread(plain, shape) if plain else None
    for i, pattern in enumerate(target.products):
        source, weight = given[len(terms) + 2 * i : len(terms) + 2 * i + 2]
        if out is None and pattern.ordered:
            out = _product(source.reshape(-1, weight.shape[0]), weight).view(shape)
            continue
        out = empty(shape, source).zero_() if out is None else out
        _add_product(out, pattern, source, weight)
    out = like.new_zeros(shape) if out is None else out
    on_diagonals = [term for term in terms if term[0].diagonal]
    return add_spread(out, on_diagonals) if on_diagonals else out


def _add_product(out: Tensor, pattern: Pattern, source: Tensor, weight: Tensor) -> None:
    """Add ``source @ weight`` to ``(B, *axes, C)``; what has to be copied for it is copied in chunks."""
    rows, columns = weight.shape
    if pattern.ordered and source.is_contiguous():
        out.view(-1, columns).addmm_(source.reshape(-1, rows), weight)
        return
    view = pattern.arrange(out)
    for index in _chunks(source.shape, max(rows, columns)):
        part, into = source[index], view[index]
        if pattern.ordered:
            into.view(-1, columns).addmm_(part.reshape(-1, rows), weight)
        else:
            into += (part.reshape(-1, rows) @ weight).view(into.shape)


def _chunks(shape: torch.Size, channels: int) -> Iterator[tuple[slice | int, ...]]:
    """Parts of ``(B, *connected, channels)``: all, or slices of the first index of one network."""
    if shape[:-1].numel() * channels <= CHUNK or len(shape) < 3:
        yield (slice(None),)
        return
    step = max(1, CHUNK // (shape[2:-1].numel() * channels))
    for network in range(shape[0]):
        for start in range(0, shape[1], step):
            yield network, slice(start, start + step)


class _Scatter(torch.autograd.Function):
    """:func:`scatter` whose gradient pools each large gradient for all terms at once."""

    @staticmethod
    def forward(ctx: Any, targets: tuple[Target, ...], *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.targets, place = targets, 0
        factors: list[Tensor] = []
        for target in targets:
            factors += tensors[place + len(target.terms) : place + target.inputs]
            place += target.inputs
        ctx.save_for_backward(*factors)
        ctx.set_materialize_grads(False)
        return tuple(_scatter(targets, tensors))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        factors, needed = list(ctx.saved_tensors), list(ctx.needs_input_grad[1:])
        out: list[Tensor | None] = []
        for target, gradient in zip(ctx.targets, gradients, strict=True):
            wanted, needed = needed[: target.inputs], needed[target.inputs :]
            mine, factors = factors[: 2 * len(target.products)], factors[2 * len(target.products) :]
            if gradient is None:
                out += [None] * target.inputs
                continue
            gradient = gradient.contiguous()
            out += pool(gradient, target.pool, mean=False)
            for i, pattern in enumerate(target.products):
                back = pattern.gather(gradient)
                place = len(target.terms) + 2 * i
                out += _factor_gradients(back, mine[2 * i], mine[2 * i + 1], wanted[place], wanted[place + 1])
        return None, *out


def _factor_gradients(
    gradient: Tensor, source: Tensor, weight: Tensor, to_source: bool, to_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of both factors of a product, from ``(B, *connected, columns)``."""
    rows = gradient.reshape(-1, weight.shape[1])
    left = _product(rows, weight.t()).view(source.shape) if to_source else None
    right = source.reshape(-1, weight.shape[0]).t() @ rows if to_weight else None
    return left, right


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Matrix product, in new memory unless it is to be differentiated."""
    if torch.is_grad_enabled():
        return left @ right
    return torch.mm(left, right, out=empty((left.shape[0], right.shape[1]), left))
