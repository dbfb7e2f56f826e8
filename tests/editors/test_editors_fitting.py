"""Fitting reaches its quality, does not depend on how it is cut into chunks, and reports what failed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from editors.fit_options import FitOptions, learning_rate
from editors.fitting import fit
from editors.inr_set import InrSet, psnr
from editors.siren import SirenConfig, coordinates, initial_parameters, siren_apply
from editors.stacked import BETAS, StackedSiren
from nfn_opt.data import ImageData, load_images
from nfn_opt.meta.randomness import seeded_generator


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_images("digits").subset(12)


@pytest.mark.parametrize(
    "config",
    [
        SirenConfig(hidden_width=6, hidden_layers=1, omega_0=5.0),
        SirenConfig(hidden_width=5, hidden_layers=2, out_channels=3),
        SirenConfig(hidden_width=4, hidden_layers=3),
    ],
)
def test_gradient_equals_autograd(config: SirenConfig, generator: torch.Generator) -> None:
    params = {name: value.double() for name, value in initial_parameters(config, 3, generator).items()}
    coords = coordinates(4, 5, dtype=torch.float64)
    targets = torch.rand(3, config.out_channels, 20, generator=generator, dtype=torch.float64)
    network = StackedSiren(params, targets, coords, config)
    for _ in range(2):  # the buffers are reused
        network.forward()
        residual = network.residual.clone()
        network.backward()
    leaves = {name: value.requires_grad_() for name, value in params.items()}
    expected = siren_apply(leaves, coords, config).mT - targets
    torch.testing.assert_close(residual, expected.detach())
    expected.square().mean((1, 2)).sum().backward()
    assert network.values.grad is not None
    for name, grad in network.split(network.values.grad):
        torch.testing.assert_close(grad, leaves[name].grad)


def test_digits_pass_40_db_and_look_like_the_images(digits: ImageData) -> None:
    inrs = fit(digits)
    assert (inrs.psnr > 40).all()
    assert inrs.config.omega_0 == 10
    error = (inrs.render(clamp=False) - digits.images).square().mean((1, 2, 3))
    torch.testing.assert_close(inrs.psnr, -10 * error.log10(), atol=0.1, rtol=0)
    assert torch.equal(inrs.labels, digits.labels)  # type: ignore[arg-type]
    assert inrs.meta["source"] == {"name": "digits", "checksum": digits.checksum}
    assert inrs.meta["fit"]["seed"] == 0


def test_between_the_pixels_the_image_is_smooth(digits: ImageData) -> None:
    """With the default omega_0, the image rendered larger is near the interpolated one."""
    expected = torch.nn.functional.interpolate(
        digits.images.movedim(-1, 1), size=15, mode="bicubic", align_corners=True
    ).clamp(0, 1)
    error = (fit(digits).render((15, 15)).movedim(-1, 1) - expected).square().mean()
    rough = fit(digits, config=SirenConfig(omega_0=30)).render((15, 15)).movedim(-1, 1)
    assert error < 0.02
    assert (rough - expected).square().mean() > 2 * error


def test_colour_and_sides_that_differ(generator: torch.Generator) -> None:
    smooth = torch.rand(3, 2, 2, 3, generator=generator)
    images = torch.nn.functional.interpolate(smooth.movedim(-1, 1), (7, 11), mode="bilinear").movedim(1, -1)
    inrs = fit(images)
    assert inrs.render().shape == (3, 7, 11, 3)
    assert (inrs.psnr > 40).all()
    torch.testing.assert_close(inrs.render(), images, atol=0.1, rtol=0)


def test_arrays_gray_images_and_tensors_are_the_same(digits: ImageData) -> None:
    results = [fit(images, steps=3) for images in (digits, digits.images, digits.images[..., 0].numpy())]
    for result in results[1:]:
        assert torch.equal(result.psnr, results[0].psnr)
        assert result.labels is None


def test_the_seed_decides_and_the_chunk_size_does_not(digits: ImageData) -> None:
    whole, again, cut = fit(digits, steps=5), fit(digits, steps=5), fit(digits, steps=5, chunk_size=5)
    other = fit(digits, steps=5, seed=1)
    for name, value in whole.params.items():
        assert torch.equal(value, again.params[name])
        torch.testing.assert_close(value, cut.params[name], atol=1e-4, rtol=1e-4)
        assert not torch.equal(value, other.params[name])


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_the_number_of_threads_changes_nothing(digits: ImageData) -> None:
    parallel = fit(digits, steps=5, chunk_size=3)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    serial = fit(digits, steps=5, chunk_size=3)
    for name, value in serial.params.items():
        assert torch.equal(value, parallel.params[name])


@pytest.mark.usefixtures("two_threads")
def test_failure_in_a_thread_is_raised(digits: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:

    def interrupted(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("editors.fitting.fit_chunk", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit(digits, chunk_size=1)
    assert torch.get_num_threads() == 2


def test_initial_parameters_are_fresh_or_shared(digits: ImageData) -> None:
    before = torch.get_rng_state()
    fresh, shared = fit(digits, steps=0), fit(digits, steps=0, shared_init=True)
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.equal(fresh.params["layers.0.weight"][0], fresh.params["layers.0.weight"][1])
    for value in shared.params.values():
        assert torch.equal(value, value[:1].expand_as(value))


def test_target_stops_each_inr_as_it_reaches_it(digits: ImageData) -> None:
    inrs = fit(digits, target_psnr=30)
    assert (inrs.psnr >= 30).all()
    assert (inrs.psnr < 45).all()
    rendered = 2 * (inrs.render(clamp=False) - digits.images)
    torch.testing.assert_close(psnr(rendered), inrs.psnr, atol=0.01, rtol=0)


def test_missed_target_is_reported(digits: ImageData) -> None:
    with pytest.warns(
        RuntimeWarning, match=r"12 of 12 INRs never reached 90 dB \(0 are below 0 dB or not finite\)"
    ):
        inrs = fit(digits, steps=5, target_psnr=90)
    assert (inrs.psnr < 90).all()


def test_divergence_is_reported(digits: ImageData) -> None:
    with pytest.warns(
        RuntimeWarning, match=r"12 of 12 INRs never came close to their image .*the first: 0, 1, 2"
    ):
        inrs = fit(digits, steps=5, lr=1e38)
    assert inrs.psnr.isnan().all()
    assert len(inrs[inrs.psnr > 40]) == 0


@pytest.mark.parametrize(
    ("images", "options", "error", "match"),
    [
        ([[1.0]], {}, TypeError, "must be an ImageData, a tensor or an array, got list"),
        (torch.zeros(3, 3), {}, ValueError, r"must have shape \(N, H, W, C\)"),
        (torch.zeros(0, 3, 3), {}, ValueError, "none 0"),
        (torch.full((1, 3, 3), 200.0), {}, ValueError, r"in \[0, 1\], got \[200, 200\].*divide by 255"),
        (np.full((1, 3, 3), np.nan), {}, ValueError, "finite"),
        (
            torch.zeros(1, 3, 3, 3),
            {"config": SirenConfig()},
            ValueError,
            r"use SirenConfig\(out_channels=3\)",
        ),
        (torch.zeros(1, 3, 3), {"steps": -1}, ValueError, "steps must be >= 0"),
        (torch.zeros(1, 3, 3), {"lr": 0.0}, ValueError, "lr must be a positive"),
        (torch.zeros(1, 3, 3), {"chunk_size": -1}, ValueError, "chunk_size must be >= 1"),
        (torch.zeros(1, 3, 3), {"target_psnr": float("nan")}, ValueError, "target_psnr"),
        (torch.zeros(1, 3, 3), {"pixels_per_step": 0}, ValueError, "pixels_per_step must be >= 1"),
        (
            torch.zeros(1, 3, 3),
            {"schedule": "step"},
            ValueError,
            "one of linear, cosine, constant, got 'step'",
        ),
    ],
)
def test_bad_input(images: object, options: dict[str, object], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        fit(images, **options)  # type: ignore[arg-type]


def naive_fit(image: Tensor, params: dict[str, Tensor], config: SirenConfig, options: FitOptions) -> Tensor:
    """The pixels in [-1, 1] that a plain loop with torch's own Adam makes of one image, changing `params`."""
    height, width, _ = image.shape
    coords, target = coordinates(height, width), 2 * image.flatten(0, 1) - 1
    leaves = {name: value.clone().unsqueeze(0).requires_grad_() for name, value in params.items()}
    optimizer = torch.optim.Adam(leaves.values(), lr=options.lr, betas=BETAS)
    draws = seeded_generator(options.seed, "pixels")
    for step in range(options.steps):
        chosen = torch.randperm(len(coords), generator=draws)[: options.pixels_per_step or len(coords)]
        optimizer.param_groups[0]["lr"] = learning_rate(options, step)
        optimizer.zero_grad()
        error = siren_apply(leaves, coords[chosen], config)[0] - target[chosen]
        error.square().mean().backward()
        optimizer.step()
    params |= {name: value.detach()[0] for name, value in leaves.items()}
    return siren_apply(leaves, coords, config)[0].detach()


@pytest.mark.parametrize(
    "options",
    [
        FitOptions(steps=6),
        FitOptions(steps=6, pixels_per_step=20, seed=3),
        FitOptions(steps=6, pixels_per_step=64),
        FitOptions(steps=6, schedule="cosine", lr=1e-2),
        FitOptions(steps=6, schedule="constant", lr=1e-3, pixels_per_step=10),
    ],
)
def test_it_equals_a_plain_loop(digits: ImageData, options: FitOptions) -> None:
    inrs = fit(digits.subset(3), **dataclasses.asdict(options), chunk_size=2)
    start = initial_parameters(inrs.config, 3, torch.Generator().manual_seed(options.seed))
    for number, image in enumerate(digits.images[:3]):
        params = {name: value[number] for name, value in start.items()}
        rendered = naive_fit(image, params, inrs.config, options)
        torch.testing.assert_close(inrs.state_dict(number), params, atol=2e-4, rtol=1e-3)
        error = psnr((rendered - 2 * image.flatten(0, 1) + 1).unsqueeze(0))
        torch.testing.assert_close(inrs.psnr[number : number + 1], error, atol=0.01, rtol=0)


def test_pixels_drawn_do_not_depend_on_chunks_but_on_the_seed(digits: ImageData) -> None:
    whole, cut = (fit(digits, steps=5, pixels_per_step=16, chunk_size=size) for size in (12, 5))
    torch.testing.assert_close(dict(whole.params), dict(cut.params), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(whole.psnr, cut.psnr, atol=1e-3, rtol=0)
    more = fit(digits, steps=5, pixels_per_step=1000, chunk_size=12)
    everything = fit(digits, steps=5, chunk_size=12)
    for name, value in everything.params.items():
        assert torch.equal(value, more.params[name])
        assert not torch.equal(value, whole.params[name])


def test_a_quarter_of_the_pixels_at_a_time_suffices(digits: ImageData) -> None:
    inrs = fit(digits, steps=400, pixels_per_step=16)
    assert (inrs.psnr > 40).all()
    stopped = fit(digits, steps=400, pixels_per_step=16, target_psnr=30)
    assert (stopped.psnr >= 30).all()
    rendered = 2 * (stopped.render(clamp=False) - digits.images)
    torch.testing.assert_close(psnr(rendered), stopped.psnr, atol=0.01, rtol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("options", [{}, {"pixels_per_step": 32, "steps": 50}])
def test_a_gpu_fits_the_same(digits: ImageData, options: dict[str, int]) -> None:
    here, there = fit(digits, **options), fit(digits, device="cuda", **options)  # type: ignore[arg-type]
    assert there.psnr.is_cuda
    assert (there.psnr.cpu() - here.psnr).abs().median() < 3
    assert torch.equal(there.labels.cpu(), digits.labels)  # type: ignore[union-attr]


def test_psnr_of_a_known_error() -> None:
    residual = torch.full((2, 1, 4), 0.2)
    residual[1] = 2.0  # white for black
    torch.testing.assert_close(psnr(residual), torch.tensor([20.0, 0.0]))


def test_progress_does_not_change_the_result(digits: ImageData, capsys: pytest.CaptureFixture[str]) -> None:
    shown = fit(digits, steps=2, progress=True)
    assert "fitting INRs" in capsys.readouterr().err
    silent = fit(digits, steps=2)
    assert capsys.readouterr().err == ""
    assert isinstance(silent, InrSet)
    assert torch.equal(shown.psnr, silent.psnr)
