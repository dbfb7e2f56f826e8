"""Weight spaces of large architectures, written down by hand: no weights are made."""

from __future__ import annotations

from collections.abc import Iterator

from nfn_opt.weight_space import Axis, Symmetry, TensorSpec, WeightSpace


def _tensor(name: str, *axes: Axis) -> TensorSpec:
    return TensorSpec(name, tuple(axis.size for axis in axes), axes)


def _group(name: str, size: int, *, into: bool = False, permutable: bool = True) -> Axis:
    return Axis(name, size, permutable, "in" if into else "out")


def _kernel(name: str, size: int) -> tuple[Axis, ...]:
    return tuple(Axis(f"{name} kernel {i}", size, False, "space") for i in range(2)) if size > 1 else ()


def gpt2(
    blocks: int = 12, width: int = 768, heads: int = 12, words: int = 50257, places: int = 1024
) -> WeightSpace:
    """GPT-2 small with tied embeddings: 148 tensors, the residual group of 768 in nearly all of them."""
    model, model_in = _group("model", width), _group("model", width, into=True)
    words_axis, places_axis = (
        _group(n, s, permutable=False) for n, s in (("words", words), ("places", places))
    )
    specs = [_tensor("words", words_axis, model_in), _tensor("places", places_axis, model_in)]
    for i in range(blocks):
        head = [_group(f"{i} {part}", size) for part, size in (("heads", heads), ("keys", width // heads))]
        value = [head[0], _group(f"{i} values", width // heads)]
        packed = Axis.concatenated([(head[0], head[1]), (head[0], head[1]), tuple(value)])
        hidden, hidden_in = _group(f"{i} hidden", 4 * width), _group(f"{i} hidden", 4 * width, into=True)
        mixed = [Axis(axis.name, axis.size, role="in") for axis in value]
        specs += [
            *(_tensor(f"{i}.norm1.{name}", model) for name in ("weight", "bias")),
            _tensor(f"{i}.attention.weight", model_in, packed),
            _tensor(f"{i}.attention.bias", packed),
            _tensor(f"{i}.project.weight", *mixed, model),
            _tensor(f"{i}.project.bias", model),
            *(_tensor(f"{i}.norm2.{name}", model) for name in ("weight", "bias")),
            _tensor(f"{i}.mlp1.weight", model_in, hidden),
            _tensor(f"{i}.mlp1.bias", hidden),
            _tensor(f"{i}.mlp2.weight", hidden_in, model),
            _tensor(f"{i}.mlp2.bias", model),
        ]
    return WeightSpace((*specs, _tensor("norm.weight", model), _tensor("norm.bias", model)))


def resnet(blocks: tuple[int, ...], *, bottleneck: bool, symmetry: Symmetry = "hidden") -> WeightSpace:
    """A residual network for ImageNet with batch norms; the blocks of a stage share one group."""
    permutable = symmetry == "all"
    skip = _group("stem", 64)
    specs = list(_convolution("stem", skip, _group("colours", 3, permutable=permutable), 7))
    for stage, count in enumerate(blocks):
        width = 64 * 2**stage
        out = _group(f"stage {stage}", 4 * width if bottleneck else width)
        if stage == 0 and not bottleneck:
            out = skip
        for block in range(count):
            name, before = f"{stage}.{block}", skip if block == 0 else out
            inner = [_group(f"{name} a", width), _group(f"{name} b", width)][: 2 if bottleneck else 1]
            chain = [before, *inner, out]
            kernels = [1, 3, 1] if bottleneck else [3, 3]
            for i, kernel in enumerate(kernels):
                specs += _convolution(f"{name}.conv{i}", chain[i + 1], chain[i], kernel)
            if before is not out:
                specs += _convolution(f"{name}.down", out, before, 1)
        skip = out
    classes = _group("classes", 1000, permutable=permutable)
    into = Axis(skip.name, skip.size, True, "in")
    specs += [_tensor("fc.weight", classes, into), _tensor("fc.bias", classes)]
    return WeightSpace(tuple(specs), symmetry=symmetry)


def _convolution(name: str, out: Axis, into: Axis, kernel: int) -> Iterator[TensorSpec]:
    """A convolution without bias and its batch norm."""
    into = Axis(into.name, into.size, into.permutable, "in")
    yield _tensor(f"{name}.weight", out, into, *_kernel(name, kernel))
    yield _tensor(f"{name}.norm.weight", out)
    yield _tensor(f"{name}.norm.bias", out)
