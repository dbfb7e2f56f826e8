"""What the tracer refuses, what it warns of, and that it leaves the model alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune

from nfn_opt.weight_space import WeightSpace
from nfn_opt.weight_space.tracing import UnknownOperatorWarning
from tests.weight_space.models import Program, between, draw, randomised, two_layers


class Opaque:
    """A result that hides a tensor."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


@pytest.fixture
def library() -> Iterator[torch.library.Library]:
    """Operators of a user's own: ``reverse`` with a fake implementation, ``opaque`` without."""
    library = torch.library.Library("nfn_opt_tests", "DEF")
    for name in ("reverse", "opaque"):
        library.define(f"{name}(Tensor x) -> Tensor")
        library.impl(name, lambda x: x.flip(1), "CPU")
    torch.library.register_fake("nfn_opt_tests::reverse", torch.empty_like, lib=library)
    yield library
    library._destroy()


def nested(function: Callable[[Tensor], Tensor]) -> nn.Module:
    """A function three modules deep, between two layers."""
    inner = Program(lambda m, x: function(x))
    return nn.Sequential(nn.Linear(3, 6), nn.ModuleDict({"inner": inner})["inner"], nn.Linear(6, 2))


class Spectrum(nn.Module):
    """An operator without a rule."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.fft(x).abs()


@pytest.mark.parametrize(
    ("function", "operator"),
    [
        (lambda x: torch.fft.fft(x).abs(), "aten._fft_r2c"),
        (lambda x: torch.ops.nfn_opt_tests.reverse(x), "nfn_opt_tests.reverse"),
        (lambda x: x.renorm(2, 0, 1.0), "aten.renorm"),
    ],
)
def test_unknown_operator_is_named_with_its_module(
    library: torch.library.Library, function: Callable[[Tensor], Tensor], operator: str
) -> None:
    with pytest.warns(
        UnknownOperatorWarning, match=f"operator {operator} in module '1' has no symmetry rule"
    ):
        space = WeightSpace.from_module(nested(function), draw(2, 3))
    assert space.groups == {}
    assert space["0.bias"].axes[0].note == f"{operator} is not understood"
    assert space.verify(nested(function), draw(2, 3)) < 1e-10


def test_unknown_operator_leaves_other_layers_alone() -> None:
    model = nn.Sequential(
        nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4), Spectrum(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)
    )
    with pytest.warns(UnknownOperatorWarning, match="aten._fft_r2c"):
        assert WeightSpace.from_module(model, draw(2, 3)).groups == {"h1": 5, "h2": 3}


def test_an_operator_warns_once() -> None:
    model = nn.Sequential(nn.Linear(3, 4), Spectrum(), nn.Linear(4, 4), Spectrum())
    with pytest.warns(UnknownOperatorWarning) as caught:
        WeightSpace.from_module(model, draw(2, 3))
    assert len(caught) == 1


BRANCH = "does not depend on tensor values"
REFUSED: dict[str, tuple[Callable[[], nn.Module], Any, str]] = {
    "no parameters": (nn.ReLU, draw(2, 3), "ReLU has no parameters, expected at least one"),
    "only buffers": (lambda: nn.BatchNorm1d(3, affine=False), draw(2, 3), "has no parameters"),
    "wrong size": (
        lambda: between(nn.ReLU()),
        draw(2, 4),
        r"shapes \[\(2, 4\)\]: RuntimeError in module '0'",
    ),
    "wrong rank": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3)), draw(2, 3), "RuntimeError in module '0'"),
    "not a tensor": (lambda: between(nn.ReLU()), "image", "TypeError in module '0'"),
    "too many inputs": (
        lambda: between(nn.ReLU()),
        (draw(2, 3), draw(2, 3)),
        "pass a tuple for several arguments",
    ),
    "unknown keyword": (
        lambda: between(nn.ReLU()),
        {"pixels": draw(2, 3)},
        "unexpected keyword argument 'pixels'",
    ),
    "other device": (lambda: between(nn.ReLU()).to("meta"), draw(2, 3), "same device"),
    "branch": (lambda: two_layers(lambda m, x: m.b(m.a(x)) if x.sum() > 0 else x), draw(2, 3), BRANCH),
    "number from a tensor": (
        lambda: two_layers(lambda m, x: m.b(m.a(x)) * x.max().item()),
        draw(2, 3),
        BRANCH,
    ),
    "selection by a mask": (lambda: two_layers(lambda m, x: m.b(m.a(x)[x[:, 0] > 0])), draw(2, 3), BRANCH),
    "operator without a shape": (
        lambda: two_layers(lambda m, x: m.b(torch.ops.nfn_opt_tests.opaque(m.a(x)))),
        draw(2, 3),
        "torch.library.register_fake",
    ),
    "opaque result": (
        lambda: two_layers(lambda m, x: Opaque(m.b(m.a(x)))),
        draw(2, 3),
        "returns Opaque, expected",
    ),
    "opaque beside a tensor": (
        lambda: two_layers(lambda m, x: (x, Opaque(m.a(x)))),
        draw(2, 3),
        "returns Opaque",
    ),
    "no result": (lambda: two_layers(lambda m, x: None), draw(2, 3), "returns no tensor"),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(6), nn.Linear(6, 2)), draw(2, 3), "uninitialized parameter"),
}


@pytest.mark.filterwarnings("ignore:Lazy modules:UserWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_refused(library: torch.library.Library, name: str) -> None:
    model, inputs, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        WeightSpace.from_module(model(), inputs)


@pytest.mark.parametrize(
    ("function", "operator", "remedy"),
    [
        (lambda x: x * x.max().item(), "aten._local_scalar_dense", "does not depend on tensor values"),
        (lambda x: x[x > 0], "aten.index", "does not depend on tensor values"),
        (lambda x: x.unique(), "aten._unique2", "does not depend on tensor values"),
        (lambda x: torch.ops.nfn_opt_tests.opaque(x), "nfn_opt_tests.opaque", "torch.library.register_fake"),
        (lambda x: x @ torch.zeros(7, 2), "aten.mm", "inputs that model"),
    ],
)
def test_a_failure_names_operator_module_and_remedy(
    library: torch.library.Library, function: Callable[[Tensor], Tensor], operator: str, remedy: str
) -> None:
    message = rf"in module '1' \(Program\), operator {operator}: .*{remedy}.*WeightSpace\.from_axes"
    with pytest.raises(ValueError, match=message):
        WeightSpace.from_module(nested(function), draw(2, 3))


def test_a_failure_outside_of_operators_names_none() -> None:
    with pytest.raises(
        ValueError, match=r"RuntimeError in module '1' \(Program\): .numpy\(\) is not supported"
    ):
        WeightSpace.from_module(nested(lambda x: torch.from_numpy(x.numpy())), draw(2, 3))


def test_a_failure_that_the_model_raises_anew_keeps_its_cause() -> None:
    def careful(x: Tensor) -> Tensor:
        try:
            return x * x.max().item()
        except Exception as error:
            raise RuntimeError("no scale") from error

    with pytest.raises(ValueError, match=r"aten\._local_scalar_dense: no scale\. .*tensor values"):
        WeightSpace.from_module(nested(careful), draw(2, 3))


def test_refused_arguments() -> None:
    with pytest.raises(TypeError, match=r"model is a OrderedDict, expected a torch.nn.Module"):
        WeightSpace.from_module(between().state_dict(), draw(2, 3))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="symmetry is 'output', expected 'hidden' or 'all'"):
        WeightSpace.from_module(between(), draw(2, 3), symmetry="output")  # type: ignore[arg-type]


def test_failing_quietly(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match="cannot be traced"):
        WeightSpace.from_module(between(), draw(2, 4))
    assert caplog.records == []


@pytest.mark.parametrize(
    "inputs",
    [
        draw(2, 3),
        (draw(2, 3),),
        [draw(2, 3)],
        {"x": draw(2, 3)},
        {"x": draw(2, 3), "scale": 2.0},
        (draw(2, 3), None),
    ],
)
def test_forms_of_inputs(inputs: Any) -> None:
    model = two_layers(lambda m, x, scale=None: m.b(m.a(x) * (scale or 1.0)))
    space = WeightSpace.from_module(model, inputs, symmetry="all")
    assert space.groups == {"h1": 6, "in1": 3, "out1": 2}
    assert space.verify(model, inputs) < 1e-10


def remembering(m: Any, x: Tensor) -> Tensor:
    m.last = m.a(x)
    m.calls += 1
    return m.b(F.dropout(m.last, training=m.training))


def attributes(model: nn.Module) -> dict[str, dict[str, int]]:
    """The identity of all that the modules hold."""
    return {
        name: {
            key: id(value) for key, value in {**vars(module), **module._parameters, **module._buffers}.items()
        }
        for name, module in model.named_modules()
    }


def test_the_model_is_left_as_it_was() -> None:
    first = two_layers(remembering)
    first.__dict__["calls"] = 0
    pruned = prune.random_unstructured(nn.Linear(2, 2), "weight", 0.5)
    model = randomised(nn.Sequential(first, nn.BatchNorm1d(2).eval(), nn.Dropout(), pruned))
    first.get_parameter("a.bias").requires_grad_(False)
    held = attributes(model)
    values = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    flags = [parameter.requires_grad for parameter in model.parameters()]

    WeightSpace.from_module(model, draw(4, 3)).verify(model, draw(4, 3))

    assert attributes(model) == held
    torch.testing.assert_close(dict(model.state_dict()), values, rtol=0, atol=0)
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert [module.training for module in model.children()] == [True, False, True, True]
    assert not any(module._forward_hooks for module in model.modules())


def test_a_failing_model_is_left_as_it_was() -> None:
    model = between(nn.Dropout()).train()
    with pytest.raises(ValueError, match="cannot be traced"):
        WeightSpace.from_module(model, draw(2, 4))
    assert all(module.training and not module._forward_pre_hooks for module in model.modules())


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_scripted_modules() -> None:
    model = randomised(nn.Sequential(torch.jit.script(nn.Linear(3, 6)), nn.Tanh(), nn.Linear(6, 2)))
    space = WeightSpace.from_module(model, draw(2, 3))
    assert space.groups == {"h1": 6}
    assert space.verify(model, draw(2, 3)) < 1e-10
    assert not model._forward_pre_hooks
    with pytest.raises(ValueError, match=r"in module '\(root\)' .*WeightSpace\.from_axes"):
        WeightSpace.from_module(torch.jit.script(between()), draw(2, 3))


class HooksItself(nn.Module):
    """Adds a hook in its first forward pass, and remembers that it did."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.ready = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2)), False

    def forward(self, x: Tensor) -> Tensor:
        if not self.ready:
            self.layers.register_forward_hook(lambda module, given, result: 2 * result)
            self.ready = True
        return self.layers(x)


def test_hooks_that_a_forward_pass_adds_are_taken_away_again() -> None:
    model = randomised(HooksItself())
    space = WeightSpace.from_module(model, draw(2, 3))
    assert space.groups == {"h1": 6}
    assert space.verify(model, draw(2, 3)) < 1e-10
    assert (model.ready, len(model.layers._forward_hooks)) == (False, 0)
