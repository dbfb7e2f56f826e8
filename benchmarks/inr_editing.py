"""Learned edits of INRs beside those of the ``nfn`` package, on the same INRs.

python -m benchmarks.inr_editing [--edit dilate|contrast] [--images FILE] [--quick | --full] --out FOLDER

One SIREN is fitted to each image, from initial weights of its own. The error is the mean square between rendered edited
INR and edited image, values in [-1, 1] as in arXiv:2302.14040 and arXiv:2305.13546 (four times that of [0, 1]), on INRs
of held-out images. The reference is the NP editor of the ``nfn`` package as its authors set it up for this task:
Fourier features of 128 frequencies at scale 3, sinusoidal position encoding, three hidden layers of 128, Adam at 1e-3
after a linear warm-up of 1,000 steps, batches of 32. The default editor is trained twice, for as many steps and for
as many seconds as the reference, each in turn on the machine; the other bodies for as many steps. Seconds
are those of training steps. Refit goes on optimising each INR on the edited image itself, which an editor never sees.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from editors import (
    Editor,
    EditorConfig,
    FitOptions,
    InrSet,
    TrainEditorConfig,
    coordinates,
    draw_rows,
    fit,
    get_edit,
    no_edit_error,
    siren_apply,
    train_editor,
)
from editors.stacked import fit_chunk
from nfn_opt.data import load_images
from nfn_opt.functionals import EquivariantConfig
from nfn_opt.meta.run_folder import environment, write_json

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the package uses names that newer libraries have deprecated
    from nfn.common import WeightSpaceFeatures, network_spec_from_wsfeat
    from nfn.layers import (
        GaussianFourierFeatureTransform,
        IOSinusoidalEncoding,
        LearnedScale,
        NPLinear,
        TupleOp,
    )

PARTS = ("train", "validation", "test")
SOURCES = {"dilate": "mnist_784", "contrast": "CIFAR_10"}
"""Where the images of an edit come from, if no file is given."""

REFITS = (1, 2, 5, 10, 20, 50, 100)
CHUNK = 100
"""INRs that are edited, rendered or refitted at once."""

Params = Mapping[str, Tensor]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
    """Sizes.

    Attributes:
        counts: INRs for training, for choosing the weights that are kept, and for the error.
        steps: Training steps.
        batch_size: INRs a step.
        seeds: Trainings of each editor.
        warmup: Steps of the reference's warm-up.
    """

    counts: tuple[int, int, int] = (5000, 500, 1000)
    steps: int = 1000
    batch_size: int = 32
    seeds: int = 3
    warmup: int = 1000


QUICK = Protocol(counts=(200, 50, 50), steps=20, seeds=1, warmup=20)
FULL = Protocol(counts=(45_000, 5_000, 10_000), steps=50_000)


@dataclasses.dataclass(frozen=True)
class Problem:
    """INRs and the images that they are to become, by part."""

    inrs: Mapping[str, InrSet]
    targets: Mapping[str, Tensor]

    def error(self, edit: Callable[[Params], Params], part: str = "test") -> float:
        """Mean squared error of an edit of weights, values in [-1, 1]."""
        inrs, wanted, total = self.inrs[part], self.targets[part], 0.0
        with torch.no_grad():
            for start in range(0, len(inrs), CHUNK):
                some = inrs[slice(start, start + CHUNK)]
                found = render(inrs, edit(some.params))
                total += (found - wanted[start : start + CHUNK]).square().mean().item() * len(some)
        return total / len(inrs)


@dataclasses.dataclass(frozen=True)
class Trained:
    """One training: seconds of its steps, and the error on the test INRs."""

    error: float
    seconds: float
    steps: int
    parameters: int


def render(inrs: InrSet, params: Params) -> Tensor:
    """Values in [-1, 1], not clamped, ``(B, P, C)``."""
    return siren_apply(params, coordinates(*inrs.image_size), inrs.config)


def make_problem(edit: str, images: str, counts: Sequence[int], folder: Path) -> Problem:
    """Fit the INRs, or read those that were fitted before."""
    data = load_images(images)
    if edit == "dilate":
        data = data.gray()
    if len(data) < sum(counts):
        raise ValueError(
            f"{images} has {len(data)} images, expected {sum(counts)} or more; give another file"
        )
    parts = data.split(dict(zip(PARTS, counts, strict=True)), seed=0)
    inrs, targets = {}, {}
    for seed, (part, some) in enumerate(parts.items()):
        path = folder / f"inrs_{edit}_{part}_{len(some)}.safetensors"
        if not path.is_file():
            fit(some, seed=seed, progress=True).save(path)
        inrs[part] = InrSet.load(path)
        targets[part] = (2 * get_edit(edit)(some.images) - 1).flatten(1, 2)
    return Problem(inrs, targets)


class Reference(nn.Module):
    """The NP editor of the ``nfn`` package.

    Args:
        inrs: Some of the INRs.
    """

    def __init__(self, inrs: InrSet) -> None:
        super().__init__()
        self.layers = inrs.config.hidden_layers + 1
        spec = network_spec_from_wsfeat(self._features(inrs[:1].params), set_all_dims=True)
        fourier, position = GaussianFourierFeatureTransform(spec, 1, 128, scale=3), IOSinusoidalEncoding(spec)
        sizes = [position.num_out_chan(fourier.out_channels), 128, 128, 128]
        hidden: list[nn.Module] = []
        for into, out in itertools.pairwise(sizes):
            hidden += [NPLinear(spec, into, out), TupleOp(nn.ReLU())]
        self.network = nn.Sequential(
            fourier, position, *hidden, NPLinear(spec, 128, 1), LearnedScale(spec, 0.01)
        )

    def edit_params(self, params: Params) -> dict[str, Tensor]:
        """The edited weights."""
        change, edited = self.network(self._features(params)), {}
        for i in range(self.layers):
            for kind, values in (("weight", change.weights[i]), ("bias", change.biases[i])):
                edited[f"layers.{i}.{kind}"] = params[f"layers.{i}.{kind}"] + values.squeeze(1)
        return edited

    def _features(self, params: Params) -> Any:
        return WeightSpaceFeatures(
            *(
                [params[f"layers.{i}.{kind}"].unsqueeze(1) for i in range(self.layers)]
                for kind in ("weight", "bias")
            )
        )


class FlatEditor(Editor):
    """An MLP on all weights in a row, which knows no symmetry: the baseline of arXiv:2302.14040 (App. C.2)."""

    def __init__(self, config: EditorConfig, *, generator: torch.Generator | None = None) -> None:
        super().__init__(config, generator=generator)
        numel = sum(spec.numel for spec in self.space.parameters)
        sizes = (numel, 1000, 1000, 1000)
        layers: list[nn.Module] = []
        for into, out in itertools.pairwise(sizes):
            layers += [nn.Linear(into, out), nn.ReLU()]
        self.body = Flat(nn.Sequential(*layers, nn.Linear(1000, numel)))  # type: ignore[assignment]


class Flat(nn.Module):
    """Weight features of one channel through a network of vectors."""

    def __init__(self, network: nn.Module, scale: float = 0.01) -> None:
        super().__init__()
        self.network, self.scale = network, nn.Parameter(torch.tensor(scale))

    def forward(self, features: Params) -> dict[str, Tensor]:
        """See :class:`~nfn_opt.functionals.EquivariantFunctional`."""
        flat = torch.cat([value.flatten(1) for value in features.values()], 1)
        parts = (self.scale * self.network(flat)).split([value[0].numel() for value in features.values()], 1)
        return {
            name: part.view_as(value) for (name, value), part in zip(features.items(), parts, strict=True)
        }


def bodies(config: EditorConfig) -> dict[str, Callable[[torch.Generator], Editor]]:
    """Editors beside the default one, each differing in one thing."""

    def of(**options: Any) -> Callable[[torch.Generator], Editor]:
        return lambda generator: Editor(dataclasses.replace(config, **options), generator=generator)

    def body(**options: Any) -> EquivariantConfig:
        return dataclasses.replace(config.body, **options)

    return {
        "signs and phases as fitted": of(canonical=False),
        "no Fourier features": of(body=body(fourier_frequencies=0)),
        "HNP": of(symmetry="hidden"),
        "NF-Transformer": of(body=body(mixing="attention", norm=False, residual=False)),
        "pointwise": of(body=body(mixing="pointwise")),
        "flat MLP": lambda generator: FlatEditor(config, generator=generator),
    }


def train_ours(
    make: Callable[[torch.Generator], Editor], problem: Problem, seed: int, config: TrainEditorConfig
) -> tuple[Trained, Editor]:
    """Train an editor as users do; the seconds are without validations."""
    editor, shape = make(torch.Generator().manual_seed(seed)), problem.inrs["train"].image_size
    images = ((problem.targets["train"] + 1) / 2).unflatten(1, shape)
    history = train_editor(editor, problem.inrs["train"], images, config=config)
    found = problem.error(editor.edit_params)
    return Trained(found, history[-1]["seconds"], config.steps, count(editor)), editor


def train_reference(problem: Problem, seed: int, protocol: Protocol) -> Trained:
    """Train the reference as its authors do."""
    torch.manual_seed(seed)
    inrs, wanted = problem.inrs["train"], problem.targets["train"]
    editor = Reference(inrs)
    optimizer = torch.optim.Adam(editor.parameters(), lr=1e-3)
    order = torch.Generator().manual_seed(seed)
    start = time.perf_counter()
    for step in range(protocol.steps):
        optimizer.param_groups[0]["lr"] = 1e-3 * min(1.0, (step + 1) / protocol.warmup)
        index = torch.randint(len(inrs), (protocol.batch_size,), generator=order)
        edited = editor.edit_params({name: value[index] for name, value in inrs.params.items()})
        loss = (render(inrs, edited) - wanted[index]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    seconds = time.perf_counter() - start
    return Trained(problem.error(editor.edit_params), seconds, protocol.steps, count(editor))


def count(module: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in module.parameters())


def refits(problem: Problem, lr: float = 4e-3) -> dict[int, tuple[float, float]]:
    """Error and milliseconds for each INR after so many steps of Adam on the edited images themselves."""
    inrs, wanted, found = problem.inrs["test"], problem.targets["test"], {}
    coords = coordinates(*inrs.image_size)
    for steps in REFITS:
        total, seconds = 0.0, 0.0
        for start in range(0, len(inrs), CHUNK):
            # In the order of the layers, which files do not keep.
            params = {
                name: inrs.params[name][start : start + CHUNK].clone()
                for name in inrs.config.parameter_shapes
            }
            targets = wanted[start : start + CHUNK].mT.contiguous()
            begin = time.perf_counter()
            fit_chunk(params, targets, coords, inrs.config, FitOptions(steps=steps, lr=lr))
            seconds += time.perf_counter() - begin
            total += (render(inrs, params) - targets.mT).square().mean().item() * len(targets)
        found[steps] = total / len(inrs), 1e3 * seconds / len(inrs)
    return found


def milliseconds(editor: Editor, problem: Problem, repeats: int = 5) -> float:
    """Median time of one edit in batches, rendering included, as a refit's; for each INR."""
    inrs, times = problem.inrs["test"][:CHUNK], []
    with torch.no_grad():
        for _ in range(repeats + 1):
            start = time.perf_counter()
            render(inrs, editor.edit_params(inrs.params))
            times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times[1:]) / len(inrs)


def table(found: Mapping[str, Sequence[Trained]], no_edit: float) -> str:
    """Rows of a Markdown table: mean and standard deviation over seeds."""
    lines = [
        "| editor | parameters | steps | seconds | held-out error | share of no edit |",
        "|---|---|---|---|---|---|",
        f"| no edit | | | | {no_edit:.4f} | 1 |",
    ]
    for name, some in found.items():
        errors = [one.error for one in some]
        spread = f" ± {statistics.stdev(errors):.4f}" if len(errors) > 1 else ""
        mean, seconds = statistics.mean(errors), statistics.mean(one.seconds for one in some)
        lines.append(
            f"| {name} | {some[0].parameters:,} | {some[0].steps:,} | {seconds:.0f} | {mean:.4f}{spread} | "
            f"{mean / no_edit:.3f} |"
        )
    return "\n".join(lines) + "\n"


def draw(
    path: Path,
    found: Mapping[str, Sequence[Trained]],
    refitted: Mapping[int, tuple[float, float]],
    no_edit: float,
    edit_ms: float,
) -> None:
    """Errors of all editors, and the editor's beside refitting, against the time for each INR."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    names = list(found)
    means = [statistics.mean(one.error for one in found[name]) / no_edit for name in names]
    left.barh(names[::-1], means[::-1], color=["C0" if "default" in name else "C7" for name in names[::-1]])
    for place, mean in enumerate(means[::-1]):
        left.text(mean, place, f" {mean:.3f}", va="center", fontsize=8)
    left.set(xlabel="held-out error, share of no edit", title="Editors")
    left.set_xlim(0, max(1.0, *means) * 1.12)
    times = [ms for _, ms in refitted.values()]
    right.loglog(
        times, [error for error, _ in refitted.values()], "o-", color="C7", label="refit on the edited image"
    )
    for (error, ms), steps in zip(refitted.values(), refitted, strict=True):
        right.annotate(f"{steps}", (ms, error), textcoords="offset points", xytext=(4, 4), fontsize=7)
    default = next(name for name in names if "default" in name and "seconds" in name)
    right.plot(
        edit_ms, statistics.mean(one.error for one in found[default]), "*", ms=14, label="default editor"
    )
    right.axhline(no_edit, color="k", ls=":", lw=1, label="no edit")
    right.set(
        xlabel="ms for one INR, in batches",
        ylabel="held-out error",
        title="One edit beside refitting (numbers: steps)",
    )
    right.legend(fontsize=8)
    right.grid(alpha=0.3)
    figure.savefig(path, dpi=130)


def run(options: argparse.Namespace, protocol: Protocol) -> None:
    """Train all and write table, pictures and numbers."""
    options.out.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    problem = make_problem(
        options.edit, options.images or SOURCES[options.edit], protocol.counts, options.out
    )
    test, shape = problem.inrs["test"], problem.inrs["test"].image_size
    images = ((problem.targets["test"] + 1) / 2).unflatten(1, shape)
    no_edit = no_edit_error(test, images)
    config = EditorConfig(siren=test.config, edit=options.edit, image_size=shape)

    def default(generator: torch.Generator) -> Editor:
        return Editor(config, generator=generator)

    def recipe(steps: int, seed: int) -> TrainEditorConfig:
        return TrainEditorConfig(steps=steps, batch_size=protocol.batch_size, seed=seed, validate_every=steps)

    found: dict[str, list[Trained]] = {}

    def report(name: str, one: Trained) -> None:
        found.setdefault(name, []).append(one)
        print(
            f"{name}: error {one.error:.4f}, {one.error / no_edit:.3f} of no edit, {one.steps} steps in "
            f"{one.seconds:.0f} s",
            flush=True,
        )

    for seed in range(protocol.seeds):
        reference = train_reference(problem, seed, protocol)
        report("nfn NP", reference)
        same, editor = train_ours(default, problem, seed, recipe(protocol.steps, seed))
        report("default, same steps", same)
        steps = max(1, int(protocol.steps * reference.seconds / same.seconds))
        longer, editor = train_ours(default, problem, seed, recipe(steps, seed))
        report("default, same seconds", longer)
    for name, make in bodies(config).items():
        for seed in range(options.body_seeds):
            report(name, train_ours(make, problem, seed, recipe(protocol.steps, seed))[0])
    refitted, edit_ms = refits(problem), milliseconds(editor, problem)
    lines = [
        table(found, no_edit),
        f"One edit takes {edit_ms:.2f} ms in batches of {CHUNK}.\n",
        "| refit steps | ms for one INR | held-out error |",
        "|---|---|---|",
    ]
    lines += [f"| {steps} | {ms:.2f} | {error:.5f} |" for steps, (error, ms) in refitted.items()]
    text = "\n".join(lines) + "\n"
    print(text)
    (options.out / "inr_editing.md").write_text(text)
    editor.save(options.out / "editor.safetensors")
    draw(options.out / "inr_editing.png", found, refitted, no_edit, edit_ms)
    some = test[:10]
    rows = {
        "INR": some.render(),
        "exact edit": images[:10],
        "learned edit": editor(some).render(),
        "4x pixels": editor(some).render((4 * shape[0], 4 * shape[1])),
    }
    draw_rows(options.out / "examples.png", rows, f"{options.edit} of held-out INRs, default editor")
    write_json(
        options.out / "result.json",
        {
            "config": {"edit": options.edit, "images": options.images, **dataclasses.asdict(protocol)},
            "environment": environment(),
            "seconds": time.perf_counter() - started,
            "no_edit": no_edit,
            "psnr_db": test.psnr.mean().item(),
            "editors": {name: [dataclasses.asdict(one) for one in some] for name, some in found.items()},
            "refit": {str(steps): {"error": error, "ms": ms} for steps, (error, ms) in refitted.items()},
            "edit_ms": edit_ms,
        },
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--edit", choices=sorted(SOURCES), default="dilate")
    parser.add_argument("--images", help="file of images; downloaded from OpenML if not given")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="a few INRs and steps: whether it runs")
    size.add_argument("--full", action="store_true", help="the papers' protocol: 60,000 INRs, 50,000 steps")
    parser.add_argument("--steps", type=int, help="training steps, in place of the protocol's")
    parser.add_argument("--seeds", type=int, help="trainings of reference and default, likewise")
    parser.add_argument("--body-seeds", type=int, default=1, help="trainings of each other body")
    parser.add_argument("--out", type=Path, default=Path("runs/inr_editing"), help="folder to write to")
    options = parser.parse_args(arguments)
    protocol = QUICK if options.quick else FULL if options.full else Protocol()
    given = {
        name: getattr(options, name) for name in ("steps", "seeds") if getattr(options, name) is not None
    }
    run(options, dataclasses.replace(protocol, **given))


if __name__ == "__main__":
    main()
