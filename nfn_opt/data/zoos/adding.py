"""Training of GRU networks that add: many at once, on problems drawn anew in each step."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nfn_opt.data.zoos.adders import TOKENS, GruAdderArchitecture
from nfn_opt.data.zoos.optimizers import StackedOptimizer
from nfn_opt.data.zoos.shards import ZooShards, build_in_shards
from nfn_opt.data.zoos.training import member_table
from nfn_opt.data.zoos.zoo import Zoo
from nfn_opt.meta.processes import Processes
from nfn_opt.meta.randomness import seeded_generator

__all__ = [
    "AdderMember",
    "AdderOptions",
    "StackedAdder",
    "addition_problems",
    "build_adder_zoo",
    "draw_adders",
    "train_adders",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdderOptions:
    """What decides a zoo of networks that add. Each network draws its own values, independently.

    Learning rates and batch sizes are those of the Tiny RNN Zoo (arXiv:2402.05232), trained with Adam.

    Attributes:
        seed: Seed of everything.
        steps: Range of the number of steps; uniform.
        learning_rate: Range; uniform in the logarithm.
        batch_size: Numbers of problems in a step to choose from.

    Raises:
        ValueError: If a range or a choice is empty or out of bounds.
    """

    seed: int = 0
    steps: tuple[int, int] = (200, 2000)
    learning_rate: tuple[float, float] = (1e-4, 1e-2)
    batch_size: tuple[int, ...] = (64, 128, 256)

    def __post_init__(self) -> None:
        for name in ("steps", "learning_rate"):
            low, high = getattr(self, name)
            if not 0 < low <= high < math.inf:
                raise ValueError(f"{name} must be two positive numbers, the lower first, got {low}, {high}")
        if not self.batch_size or min(self.batch_size) < 1:
            raise ValueError(f"batch_size must be numbers >= 1, got {self.batch_size}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdderMember:
    """How one network is trained; the attributes are those of `AdderOptions`.

    Attributes:
        number: Which network it is.
    """

    number: int
    learning_rate: float
    batch_size: int
    steps: int


def draw_adders(options: AdderOptions, count: int) -> list[AdderMember]:
    """Draw how each network is trained; a network's draw does not depend on how many there are.

    Raises:
        ValueError: If `count` is below 1.
    """
    if count < 1:
        raise ValueError(f"count must be >= 1, got {count}")
    members = []
    for number in range(count):
        generator = seeded_generator(options.seed, f"adders/hyperparameters/{number}")
        rate, size, steps = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
        low, high = map(math.log, options.learning_rate)
        members.append(
            AdderMember(
                number=number,
                learning_rate=math.exp(low + (high - low) * rate),
                batch_size=options.batch_size[int(size * len(options.batch_size))],
                steps=round(options.steps[0] + (options.steps[1] - options.steps[0]) * steps),
            )
        )
    return members


def addition_problems(count: int, digits: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw sums of two numbers; how many digits each has is uniform, and so is it among those of as many.

    Returns:
        Tokens (`TOKENS`) of questions, shape (count, 2 * digits + 1), and answers, shape (count, digits + 1), both
        int64; answers have blanks in front, questions behind.

    Example:
        >>> questions, answers = addition_problems(1, 2, torch.Generator().manual_seed(1))
        >>> written = ["".join(TOKENS[token] for token in tokens[0]) for tokens in (questions, answers)]
        >>> int(written[0].split("+")[0]) + int(written[0].split("+")[1]) == int(written[1])
        True
    """
    places = torch.randint(1, digits + 1, (count, 2), generator=generator)
    least = torch.where(places == 1, 0, 10 ** (places - 1))
    share = torch.rand(count, 2, generator=generator, dtype=torch.float64)
    numbers = (least + ((10**places - least) * share).long()).tolist()
    questions = [f"{left}+{right}".ljust(2 * digits + 1) for left, right in numbers]
    answers = [f"{left + right}".rjust(digits + 1) for left, right in numbers]
    tokens = [
        torch.tensor([[TOKENS.index(sign) for sign in text] for text in texts])
        for texts in (questions, answers)
    ]
    return tokens[0], tokens[1]


class StackedAdder:
    """Many `GruAdder` at once, on the same problems; parameters are packed into one matrix of shape (N, P).

    Args:
        architecture: Of all networks.
    """

    def __init__(self, architecture: GruAdderArchitecture) -> None:
        self.architecture = architecture
        self.shapes = architecture.parameter_shapes

    def unpack(self, packed: Tensor) -> dict[str, Tensor]:
        """Parameters by name, shape (N, *shape), as views."""
        sizes = [torch.Size(shape).numel() for shape in self.shapes.values()]
        return {
            name: part.unflatten(1, shape)
            for (name, shape), part in zip(self.shapes.items(), packed.split(sizes, 1), strict=True)
        }

    def loss(self, packed: Tensor, questions: Tensor, answers: Tensor) -> Tensor:
        """Mean cross-entropy of the answers' tokens, each given those before it, shape (N,)."""
        params = self.unpack(packed)
        start = torch.full_like(answers[:, :1], TOKENS.index("="))
        before = torch.cat([start, answers[:, :-1]], 1)
        states = self._run("decoder", params, before, self._encode(params, questions))
        logits = self._head(params, torch.stack(states, 2))
        wanted = answers.expand(len(packed), -1, -1)
        return (
            F.cross_entropy(logits.flatten(0, 2), wanted.flatten(), reduction="none")
            .view(len(packed), -1)
            .mean(1)
        )

    @torch.no_grad()
    def answer(self, packed: Tensor, questions: Tensor) -> Tensor:
        """The likeliest tokens one after the other, int64, shape (N, B, digits + 1)."""
        params = self.unpack(packed)
        state = self._encode(params, questions)
        token = torch.full((len(packed), len(questions)), TOKENS.index("="))
        tokens = []
        for _ in range(self.architecture.digits + 1):
            inputs = self._inputs("decoder", params)
            rows = inputs.gather(1, token.unsqueeze(2).expand(-1, -1, inputs.shape[2]))
            state = self._step("decoder", params, rows, state)
            token = self._head(params, state).argmax(-1)
            tokens.append(token)
        return torch.stack(tokens, 2)

    def _encode(self, params: Mapping[str, Tensor], questions: Tensor) -> Tensor:
        count = len(params["head.bias"])
        first = params["head.weight"].new_zeros(count, len(questions), self.architecture.hidden)
        return self._run("encoder", params, questions, first)[-1]

    def _run(self, name: str, params: Mapping[str, Tensor], tokens: Tensor, state: Tensor) -> list[Tensor]:
        """States after each token; tokens of shape (B, T), states of shape (N, B, H)."""
        inputs, states = self._inputs(name, params), []
        for column in tokens.t():
            state = self._step(name, params, inputs[:, column], state)
            states.append(state)
        return states

    def _inputs(self, name: str, params: Mapping[str, Tensor]) -> Tensor:
        """What each token adds to the gates, shape (N, tokens, 3 H): the input is one-hot."""
        return params[f"{name}.weight_ih_l0"].transpose(1, 2) + params[f"{name}.bias_ih_l0"].unsqueeze(1)

    def _step(self, name: str, params: Mapping[str, Tensor], inputs: Tensor, state: Tensor) -> Tensor:
        """The equations of `torch.nn.GRU`."""
        weight, bias = params[f"{name}.weight_hh_l0"], params[f"{name}.bias_hh_l0"].unsqueeze(1)
        recurrent = torch.baddbmm(bias, state, weight.transpose(1, 2))
        width = state.shape[2]
        gates = torch.sigmoid(inputs[..., : 2 * width] + recurrent[..., : 2 * width])
        reset, update = gates.split(width, -1)
        new = torch.tanh(torch.addcmul(inputs[..., 2 * width :], reset, recurrent[..., 2 * width :]))
        return torch.lerp(new, state, update)

    def _head(self, params: Mapping[str, Tensor], states: Tensor) -> Tensor:
        """Logits of states of shape (N, ..., H)."""
        flat = states.flatten(1, -2)
        logits = torch.baddbmm(params["head.bias"].unsqueeze(1), flat, params["head.weight"].transpose(1, 2))
        return logits.unflatten(1, states.shape[1:-1])


def train_adders(
    members: Sequence[AdderMember],
    options: AdderOptions,
    architecture: GruAdderArchitecture,
    *,
    test_problems: int = 1000,
    done: Callable[[int], object] = lambda steps: None,
) -> Zoo:
    """Train networks with Adam, in step, and score them.

    Args:
        members: Networks of one batch size, those with most steps first.
        options: Options of the whole zoo.
        architecture: Of all networks.
        test_problems: Problems that they are scored on, the same for all; small numbers may have been trained on.
        done: Told after each step how many networks made it.

    Returns:
        The networks in the order of `members`; ``test_success`` is the share of problems answered without a mistake.
    """
    stack, size = StackedAdder(architecture), members[0].batch_size
    packed = torch.stack([_initial(member, stack, options.seed) for member in members])
    rates = torch.tensor([member.learning_rate for member in members])
    optimizer = StackedOptimizer("adam", packed, rates, torch.zeros_like(packed))
    problems = seeded_generator(options.seed, f"adders/problems/{size}")
    left = len(members)
    for step in range(members[0].steps):
        while members[left - 1].steps <= step:
            left -= 1
        questions, answers = addition_problems(size, architecture.digits, problems)
        leaf = packed[:left].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(stack.loss(leaf, questions, answers).sum(), leaf)
        optimizer.step(gradient)
        done(left)
    questions, answers = addition_problems(
        test_problems, architecture.digits, seeded_generator(options.seed, "adders/test")
    )
    with torch.no_grad():
        loss = stack.loss(packed, questions, answers).double()
    success = (stack.answer(packed, questions) == answers).all(2).double().mean(1)
    scores = {"test_loss": loss, "test_success": success.masked_fill(~loss.isfinite(), torch.nan)}
    params = {name: value.clone() for name, value in stack.unpack(packed).items()}
    return Zoo(params, architecture, {**member_table(members), **scores})


def _initial(member: AdderMember, stack: StackedAdder, seed: int) -> Tensor:
    """As `torch.nn.GRU` and `torch.nn.Linear` begin: uniform up to one over the root of the hidden units."""
    generator = seeded_generator(seed, f"adders/initialization/{member.number}")
    count = stack.architecture.parameters
    return torch.rand(count, generator=generator).mul_(2).sub_(1) / math.sqrt(stack.architecture.hidden)


def build_adder_zoo(
    path: str | os.PathLike[str],
    *,
    count: int,
    options: AdderOptions | None = None,
    architecture: GruAdderArchitecture | None = None,
    test_problems: int = 1000,
    chunk_size: int = 16,
    shard_size: int = 64,
    resume: bool = False,
    processes: Processes | None = None,
    meta: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> Zoo:
    """Train a zoo of networks that add to a file; one that is stopped can be resumed. Errors as `build_zoo`.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "zoo.safetensors"
        >>> options = AdderOptions(steps=(1, 3), batch_size=(4,))
        >>> zoo = build_adder_zoo(path, count=3, options=options, architecture=GruAdderArchitecture(hidden=4))
        >>> len(zoo), len(Zoo.load(path)), path.with_suffix(".csv").exists()
        (3, 3, True)
    """
    for name, value in (
        ("chunk_size", chunk_size),
        ("shard_size", shard_size),
        ("test_problems", test_problems),
    ):
        if value < 1:
            raise ValueError(f"{name} must be >= 1, got {value}")
    options, architecture = options or AdderOptions(), architecture or GruAdderArchitecture()
    members = sorted(
        draw_adders(options, count), key=lambda member: (member.batch_size, -member.steps, member.number)
    )
    chunks: list[list[AdderMember]] = []
    for member in members:
        if not chunks or len(chunks[-1]) == chunk_size or chunks[-1][0].batch_size != member.batch_size:
            chunks.append([])
        chunks[-1].append(member)
    record = {
        "kind": architecture.kind,
        "options": dataclasses.asdict(options),
        "architecture": dataclasses.asdict(architecture),
        "test_problems": test_problems,
        "count": count,
        "chunk_size": chunk_size,
        "shard_size": shard_size,
    }
    return build_in_shards(
        ZooShards(Path(path), chunks, record, Zoo),
        lambda chunk, done: train_adders(
            chunk, options, architecture, test_problems=test_problems, done=done
        ),
        resume=resume,
        processes=processes,
        meta=meta,
        progress=progress,
    )
