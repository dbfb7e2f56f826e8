"""What :mod:`benchmarks.policies` measures: zoos, predictors, and ascents checked by real roll-outs."""

from __future__ import annotations

import dataclasses
import itertools
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nfn_opt.data.policies import (
    ImproveConfig,
    PolicyArchitecture,
    PolicyOptions,
    ReturnPredictor,
    build_policy_zoo,
    improve,
    random_steps,
    roll_out,
    split_runs,
    train_return_predictor,
    visited_observations,
)
from nfn_opt.data.zoos import Zoo
from nfn_opt.meta.randomness import seeded_generator
from nfn_opt.predictors import PredictorConfig, kendall_tau
from nfn_opt.training import TrainingConfig

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the package uses names that newer libraries have deprecated
    from nfn.common import WeightSpaceFeatures, network_spec_from_wsfeat
    from nfn.layers import HNPLinear, HNPPool, TupleOp

SPLIT = {"train": 0.7, "val": 0.1, "test": 0.2}
"""Shares of the training runs."""

FRESH = 2_000_000
"""Seed of the starts by which ascents are judged, which are not those of the zoo."""

MEDIOCRE = (0.2, 0.7)
"""Shares of the training policies that a mediocre policy beats."""

KINDS: Mapping[str, Mapping[str, Any]] = {
    "HNP": {"kind": "hnp"},
    "HNP and probes": {"kind": "probing", "probes": 128},
    "HNP of the nfn package": {"kind": "hnp"},
    "StatNN": {"kind": "statnn"},
    "flat MLP": {"kind": "mlp-augmented"},
}
"""Predictors by the name in the table."""

HEAD: Mapping[str, Any] = {"embedding": 256, "head_width": 256, "head_layers": 2}
"""What follows the reader, the same for all of them."""

PEER, CLIMBED = "HNP of the nfn package", ("HNP", "HNP and probes")
"""The one that is built of another package's layers, and those that policies climb, each by itself."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """How much is measured.

    Attributes:
        runs: Training runs of each zoo.
        steps: Steps of each predictor's training.
        seeds: Trainings of each predictor.
        policies: Policies that are improved.
        fresh_episodes: Episodes by which each of them is judged before and after.
        resamples: Of each bootstrap.
        climb: How policies are improved.
    """

    runs: int = 1024
    steps: int = 1000
    seeds: int = 3
    policies: int = 20
    fresh_episodes: int = 10
    resamples: int = 500
    climb: ImproveConfig = dataclasses.field(default_factory=ImproveConfig)


@dataclasses.dataclass(frozen=True)
class Setting:
    """An environment of the benchmark.

    Attributes:
        options: How its policies are trained.
        episodes: Episodes by which they are judged.
    """

    options: PolicyOptions
    episodes: int


def settings(quick: bool) -> dict[str, Setting]:
    """The environments."""
    found = {
        "CartPole-v1": Setting(PolicyOptions(generations=14), 6),
        "MountainCarContinuous-v0": Setting(
            PolicyOptions(
                environment="MountainCarContinuous-v0",
                generations=60,
                learning_rate=(0.1, 1.0),
                sigma=(0.2, 2.0),
                init_scale=(2.0, 20.0),  # few small policies ever come to the top
            ),
            4,
        ),
        "Acrobot-v1": Setting(PolicyOptions(environment="Acrobot-v1", generations=30), 4),
        "Pendulum-v1": Setting(PolicyOptions(environment="Pendulum-v1", generations=150), 6),
    }
    if not quick:
        return found
    small = dataclasses.replace(found["CartPole-v1"].options, generations=4, snapshots=3, hidden=(6, 6))
    return {"CartPole-v1": Setting(small, 2)}


def zoo_of(setting: Setting, runs: int, folder: Path, out: Path) -> Zoo:
    """The zoo of an environment: of a file that is there already, or built, or resumed where it was stopped."""
    name = f"zoo_{setting.options.environment}.safetensors"
    path = folder / name if (folder / name).exists() else out / name
    stopped = Path(f"{path}.parts").exists()
    return build_policy_zoo(
        path,
        runs=runs,
        options=setting.options,
        episodes=setting.episodes,
        resume=path.exists() or stopped,
        progress=True,
    ).finite()


class PeerReader(nn.Module):
    """The HNP layers and pooling of the ``nfn`` package, in the place of those of a predictor.

    Args:
        layers: Number of linear layers of the policies.
        example: Weight features ``{name: (1, *axes, 1)}``.
        config: Channels, layers and size of the vector that comes out, as of the predictor.
    """

    def __init__(self, layers: int, example: Mapping[str, Tensor], config: PredictorConfig) -> None:
        super().__init__()
        self.layers = layers
        spec = network_spec_from_wsfeat(self._features(example))
        sizes = [1, *config.hidden_layers * [config.hidden_channels]]
        body: list[nn.Module] = []
        for into, out in itertools.pairwise(sizes):
            body += [HNPLinear(spec, into, out), TupleOp(nn.ReLU())]
        self.body = nn.Sequential(*body, HNPPool(spec))
        pooled = HNPPool.get_num_outs(spec) * config.hidden_channels
        self.linear = nn.Linear(pooled, config.embedding)

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """Map ``{name: (B, *axes, 1)}`` to (B, embedding)."""
        return self.linear(self.body(self._features(features)).flatten(1))

    def _features(self, features: Mapping[str, Tensor]) -> Any:
        return WeightSpaceFeatures(
            *(
                [features[f"layers.{i}.{kind}"].movedim(-1, 1) for i in range(self.layers)]
                for kind in ("weight", "bias")
            )
        )


def put_peer(model: ReturnPredictor, seed: int) -> None:
    """Replace what reads the weights by the other package's layers."""
    predictor = model.predictor
    zeros = {spec.name: torch.zeros(1, *spec.shape) for spec in predictor.space.parameters}
    features = predictor.space.as_features(zeros)
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # its layers draw from the global state
        predictor.reader = PeerReader(len(zeros) // 2, features, predictor.config)  # type: ignore[assignment]


def probe_states(zoo: Zoo, count: int, seed: int) -> Tensor:
    """Observations that the training policies visit, (count, observations)."""
    architecture, environment = zoo.architecture, zoo.meta["run"]["options"]["environment"]
    assert isinstance(architecture, PolicyArchitecture)
    generator = seeded_generator(seed, "benchmarks/policies/probes")
    return visited_observations(zoo.params, architecture, environment, count=count, generator=generator)


def train_one(kind: str, seed: int, parts: Mapping[str, Zoo], plan: Plan, folder: Path) -> ReturnPredictor:
    """A predictor, trained; one that was stopped goes on."""
    config = PredictorConfig(**HEAD, **KINDS[kind])
    training = TrainingConfig(
        steps=plan.steps,
        batch_size=64,
        lr=3e-3,
        weight_decay=0.01,
        validate_every=max(5, plan.steps // 10),
        seed=seed,
    )
    return train_return_predictor(
        parts["train"],
        parts["val"],
        config=config,
        training=training,
        probes=probe_states(parts["train"], config.probes, seed) if config.kind == "probing" else None,
        folder=folder,
        resume=folder.exists(),
        prepare=(lambda model: put_peer(model, seed)) if kind == PEER else None,
    )


def tau_by_run(predicted: Tensor, zoo: Zoo, resamples: int) -> dict[str, float]:
    """Kendall's tau, mean over trainings, with a 95 % interval of a bootstrap over training runs.

    Policies of one run are alike, so runs are resampled, not policies.

    Args:
        predicted: Returns, shape (S, N).
        zoo: The policies.
        resamples: Number of resamples.
    """
    target, run = (torch.as_tensor(zoo.table[name]) for name in ("mean_return", "run"))
    places = [torch.nonzero(run == each).squeeze(1) for each in run.unique()]
    generator = seeded_generator(0, "benchmarks/policies/tau")

    def tau(index: Tensor) -> float:
        return sum(kendall_tau(row[index].double(), target[index]) for row in predicted) / len(predicted)

    drawn = torch.tensor(
        [
            tau(
                torch.cat(
                    [places[i] for i in torch.randint(len(places), (len(places),), generator=generator)]
                )
            )
            for _ in range(resamples)
        ]
    )
    low, high = drawn.quantile(torch.tensor([0.025, 0.975])).tolist()
    each = [kendall_tau(row.double(), target) for row in predicted]
    return {"tau": sum(each) / len(each), "low": low, "high": high, "worst": min(each), "best": max(each)}


def paired_interval(gains: Tensor, resamples: int = 10_000) -> dict[str, float]:
    """Mean gain of policies (N,), with the 95 % interval of a bootstrap over them."""
    generator = seeded_generator(0, "benchmarks/policies/gain")
    index = torch.randint(len(gains), (resamples, len(gains)), generator=generator)
    low, high = gains[index].mean(1).quantile(torch.tensor([0.025, 0.975], dtype=gains.dtype)).tolist()
    return {"mean": float(gains.mean()), "low": low, "high": high}


def choose_mediocre(zoo: Zoo, predictor: ReturnPredictor, count: int) -> Zoo:
    """Held-out policies of middling real returns, of as many different runs as there are, drawn at random."""
    scores = predictor.scale.scores(torch.as_tensor(zoo.table["mean_return"]))
    low, high = MEDIOCRE
    fitting = torch.nonzero((scores >= low) & (scores <= high)).squeeze(1)
    order = fitting[
        torch.randperm(len(fitting), generator=seeded_generator(0, "benchmarks/policies/mediocre"))
    ]
    seen: dict[int, int] = {}
    runs, ranks = torch.as_tensor(zoo.table["run"]), []
    for place in order.tolist():
        run = int(runs[place])
        seen[run] = seen.get(run, -1) + 1
        ranks.append(seen[run])
    return zoo[order[torch.tensor(ranks).argsort(stable=True)][:count]]


def climb(
    chosen: Zoo, environment: str, trained: Mapping[str, Sequence[ReturnPredictor]], plan: Plan
) -> dict[str, Tensor]:
    """Improve policies by the ensemble of all trainings of a kind of predictor, and judge them by fresh episodes.

    Returns:
        Of each policy, shape (N,): the return ``before``; the gain of an ascent by each kind of `CLIMBED`, under its
        name; and of the last kind the gain that it ``predicted``, the ``distance`` that policies went, and the gain of
        ``random`` steps as long, mean over `plan.seeds` draws.
    """
    architecture = chosen.architecture
    assert isinstance(architecture, PolicyArchitecture)

    def real(params: Mapping[str, Tensor]) -> Tensor:
        return roll_out(params, architecture, environment, episodes=plan.fresh_episodes, seed=FRESH).mean

    gains = {"before": real(chosen.params)}
    for kind in CLIMBED:
        found = improve(chosen.params, trained[kind], plan.climb)
        gains[kind] = real(found.params) - gains["before"]
    gains |= {"predicted": found.predicted_gain.double(), "distance": found.distance.double()}
    after = []
    for seed in range(plan.seeds):
        generator = seeded_generator(seed, "benchmarks/policies/random")
        after.append(real(random_steps(chosen.params, found.distance, generator)))
    return gains | {"random": torch.stack(after).mean(0) - gains["before"]}


def measure(setting: Setting, plan: Plan, zoos: Path, out: Path) -> dict[str, Any]:
    """All of one environment."""
    environment = setting.options.environment
    started = time.process_time()
    zoo = zoo_of(setting, plan.runs, zoos, out)
    seconds = {"zoo": time.process_time() - started}
    parts = split_runs(zoo, SPLIT, seed=0)
    trained: dict[str, list[ReturnPredictor]] = {}
    taus, predicted = {}, {}
    for kind in KINDS:
        started = time.process_time()
        trained[kind] = [
            train_one(kind, seed, parts, plan, out / "trainings" / f"{environment} {kind} {seed}")
            for seed in range(plan.seeds)
        ]
        seconds[kind] = time.process_time() - started
        predicted[kind] = torch.stack([model.returns(parts["test"].params) for model in trained[kind]])
        taus[kind] = tau_by_run(predicted[kind], parts["test"], plan.resamples)
        print(f"{environment}, {kind}: {taus[kind]}, {seconds[kind]:.0f} s", flush=True)
    started = time.process_time()
    chosen = choose_mediocre(parts["test"], trained["HNP"][0], plan.policies)
    gains = climb(chosen, environment, trained, plan)
    seconds["ascent"] = time.process_time() - started
    return {
        "zoo": zoo,
        "parts": parts,
        "tau": taus,
        "predicted": predicted,
        "gains": gains,
        "seconds": seconds,
    }
