"""A set of INRs fitted at once, beside fitting them one by one in a plain loop.

python -m benchmarks.inr_set_fitting [--quick] [--data mnist=FILE] [--count 10000] --out FOLDER

One SIREN (2-32-32-1 for MNIST, omega 30), from fresh random initial weights, is fitted to each of the first images of a
set by `editors.fit`. A plain loop does the same for some of them: the module `editors.Siren`, autograd, and torch's own
fused Adam, with the same initial weights, number of steps, learning rates and decay rates, all pixels in every step.
The loop is timed with one thread and with all, half of it before and half after the set, and the faster counts. PSNR is
that of the rendered picture, values in [0, 1] and not clamped.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from editors import FitOptions, Siren, SirenConfig, coordinates, fit
from editors.fit_options import learning_rate
from editors.inr_set import psnr
from editors.siren import initial_parameters
from editors.stacked import BETAS
from nfn_opt.artifacts import atomic_write
from nfn_opt.data import ImageData, load_images
from nfn_opt.meta.run_folder import environment, write_json

KNOWN = {"mnist": "mnist_784", "fashion": "Fashion-MNIST", "cifar10": "CIFAR_10"}
"""Names for --data, and the names at OpenML of what is taken if no file is given."""


@dataclass(frozen=True)
class Measured:
    """How long some fits took, and how good they are."""

    inrs: int
    seconds: float
    psnr_mean: float
    psnr_min: float
    share_at_40_db: float

    @property
    def milliseconds(self) -> float:
        """Per INR."""
        return 1e3 * self.seconds / self.inrs

    @classmethod
    def of(cls, quality: Tensor, seconds: float) -> Measured:
        """The summary of the PSNR of all."""
        share = (quality >= 40).double().mean().item()
        return cls(len(quality), seconds, quality.mean().item(), quality.min().item(), share)


def at_once(data: ImageData, options: FitOptions) -> Measured:
    """The whole set by `editors.fit`."""
    start = time.perf_counter()
    inrs = fit(data, **asdict(options))
    return Measured.of(inrs.psnr, time.perf_counter() - start)


def one_by_one(data: ImageData, start: Mapping[str, Tensor], options: FitOptions, threads: int) -> Measured:
    """Some images in a plain loop, from the same initial parameters as in the set."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        began = time.perf_counter()
        quality = [
            plain_fit(image, {name: value[number] for name, value in start.items()}, options)
            for number, image in enumerate(data.images)
        ]
        return Measured.of(torch.stack(quality), time.perf_counter() - began)
    finally:
        torch.set_num_threads(before)


def plain_fit(image: Tensor, start: Mapping[str, Tensor], options: FitOptions) -> Tensor:
    """One INR, as anyone would fit it; its PSNR in dB."""
    height, width, channels = image.shape
    siren = Siren(SirenConfig.for_images(height, width, channels))
    siren.load_state_dict(dict(start))
    coords, target = coordinates(height, width), 2 * image.flatten(0, 1) - 1
    optimizer = torch.optim.Adam(siren.parameters(), lr=options.lr, betas=BETAS, fused=True)
    for step in range(options.steps):
        optimizer.param_groups[0]["lr"] = learning_rate(options, step)
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(siren(coords), target).backward()
        optimizer.step()
    with torch.no_grad():
        return psnr((siren(coords) - target).unsqueeze(0))[0]


def joined(parts: Sequence[Measured]) -> Measured:
    """Several measurements of the same kind, all of the same number of INRs, as one."""
    return Measured(
        sum(part.inrs for part in parts),
        sum(part.seconds for part in parts),
        statistics.fmean(part.psnr_mean for part in parts),
        min(part.psnr_min for part in parts),
        statistics.fmean(part.share_at_40_db for part in parts),
    )


def measure(data: ImageData, sample: int, options: FitOptions) -> dict[str, Measured]:
    """The set and the loops, on the same machine in the same minutes."""
    config = SirenConfig.for_images(*data.images.shape[1:])
    start = initial_parameters(config, len(data), torch.Generator().manual_seed(options.seed))
    threads = {
        f"one by one, {count} thread{'s' if count > 1 else ''}": count
        for count in {1, torch.get_num_threads()}
    }
    loops: dict[str, list[Measured]] = {name: [] for name in threads}

    def half(part: slice) -> None:
        some = {name: value[part] for name, value in start.items()}
        for name, count in threads.items():
            loops[name].append(one_by_one(data.subset(part), some, options, count))

    fit(data.subset(1), steps=2)  # what torch does only once, and the loop too
    plain_fit(data.images[0], {name: value[0] for name, value in start.items()}, FitOptions(steps=2))
    half(slice(0, sample // 2))
    whole = at_once(data, options)
    half(slice(sample // 2, sample // 2 * 2))
    return {"at once": whole, **{name: joined(parts) for name, parts in loops.items()}}


def speedup(found: Mapping[str, Measured]) -> float:
    """How many times longer the faster loop takes for an INR."""
    loops = [one.milliseconds for name, one in found.items() if name != "at once"]
    return min(loops) / found["at once"].milliseconds


def table(found: Mapping[str, Mapping[str, Measured]]) -> str:
    """The results as Markdown."""
    lines = [
        "| images | fitted | INRs | ms per INR | 10,000 INRs take | mean PSNR (dB) | worst | at least 40 dB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, kinds in found.items():
        for kind, one in kinds.items():
            lines.append(
                f"| {name} | {kind} | {one.inrs:,} | {one.milliseconds:.1f} | {one.milliseconds / 6:.1f} min "
                f"| {one.psnr_mean:.1f} | {one.psnr_min:.1f} | {one.share_at_40_db:.1%} |"
            )
        lines.append(f"| {name} | **at once is {speedup(kinds):.1f} times faster** | | | | | | |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write the table and the numbers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a few INRs and steps")
    parser.add_argument(
        "--data", nargs="+", default=["mnist"], metavar="NAME[=FILE]", help="image sets; files of them"
    )
    parser.add_argument("--count", type=int, default=10_000, help="INRs of the set")
    parser.add_argument("--loop", type=int, default=50, help="INRs of each loop")
    parser.add_argument("--steps", type=int, default=FitOptions().steps, help="Adam steps of a fit")
    parser.add_argument("--lr", type=float, default=FitOptions().lr, help="initial learning rate")
    parser.add_argument("--out", type=Path, default=Path("runs/inr_set_fitting"), help="folder to write to")
    given = parser.parse_args(arguments)
    count, sample = (12, 4) if given.quick else (given.count, given.loop)
    if not 2 <= sample <= count:
        parser.error(f"--loop must be from 2 to --count, got {sample} and {count}")
    options = FitOptions(steps=5 if given.quick else given.steps, lr=given.lr)
    given.out.mkdir(parents=True, exist_ok=True)
    found = {}
    for text in given.data:
        name, _, file = text.partition("=")
        data = load_images(file or KNOWN.get(name, name)).subset(count)
        found[name] = measure(data, sample, options)
        print(table({name: found[name]}), flush=True)
    with atomic_write(given.out / "inr_set_fitting.md") as temporary:
        temporary.write_text(table(found))
    write_json(
        given.out / "result.json",
        {
            "config": {"data": given.data, "count": count, "loop": sample, **asdict(options)},
            "environment": environment(),
            "metrics": {
                f"{name}/{kind}/{key}": value
                for name, kinds in found.items()
                for kind, one in kinds.items()
                for key, value in {**asdict(one), "ms_per_inr": one.milliseconds}.items()
            }
            | {f"{name}/speedup": speedup(kinds) for name, kinds in found.items()},
        },
    )


if __name__ == "__main__":
    main()
