from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from nfn_opt.meta import InnerStep, Task, TaskWrapper, init_state, unroll
from nfn_opt.meta.tasks import Params
from nfn_opt.meta.trees import flatten_tree
from nfn_opt.optim import UpdateRule, make_rule


def perturbed(rule: UpdateRule, n: int, generator: torch.Generator) -> Params:
    return {
        name: p.detach() + 0.1 * torch.randn((n, *p.shape), generator=generator, dtype=p.dtype)
        for name, p in rule.named_parameters()
    }


@pytest.mark.parametrize("kind", ["sgd", "adam", "mlp"])
def test_each_network_is_trained_with_its_own_rule(
    kind: str, tiny_task: Task, generator: torch.Generator
) -> None:
    rule = make_rule(kind).double()
    theta = perturbed(rule, 3, generator)
    params = tiny_task.init(generator, 3)
    seed = generator.get_state()
    options: dict[str, Any] = {"steps": 4, "start_step": 2, "total_steps": 9, "generator": generator}
    together = unroll(rule, tiny_task, params, init_state(rule, tiny_task, params), theta=theta, **options)
    for i in range(3):
        alone = make_rule(kind).double()
        alone.load_state_dict({name: value[i] for name, value in theta.items()}, strict=False)
        generator.set_state(seed)
        end = unroll(alone, tiny_task, params, init_state(alone, tiny_task, params), **options)
        torch.testing.assert_close(together.losses[:, i], end.losses[:, i], rtol=1e-9, atol=1e-12)


class Estimated(TaskWrapper):
    """A task that gives its exact gradients itself, as one without a derivative gives estimates."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.traceable = False

    def losses_and_grads(self, params: Any, batch: Any) -> tuple[Tensor, Params]:
        with torch.enable_grad():
            leaves = {name: p.detach().requires_grad_() for name, p in params.items()}
            losses = self.task.losses(leaves, batch)
            grads = torch.autograd.grad(losses.sum(), list(leaves.values()))
        return losses.detach(), dict(zip(leaves, grads, strict=True))


@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
def test_compiled_is_eager(wrap: bool, scaled: bool, tiny_task: Task, generator: torch.Generator) -> None:
    task = Estimated(tiny_task) if wrap else tiny_task
    rule = make_rule("mlp").double()
    theta = perturbed(rule, 2, generator)
    params = task.init(generator, 2)
    scale = {name: torch.full((2, *[1] * (p.dim() - 1)), 3.0).to(p) for name, p in params.items()}
    arguments: dict[str, Any] = {
        "step": torch.tensor([0, 5]),
        "total_steps": torch.tensor([7, 9]),
        "scale": scale if scaled else None,
    }
    batch, state = task.batch(generator, 2), init_state(rule, tiny_task, params)
    for outer in (None, theta):
        eager = InnerStep(rule, tiny_task)(params, state, batch, theta=outer, **arguments)
        kernel = InnerStep(rule, task, compiled=True, backend="aot_eager")
        for _ in range(2):
            compiled = kernel(params, state, batch, theta=outer, **arguments)
            torch.testing.assert_close(compiled[2], eager[2])
            torch.testing.assert_close(compiled[0], eager[0])
            torch.testing.assert_close(flatten_tree(compiled[1]), flatten_tree(eager[1]))


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # from within torch's own compiler
def test_kernels_of_the_default_compiler(tiny_task: Task, generator: torch.Generator) -> None:
    rule = make_rule("sgd", momentum=0.9).double()
    params = tiny_task.init(generator, 2)
    state = init_state(rule, tiny_task, params)
    batch = tiny_task.batch(generator, 2)
    compiled = InnerStep(rule, tiny_task, compiled=True)
    spread = torch.zeros((), dtype=torch.int64).expand(2)
    for step, pixels in (
        (spread, batch[0]),
        (spread.clone(), batch[0].mT.contiguous().mT),
    ):  # in other layouts
        eager = InnerStep(rule, tiny_task)(params, state, (pixels, batch[1]), step=step)
        found = compiled(params, state, (pixels, batch[1]), step=step)
        torch.testing.assert_close(found[::2], eager[::2])


GRADIENT_RULES: dict[str, dict[str, Any]] = {
    "sgd": {"momentum": 0.9},
    "adam": {},
    "mlp": {"hidden": (3,)},
    "nfn": {"hidden": (3,), "channels": 2},
}


GRADIENTS = [
    ("sgd", "first order", True),
    ("sgd", "second order", False),
    ("sgd", "estimated", True),
    ("adam", "second order", True),
    ("mlp", "first order", False),
    pytest.param("mlp", "second order", False, marks=pytest.mark.slow),
    pytest.param("nfn", "second order", True, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("kind", "case", "own_theta"), GRADIENTS)
def test_gradients_through_compiled_steps(
    kind: str, case: str, own_theta: bool, tiny_task: Task, generator: torch.Generator
) -> None:
    second_order, task = case == "second order", Estimated(tiny_task) if case == "estimated" else tiny_task
    rule = make_rule(kind, **GRADIENT_RULES[kind]).double()
    theta = {name: p.requires_grad_() for name, p in perturbed(rule, 2, generator).items()}
    start = {name: p.requires_grad_() for name, p in task.init(generator, 2).items()}
    seed = generator.get_state()
    kind_of_gradient: dict[str, Any] = {"differentiable": True, "second_order": second_order}
    found = []
    for compiled in (False, True):
        generator.set_state(seed)
        inner = InnerStep(rule, task, compiled=compiled, backend="eager", **kind_of_gradient)
        end = unroll(
            rule,
            task,
            start,
            init_state(rule, task, start),
            steps=2,
            start_step=1,
            generator=generator,
            theta=theta if own_theta else None,
            inner=inner,
            **kind_of_gradient,
        )
        leaves = [*(theta.values() if own_theta else rule.parameters()), *start.values()]
        target = end.losses.sum() + sum(p.square().sum() for p in end.params.values())
        found.append(torch.autograd.grad(target, leaves))
    torch.testing.assert_close(found[1], found[0], rtol=1e-8, atol=1e-10)


def test_a_step_of_another_kind_is_refused(tiny_task: Task, generator: torch.Generator) -> None:
    rule, params = make_rule("sgd").double(), tiny_task.init(generator, 1)
    state = init_state(rule, tiny_task, params)
    options: dict[str, Any] = {"steps": 1, "start_step": 0, "generator": generator}
    inner = InnerStep(rule, tiny_task)
    with pytest.raises(ValueError, match=r"'differentiable': False.*expected.*'differentiable': True"):
        unroll(rule, tiny_task, params, state, inner=inner, differentiable=True, **options)
    with pytest.raises(ValueError, match="of another SGDRule"):
        unroll(make_rule("sgd").double(), tiny_task, params, state, inner=inner, **options)


def test_estimated_gradients_have_no_derivative(tiny_task: Task, generator: torch.Generator) -> None:
    rule, task = make_rule("sgd").double(), Estimated(tiny_task)
    params = task.init(generator, 2)
    state = init_state(rule, task, params)
    options: dict[str, Any] = {"steps": 2, "start_step": 0, "generator": generator, "differentiable": True}
    end = unroll(rule, task, params, state, **options)
    end.losses.sum().backward()
    assert rule.get_parameter("log_lr").grad is not None
    with pytest.raises(NotImplementedError, match="estimates its gradients"):
        unroll(rule, task, params, state, second_order=True, **options)


def test_a_wrong_kernel_is_not_used(
    tiny_task: Task, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def faulty(graph: Any, *_: Any, **__: Any) -> Any:
        return lambda *values: [1.01 * x if x.is_floating_point() else x for x in graph(*values)]

    monkeypatch.setattr(torch._inductor, "compile", faulty)
    rule = make_rule("sgd").double()
    params = tiny_task.init(generator, 2)
    state = init_state(rule, tiny_task, params)
    batch, step = tiny_task.batch(generator, 2), torch.zeros(2, dtype=torch.int64)
    kernel = InnerStep(rule, tiny_task, compiled=True)
    with pytest.warns(RuntimeWarning, match="gives other numbers than the eager one"):
        losses = kernel(params, state, batch, step=step)[2]
    torch.testing.assert_close(losses, InnerStep(rule, tiny_task)(params, state, batch, step=step)[2])
