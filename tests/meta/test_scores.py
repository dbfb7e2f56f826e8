"""Speed-ups, means over tasks and their intervals against plain definitions."""

from __future__ import annotations

import numpy as np
import pytest

from nfn_opt.meta.scores import bootstrap, iqm, progress, smoothed, speed_up, steps_to, win_rate

RNG_SEED = 0


def naive(losses: np.ndarray) -> list[float]:
    mean, lowest, found = losses[0], np.inf, []
    for loss in losses:
        mean = 0.95 * mean + 0.05 * loss
        mean = mean if np.isfinite(mean) else np.inf
        lowest = min(lowest, mean)
        found.append(lowest)
    return found


@pytest.mark.parametrize("broken", [None, 7, 0])
def test_smoothed_equals_a_loop(broken: int | None) -> None:
    losses = np.random.default_rng(RNG_SEED).normal(size=(3, 20))
    if broken is not None:
        losses[1, broken] = np.nan
    expected = [naive(row) for row in losses]
    np.testing.assert_allclose(smoothed(losses), expected, rtol=1e-12)


def test_steps_to_a_target_counts_updates() -> None:
    losses = np.array([[5.0, 5.0, 0.0, 0.0], [5.0, 5.0, 5.0, 5.0]])
    np.testing.assert_array_equal(steps_to(4.75, losses), [2, np.inf])
    np.testing.assert_array_equal(steps_to([5.0, 5.0], losses), [1, 1])


def test_speed_up_is_by_seed_and_failures_are_zero() -> None:
    t = np.arange(400)
    adam = np.stack([np.exp(-0.01 * t), 2 * np.exp(-0.01 * t)])
    twice = np.stack([np.exp(-0.02 * t), 2 * np.exp(-0.02 * t)])
    np.testing.assert_allclose(speed_up(adam, adam), 1)
    assert np.all((speed_up(twice, adam) > 1.8) & (speed_up(twice, adam) < 2.1))
    np.testing.assert_array_equal(speed_up(np.ones((2, 400)), adam), [0, 0])
    np.testing.assert_array_equal(speed_up(twice, adam, failed=[True, False]) == 0, [True, False])
    diverged = twice.copy()
    diverged[0, 10:] = np.nan
    assert speed_up(diverged, adam)[0] == 0
    assert speed_up(twice, np.where(t < 5, adam, np.nan)).tolist() == [speed_up(twice, adam[:, :5])[0]] * 2


def test_progress_of_failures_is_zero() -> None:
    got = progress([1.0, np.inf, 3.0], [3.0, 3.0, 3.0], [2.0, 2.0, 2.0])
    np.testing.assert_array_equal(got, [2.0, 0.0, 0.0])


def test_iqm_is_the_mean_of_the_middle_half() -> None:
    scores = np.random.default_rng(RNG_SEED).normal(size=(4, 3))
    assert iqm(scores) == pytest.approx(np.sort(scores.ravel())[3:9].mean())


def test_win_rate_counts_failures_as_losses_and_ties_as_half() -> None:
    one = np.array([[1.0, 1.0], [1.0, np.inf], [2.0, 2.0]])
    other = np.array([[2.0, 2.0], [3.0, 3.0], [2.0, 2.0]])
    assert win_rate(np.stack([one, other], -1)) == pytest.approx(0.5)


def test_bootstrap_resamples_within_tasks() -> None:
    generator = np.random.default_rng(RNG_SEED)
    scores = np.array([[0.0, 0.0, 0.0], [10.0, 10.0, 10.0]])

    def mean(values: np.ndarray) -> np.ndarray:
        return values.mean((-2, -1))

    assert bootstrap(mean, scores, generator) == (5.0, 5.0, 5.0)
    across = bootstrap(mean, scores, generator, tasks=True)
    assert (across.low, across.high) == (0.0, 10.0)
    noisy = generator.normal(size=(1, 400))
    interval = bootstrap(mean, noisy, generator)
    error = 1.96 * noisy.std() / 20
    assert interval.high - interval.low == pytest.approx(2 * error, rel=0.1)
    assert str(bootstrap(mean, scores, generator)) == "5.00 [5.00, 5.00]"


def test_bootstrap_draws_pairs_together() -> None:
    one = np.random.default_rng(RNG_SEED).normal(size=(6, 3))
    interval = bootstrap(win_rate, np.stack([one, one + 0.1], -1), np.random.default_rng(1))
    assert interval == (1.0, 1.0, 1.0)


def test_nothing_to_resample_is_refused() -> None:
    with pytest.raises(ValueError, match=r"scores have shape \(0, 3\)"):
        bootstrap(iqm, np.zeros((0, 3)), np.random.default_rng(0))
