"""Predicted returns and their ascent: exact symmetries, scales, what is learned on a zoo whose answer is known."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from nfn_opt.data.policies import (
    ImproveConfig,
    PolicyArchitecture,
    ReturnPredictor,
    flip_signs,
    improve,
    random_steps,
    train_return_predictor,
    visited_observations,
)
from nfn_opt.data.policies.architecture import stacked_outputs
from nfn_opt.data.policies.prediction import ReturnScale
from nfn_opt.data.zoos import Zoo
from nfn_opt.predictors import PredictorConfig, kendall_tau
from nfn_opt.training import TrainingConfig

ARCHITECTURE = PolicyArchitecture(observations=3, outputs=2, hidden=(5, 4))
STATE = torch.tensor([0.5, -1.0, 0.3])


def draw(count: int, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ARCHITECTURE.parameter_shapes
    return {name: torch.randn(count, *shape, generator=generator) for name, shape in shapes.items()}


def known_return(params: dict[str, Tensor]) -> Tensor:
    """A return that is known: how much the policy prefers its first action in one state, from -100 to 100."""
    left, right = (
        stacked_outputs(params, STATE.expand(len(params["layers.0.bias"]), 1, 3)).squeeze(1).unbind(1)
    )
    return 100 * (0.5 * (left - right)).tanh().double()


def known_zoo(count: int, seed: int) -> Zoo:
    params = draw(count, seed)
    return Zoo(params, ARCHITECTURE, {"mean_return": known_return(params)})


@pytest.fixture(scope="module")
def predictors() -> list[ReturnPredictor]:
    config = PredictorConfig(kind="probing", probes=8, embedding=16, head_width=16, hidden_channels=2)
    training = TrainingConfig(steps=150, batch_size=64, lr=1e-2, warmup=10, validate_every=50)
    zoos = known_zoo(400, 1), known_zoo(50, 2)
    return [
        train_return_predictor(*zoos, config=config, training=dataclasses.replace(training, seed=seed))
        for seed in range(2)
    ]


def test_held_out_policies_are_ranked(predictors: list[ReturnPredictor]) -> None:
    test = draw(200, 3)
    assert kendall_tau(predictors[0].returns(test).double(), known_return(test)) > 0.6
    assert not torch.equal(predictors[0].returns(test), predictors[1].returns(test))


def test_training_is_deterministic() -> None:
    config = PredictorConfig(kind="hnp", embedding=4, head_width=4, hidden_channels=2)
    training = TrainingConfig(steps=3, batch_size=8, warmup=1, validate_every=3)
    one, two = (
        train_return_predictor(known_zoo(20, 1), known_zoo(9, 2), config=config, training=training)
        for _ in range(2)
    )
    assert all(
        torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True)
    )


def test_ascent_raises_what_is_known_and_random_steps_do_not(predictors: list[ReturnPredictor]) -> None:
    start = draw(30, 4)
    copies = {name: value.clone() for name, value in start.items()}
    found = improve(start, predictors, ImproveConfig(steps=15, radius=0.3))
    gain = known_return(found.params) - known_return(start)
    generator = torch.Generator().manual_seed(0)
    random = known_return(random_steps(start, found.distance, generator)) - known_return(start)
    assert gain.mean() > 20
    assert gain.mean() > random.mean() + 20
    assert (found.predicted_gain >= 0).double().mean() > 0.9
    assert found.distance.max() <= 0.3 + 1e-5
    for name, value in copies.items():
        assert torch.equal(start[name], value)


def test_random_steps_go_as_far_as_told(generator: torch.Generator) -> None:
    start, distance = draw(3), torch.tensor([0.1, 0.0, 2.0])
    moved = random_steps(start, distance, generator)
    flat, there = (torch.cat([value.flatten(1) for value in each.values()], 1) for each in (start, moved))
    torch.testing.assert_close((there - flat).norm(dim=1) / flat.norm(dim=1), distance)


def test_pessimism_counts(predictors: list[ReturnPredictor]) -> None:
    start = draw(10, 5)
    brave, timid = (
        improve(start, predictors, ImproveConfig(steps=10, pessimism=pessimism)) for pessimism in (0.0, 5.0)
    )

    def disagreement(params: dict[str, Tensor]) -> Tensor:
        with torch.no_grad():
            return torch.stack([predictor(params) for predictor in predictors]).std(0).mean()

    assert disagreement(timid.params) < disagreement(brave.params)


def test_the_scale_and_its_inverse() -> None:
    scale = ReturnScale(6)
    scale.fit(torch.tensor([9.0, 500.0, 100.0, 500.0, 20.0, 500.0]))
    assert scale.scores(torch.tensor([9.0, 500.0, 60.0, -5.0, 900.0])).tolist() == pytest.approx(
        [0, 0.8, 0.3, 0, 1]
    )
    values = torch.tensor([9.0, 12.0, 60.0, 300.0])
    torch.testing.assert_close(scale.returns(scale.scores(values)), values)


def test_flipped_signs_leave_the_policy_as_it_is(generator: torch.Generator) -> None:
    params, seen = draw(4), torch.randn(4, 7, 3, generator=generator)
    flipped = flip_signs(params, generator)
    assert (flipped["layers.0.weight"] != params["layers.0.weight"]).any()
    torch.testing.assert_close(stacked_outputs(flipped, seen), stacked_outputs(params, seen))


def test_observations_that_are_visited(generator: torch.Generator) -> None:
    architecture = PolicyArchitecture.of_environment("Pendulum-v1", (3,))
    params = {name: torch.randn(5, *shape) for name, shape in architecture.parameter_shapes.items()}
    seen = visited_observations(params, architecture, "Pendulum-v1", count=9, generator=generator, steps=4)
    assert seen.shape == (9, 3)
    torch.testing.assert_close(seen[:, :2].square().sum(1), torch.ones(9))
    with pytest.raises(ValueError, match="count is 21, expected at most 20"):
        visited_observations(params, architecture, "Pendulum-v1", count=21, generator=generator, steps=4)


def test_refusals(predictors: list[ReturnPredictor]) -> None:
    with pytest.raises(ValueError, match="predictors is empty"):
        improve(draw(2), [])
    with pytest.raises(ValueError, match=r"params has 0.weight, .* beside layers.0.weight"):
        predictors[0].returns({f"{number}.weight": value for number, value in enumerate(draw(2).values())})
    alone = improve(draw(2), predictors[0], ImproveConfig(steps=2))
    assert torch.equal(alone.before, improve(draw(2), predictors[:1], ImproveConfig(steps=2)).before)
    with pytest.raises(ValueError, match="stack the policies along a first axis"):
        improve({name: value[0] for name, value in draw(2).items()}, predictors)
    with pytest.raises(ValueError, match="radius > 0"):
        ImproveConfig(radius=0.0)
    other = PolicyArchitecture(observations=3, outputs=2, hidden=(4,))
    params = {name: torch.zeros(3, *shape) for name, shape in other.parameter_shapes.items()}
    with pytest.raises(ValueError, match="expected zoos of policies of one architecture"):
        train_return_predictor(known_zoo(3, 1), Zoo(params, other, {"mean_return": torch.zeros(3)}))
    with pytest.raises(ValueError, match="has not the column 'mean_return'"):
        train_return_predictor(known_zoo(3, 1), Zoo(draw(3), ARCHITECTURE, {}))
