"""Networks that add: the problems are right, many at once are those alone, their symmetry is found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from nfn_opt import WeightSpace
from nfn_opt.data.zoos import GruAdderArchitecture, Zoo
from nfn_opt.data.zoos.adders import TOKENS
from nfn_opt.data.zoos.adding import (
    AdderOptions,
    StackedAdder,
    addition_problems,
    build_adder_zoo,
    draw_adders,
    train_adders,
)

ARCHITECTURE = GruAdderArchitecture(hidden=5, digits=2)

OPTIONS = AdderOptions(steps=(2, 6), batch_size=(4, 8))


def test_problems_are_sums(generator: torch.Generator) -> None:
    questions, answers = addition_problems(300, 3, generator)
    lengths = set()
    for question, answer in zip(questions.tolist(), answers.tolist(), strict=True):
        left, _, right = "".join(TOKENS[token] for token in question).partition("+")
        assert int(left) + int(right) == int("".join(TOKENS[token] for token in answer))
        lengths.add((len(left), len(right.strip())))
    assert len(lengths) == 9


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    path = tmp_path_factory.mktemp("adders") / "zoo.safetensors"
    built = build_adder_zoo(
        path,
        count=5,
        options=OPTIONS,
        architecture=ARCHITECTURE,
        chunk_size=2,
        shard_size=2,
        test_problems=30,
    )
    loaded = Zoo.load(path)
    assert all(torch.equal(value, loaded.params[name]) for name, value in built.params.items())
    return loaded


def test_a_zoo(zoo: Zoo) -> None:
    assert zoo.architecture == ARCHITECTURE
    assert zoo.table["number"].tolist() == list(range(5))  # type: ignore[union-attr]
    assert repr(zoo).startswith("Zoo(5 x GRU adder of 5 units and 2 digits of ")
    assert "test success" in repr(zoo)


def test_many_at_once_are_those_alone(zoo: Zoo, generator: torch.Generator) -> None:
    stack = StackedAdder(ARCHITECTURE)
    packed = torch.cat([zoo.params[name].flatten(1) for name in stack.shapes], 1)
    questions, answers = addition_problems(20, 2, generator)
    losses, found = stack.loss(packed, questions, answers), stack.answer(packed, questions)
    for number in range(len(zoo)):
        network = zoo.module(number)
        expected = F.cross_entropy(network(questions, answers).flatten(0, 1), answers.flatten())
        torch.testing.assert_close(losses[number], expected)
        assert torch.equal(found[number], network.answer(questions))  # type: ignore[operator]


def test_training_is_that_of_adam(zoo: Zoo) -> None:
    member = draw_adders(OPTIONS, 5)[3]
    alone = train_adders([member], OPTIONS, ARCHITECTURE, test_problems=30)
    for name, value in alone.params.items():
        torch.testing.assert_close(value[0], zoo.params[name][3], atol=1e-5, rtol=1e-4)


def test_a_network_learns() -> None:
    options = AdderOptions(steps=(150, 150), learning_rate=(1e-2, 1e-2), batch_size=(64,))
    architecture = GruAdderArchitecture(hidden=24, digits=1)
    zoo = train_adders(draw_adders(options, 1), options, architecture, test_problems=100)
    assert zoo.table["test_success"][0] > 0.1  # type: ignore[operator]


def test_the_weight_space_is_found(zoo: Zoo, generator: torch.Generator) -> None:
    problems = addition_problems(6, 2, generator)
    network = zoo.module(0)
    space = WeightSpace.from_module(network, problems)
    assert list(space.groups.values()) == [5]  # the decoder starts from the encoder's units
    assert space.verify(network, problems) < 1e-5


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: GruAdderArchitecture(hidden=0), "hidden must be >= 1 and digits 1 to 15"),
        (lambda: AdderOptions(steps=(3, 2)), "steps must be two positive numbers"),
        (lambda: AdderOptions(batch_size=()), "batch_size must be numbers >= 1"),
        (lambda: draw_adders(OPTIONS, 0), "count must be >= 1, got 0"),
        (lambda: build_adder_zoo(Path("no.safetensors"), count=1, chunk_size=0), "chunk_size must be >= 1"),
    ],
)
def test_what_is_refused(wrong: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        wrong()
