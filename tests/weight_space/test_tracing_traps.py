"""A symmetry may be missed, never invented: programs that look symmetric at a glance, and are not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, spectral_norm

from nfn_opt.weight_space import Symmetry, WeightSpace
from tests.weight_space.models import Program, between, check, draw, randomised, two_layers


def ramp(like: Tensor) -> Tensor:
    """Values 0 to 5."""
    return torch.arange(6.0, dtype=like.dtype)


def overwritten(m: Any, x: Tensor) -> Tensor:
    buffer = torch.zeros(2, 6, dtype=x.dtype)
    flat = buffer.view(12)
    torch.mm(x, m.a.weight.t(), out=buffer)
    return m.b(flat.flip(0).view(2, 6))


def added_in_bulk(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    torch._foreach_add_([h], [ramp(x)])
    return m.b(h)


def one_neuron_changed(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    h[:, 0] = 1.0
    return m.b(h)


def row_statistics(m: Any, x: Tensor) -> Tensor:
    means = torch.native_layer_norm(m.a(x).t(), (2,), None, None, 1e-5)[1]
    return m.b(means.squeeze(-1) * ramp(x))


TRAPS: dict[str, Callable[[Any, Tensor], Any]] = {
    "constant of the forward pass": lambda m, x: m.b(
        m.a(x) * torch.tensor([1.0, 2, 3, 4, 5, 6], dtype=x.dtype)
    ),
    "ramp": lambda m, x: m.b(m.a(x) + ramp(x)),
    "identity matrix": lambda m, x: m.b(m.a(x) @ torch.eye(6, dtype=x.dtype).tril()),
    "shift by padding": lambda m, x: m.b(F.pad(m.a(x), (1, -1))),
    "roll": lambda m, x: m.b(m.a(x).roll(1, 1)),
    "roll of all entries": lambda m, x: m.b(m.a(x).roll(1)),
    "flip": lambda m, x: m.b(m.a(x).flip(1)),
    "running sum": lambda m, x: m.b(m.a(x).cumsum(1)),
    "running sum in place": lambda m, x: m.b(m.a(x).cumsum_(1)),
    "slice": lambda m, x: m.b(m.a(x)[:, [0, 0, 1, 2, 3, 4]]),
    "one neuron": lambda m, x: m.b(m.a(x)) + m.a(x)[:, :1],
    "one neuron changed": one_neuron_changed,
    "best neuron": lambda m, x: m.b(m.a(x)) + m.a(x).argmax(1, keepdim=True),
    "sort": lambda m, x: m.b(m.a(x).sort(1)[0]),
    "rows picked by number": lambda m, x: m.b(m.a(x).index_select(1, torch.arange(6).flip(0))),
    "pooling over neurons": lambda m, x: F.avg_pool1d(m.b(m.a(x))[None] + m.a(x)[None, :, :2], 2),
    "convolution over neurons": lambda m, x: F.conv1d(m.a(x)[:, None], torch.ones(1, 1, 2, dtype=x.dtype)),
    "reshape across neurons": lambda m, x: m.b(m.a(x).view(4, 3).t().reshape(2, 6)),
    "Fourier transform": lambda m, x: m.b(torch.fft.fft(m.a(x)).real),
    "written under a view": overwritten,
    "written in bulk": added_in_bulk,
    "second result of an operator": row_statistics,
    "neurons as outputs": lambda m, x: (m.b(m.a(x)), {"features": [m.a(x)]}),
    "weight as output": lambda m, x: (m.b(m.a(x)), m.a.weight),
    "autocorrelation of neurons": lambda m, x: (m.a(x).t() @ m.a(x)).flatten()[:6] @ m.b.weight.t(),
}


@pytest.mark.filterwarnings("ignore::nfn_opt.weight_space.tracing.UnknownOperatorWarning")
@pytest.mark.parametrize("symmetry", ["hidden", "all"])
@pytest.mark.parametrize("name", TRAPS)
def test_trap(name: str, symmetry: Symmetry) -> None:
    space = check(two_layers(TRAPS[name]), draw(2, 3), symmetry)
    assert 6 not in space.groups.values() or (
        name in ("neurons as outputs", "weight as output") and symmetry == "all"
    )


def test_numbers_that_depend_on_neurons_order_what_they_pick() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        picked = m.table.index_select(0, (m.a(x)[0] > 0).long())
        return picked @ m.c.weight.t()

    model = two_layers(forward, c=nn.Linear(5, 4), table=nn.Parameter(draw(2, 5)))
    assert check(model, draw(2, 3)).groups == {"h1": 5}


def test_constants_kept_as_attributes() -> None:
    model = two_layers(lambda m, x: m.b(m.a(x) * m.scale.to(x.dtype)))
    model.scale = draw(6)
    assert check(model, draw(2, 3)).groups == {}


def test_parameters_kept_as_plain_tensors_too() -> None:
    model = two_layers(lambda m, x: m.b(m.a(x)) + (m.also[0].sum(1) * torch.arange(6)).sum())
    model.__dict__["also"] = [model.get_parameter("a.weight")]
    assert WeightSpace.from_module(model, draw(2, 3)).groups == {}


def test_modules_that_are_not_registered_are_constants() -> None:
    model = two_layers(lambda m, x: m.b(m.more[0](m.a(x))))
    model.__dict__["more"] = [nn.Linear(6, 6)]
    assert WeightSpace.from_module(model, draw(2, 3)).groups == {}


def test_buffers_that_are_not_running_statistics() -> None:
    model = two_layers(lambda m, x: m.b(m.a(x) + m.position), position=draw(6))
    space = check(model, draw(2, 3))
    assert space.groups == {}
    assert space.parameters[1].axes[0].note == "buffer 'position' is not permuted"


def test_running_statistics_outside_the_state_dict_stay_where_they_are() -> None:
    model = two_layers(lambda m, x: m.b(F.batch_norm(m.a(x), m.mean, m.variance)))
    model.register_buffer("mean", draw(6), persistent=False)
    model.register_buffer("variance", draw(6).abs() + 1, persistent=False)
    space = WeightSpace.from_module(model, draw(2, 3))
    assert (space.groups, space.buffers) == ({}, ())
    assert space.verify(model, draw(2, 3)) < 1e-10


def test_masks_of_pruned_weights_fix_what_they_mask() -> None:
    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    prune.random_unstructured(model[0], "weight", 0.3)
    assert check(model, draw(2, 3)).groups == {"h1": 5}


def test_the_vectors_of_a_spectral_norm_move_with_its_neurons() -> None:
    model = between(nn.ReLU(), parametrizations.spectral_norm(nn.Linear(6, 6)), nn.ReLU())
    space = check(model, draw(2, 3))
    assert space.groups == {"h1": 6, "h2": 6}
    moved = {spec.name: spec.axes[0].name for spec in space.buffers}
    assert moved == {"2.parametrizations.weight.0._u": "h2", "2.parametrizations.weight.0._v": "h1"}


def test_the_vectors_of_a_spectral_norm_by_hooks_move_too() -> None:
    convolution = spectral_norm(nn.Conv2d(5, 6, 3))
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Tanh(), convolution, nn.Flatten(), nn.Linear(6, 2))
    space = check(model.eval(), draw(2, 3, 5, 5))
    assert space.groups == {"h1": 5, "h2": 6}
    assert [str(spec) for spec in space.buffers] == ["2.weight_u (h2:6)", "2.weight_v (h1:5, 9)"]
    alone = WeightSpace.from_module(spectral_norm(nn.Linear(3, 4)), draw(2, 3), symmetry="all")
    assert alone.groups == {"out1": 4, "in1": 3}


def test_one_tensor_given_twice_is_two_inputs() -> None:
    model = Program(lambda m, x, y: m.b(m.a(x) * y), a=nn.Linear(3, 3), b=nn.Linear(3, 2))
    x = draw(2, 3)
    assert check(model, (x, x), "all").groups == {"in1": 3, "in2": 3, "out1": 2}


def test_frozen_parameters_are_parameters() -> None:
    model = randomised(between(nn.ReLU()).requires_grad_(False))
    assert WeightSpace.from_module(model, draw(2, 3)).groups == {"h1": 6}
