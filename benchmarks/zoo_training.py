"""A zoo trained at once, beside the same networks trained one by one in a plain loop.

python -m benchmarks.zoo_training [--quick] [--data mnist_784] [--networks 21] [--steps 30] --out FOLDER

The networks are those of the Small CNN Zoo (1-16-16-16-10, 4,970 parameters), with hyperparameters drawn as
`scripts/build_zoo.py` draws them, of all kinds of activation, optimizer and dropout. The plain loop trains some of each
chunk: a module, `torch.nn.functional.dropout`, autograd, an optimizer of torch (fused where there is one), the same
images in the same order. Half of the loop comes before and half after the zoo. Time is that of the processor: on a
shared machine wall time says little; with one thread on a free core the two are the same. Scoring is not counted.

What limits the zoo: the operations of a gradient are timed one by one, and the rate of its products, which no layout
saves, is compared with that of one large matrix product in the same run.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from nfn_opt.artifacts import atomic_write
from nfn_opt.data import load_images
from nfn_opt.data.zoos.architecture import CnnArchitecture, SmallCnn
from nfn_opt.data.zoos.hyperparameters import Member, ZooOptions, draw_members, initial_parameters
from nfn_opt.data.zoos.stacked import StackedCnn
from nfn_opt.data.zoos.training import ZooData, batches, plan_chunks, train_zoo
from nfn_opt.meta.run_folder import environment, write_json

NETWORK_IMAGES = 2000 * 60_000
"""Of a zoo of 2,000 networks, each of which sees as many images as MNIST has."""


def processor_seconds(action: Callable[[], object]) -> float:
    """Time that all threads of this process spent on something."""
    start = time.process_time()
    action()
    return time.process_time() - start


def train_plainly(member: Member, data: ZooData, options: ZooOptions, architecture: CnnArchitecture) -> None:
    """One network, as anyone would train it."""
    network = SmallCnn(architecture, member.activation)
    network.load_state_dict(initial_parameters(member, architecture, options.seed))
    weights = [value for name, value in network.named_parameters() if name.endswith("weight")]
    biases = [value for name, value in network.named_parameters() if name.endswith("bias")]
    groups: list[dict[str, Any]] = [
        {"params": weights, "weight_decay": 2 * member.l2reg},
        {"params": biases},
    ]
    optimizer = plain_optimizer(member, groups)
    activation = getattr(torch, member.activation)
    for _, numbers in zip(
        range(member.steps), batches(options, member.train_fraction, len(data.train)), strict=False
    ):
        optimizer.zero_grad()
        hidden = data.train[numbers]
        for layer in network.layers:
            hidden = F.dropout(activation(layer(hidden)), member.dropout)
        loss = F.cross_entropy(network.fc(hidden.mean((2, 3))), data.train_labels[numbers])
        loss.backward()
        optimizer.step()


def plain_optimizer(member: Member, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """That of torch, fused where there is one."""
    if member.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=member.learning_rate, fused=True)
    if member.optimizer == "adam":
        return torch.optim.Adam(groups, lr=member.learning_rate, eps=1e-7, fused=True)
    return torch.optim.RMSprop(groups, lr=member.learning_rate, alpha=0.9, eps=1e-7)


def compare(
    chunks: Sequence[list[Member]],
    each: int,
    data: ZooData,
    options: ZooOptions,
    architecture: CnnArchitecture,
) -> dict[str, float]:
    """Microseconds per network and image of both ways."""
    some = [member for chunk in chunks for member in chunk[:each]]
    images = sum(member.steps for member in some) * options.batch_size

    def loop(part: list[Member]) -> float:
        def train_all() -> None:
            for member in part:
                train_plainly(member, data, options, architecture)

        return processor_seconds(train_all)

    short = [dataclasses.replace(member, steps=2) for member in chunks[0]]
    train_plainly(short[0], data, options, architecture)  # what torch does only once
    scoring = {
        len(chunk): processor_seconds(lambda: _train([short[0]] * len(chunk), data, options, architecture))  # noqa: B023
        for chunk in chunks
    }
    before = loop(some[::2])
    zoo = sum(
        processor_seconds(lambda: _train(chunk, data, options, architecture))  # noqa: B023
        - scoring[len(chunk)]
        for chunk in chunks
    )
    after = loop(some[1::2])
    trained = sum(member.steps - 2 for chunk in chunks for member in chunk) * options.batch_size
    return {"at once": 1e6 * zoo / trained, "one by one": 1e6 * (before + after) / images}


def _train(
    chunk: Sequence[Member], data: ZooData, options: ZooOptions, architecture: CnnArchitecture
) -> None:
    train_zoo(chunk, data, options, architecture, score_images=1)


def parts(
    data: ZooData, options: ZooOptions, architecture: CnnArchitecture, networks: int
) -> dict[str, float]:
    """Microseconds per network and image of the parts of a step, and the rates that are reached."""
    generator = torch.Generator().manual_seed(0)
    cnn = StackedCnn(architecture, data.train.shape[-1], "relu")
    packed = torch.randn(networks, architecture.parameters, generator=generator) / 10
    noise = torch.rand(options.batch_size * sum(cnn.units), generator=generator)
    batch = cnn.batch(data.train[: options.batch_size], 0.4, noise)
    target = F.one_hot(data.train_labels[: options.batch_size], architecture.classes).float()
    gradient = torch.empty_like(packed)

    def step() -> None:
        cnn.gradient(packed, batch, target, gradient)

    step()
    with _Clock() as clock:
        for _ in range(5):
            step()
    products = sum(
        value for name, value in clock.seconds.items() if any(word in name for word in ("conv", ".mm", "bmm"))
    )
    seconds = statistics.median(processor_seconds(step) for _ in range(7))
    rate = _operations(cnn) * networks * options.batch_size / seconds / 1e9
    return {
        "step": 1e6 * seconds / networks / options.batch_size,
        "share of products": products / 5 / seconds,
        "operations per image": _operations(cnn),
        "rate of a step (Gflop/s)": rate,
        "rate of a large product (Gflop/s)": _product_rate(),
    }


class _Clock(TorchDispatchMode):
    """Adds up the processor's time by the names of torch's operations."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: dict[str, float] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        start = time.thread_time()
        result = func(*args, **(kwargs or {}))
        self.seconds[str(func)] = self.seconds.get(str(func), 0) + time.thread_time() - start
        return result


def _operations(cnn: StackedCnn) -> float:
    """Floating-point operations of the products for one image, there and back; none back to the pixels."""
    total = 0.0
    channels = [cnn.architecture.in_channels, *cnn.architecture.widths]
    for number, size in enumerate(cnn.used[1:]):
        once = 2 * size**2 * cnn.architecture.kernel_size**2 * channels[number] * channels[number + 1]
        total += once * (2 if number == 0 else 3)
    return total + 6 * channels[-1] * cnn.architecture.classes


def _product_rate(size: int = 1024) -> float:
    one = torch.rand(size, size, generator=torch.Generator().manual_seed(0))
    product: Tensor = one @ one
    seconds = statistics.median(processor_seconds(lambda: torch.mm(one, one, out=product)) for _ in range(5))
    return 2 * size**3 / seconds / 1e9


def table(found: dict[str, float], inside: dict[str, float]) -> str:
    """The results as Markdown."""
    lines = [
        "| trained | us per network and image | 2,000 networks, 60,000 images each, on two cores |",
        "|---|---|---|",
    ]
    for name, value in found.items():
        lines.append(f"| {name} | {value:.1f} | {value * NETWORK_IMAGES / 1e6 / 2 / 60:.0f} min |")
    lines += [
        f"| **at once is {found['one by one'] / found['at once']:.1f} times faster** | | |",
        "",
        f"A gradient takes {inside['step']:.1f} us per network and image, of which {inside['share of products']:.0%} "
        f"go into convolutions and matrix products: {inside['operations per image'] / 1e6:.2f} Mflop, "
        f"{inside['rate of a step (Gflop/s)']:.0f} Gflop/s over the whole gradient, beside "
        f"{inside['rate of a large product (Gflop/s)']:.0f} Gflop/s of one large matrix product.",
    ]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write the table and the numbers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a few networks and steps")
    parser.add_argument("--data", default="mnist_784", help="any source of nfn_opt.data.load_images")
    parser.add_argument("--networks", type=int, default=21, help="networks of each kind, 24 kinds")
    parser.add_argument("--loop", type=int, default=2, help="networks of each chunk in the plain loop")
    parser.add_argument("--steps", type=int, default=30, help="steps of each network")
    parser.add_argument("--chunk-size", type=int, default=24, help="networks trained in step")
    parser.add_argument("--out", type=Path, default=Path("runs/zoo_training"), help="folder to write to")
    given = parser.parse_args(arguments)
    if given.quick:
        given.networks, given.steps, given.chunk_size, given.loop = 2, 4, 2, 1
    torch.set_num_threads(1)
    architecture, options = CnnArchitecture(), ZooOptions(train_fraction=(1.0,))
    dealt = load_images(given.data, size=28, gray=True).split({"train": 5 / 6, "test": 1 / 6}, seed=0)
    data = ZooData.from_images(dealt["train"], dealt["test"])
    drawn = draw_members(options, 100 * given.networks, len(data.train))
    chunks = []
    for kind in itertools.product(options.activation, options.optimizer, options.dropout):
        some = [each for each in drawn if (each.activation, each.optimizer, each.dropout) == kind]
        some = [dataclasses.replace(each, steps=given.steps) for each in some[: given.networks]]
        chunks += plan_chunks(some, given.chunk_size)
    found = compare(chunks, given.loop, data, options, architecture)
    inside = parts(data, options, architecture, given.chunk_size)
    text = table(found, inside)
    print(text)
    given.out.mkdir(parents=True, exist_ok=True)
    with atomic_write(given.out / "zoo_training.md") as temporary:
        temporary.write_text(text)
    write_json(
        given.out / "result.json",
        {
            "config": {name: str(value) if name == "out" else value for name, value in vars(given).items()},
            "environment": environment(),
            "metrics": found | inside | {"speedup": found["one by one"] / found["at once"]},
        },
    )


if __name__ == "__main__":
    main()
