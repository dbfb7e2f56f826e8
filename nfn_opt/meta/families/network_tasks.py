"""Training any network on examples, characters or the pixels of an image, many networks at once."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nfn_opt.data.images import ImageData
from nfn_opt.data.text import TextData
from nfn_opt.meta.families import stacked_models as _models  # noqa: F401  (registers its layers)
from nfn_opt.meta.families.initializers import Initializer
from nfn_opt.meta.families.stacked import run_stacked
from nfn_opt.meta.tasks import Params, Task
from nfn_opt.weight_space import WeightSpace

Batch = tuple[Tensor, Tensor]
Criterion = Callable[[Tensor, Tensor], Tensor]
"""Losses (n,) from outputs (n, B, ...) and targets (n, B, ...)."""

_CHUNK = 512
"""Examples of the full training loss that are computed at once."""


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats of logits (n, ..., classes) and class numbers (n, ...), shape (n,)."""
    each = F.cross_entropy(outputs.reshape(-1, outputs.shape[-1]), targets.reshape(-1), reduction="none")
    return each.view(len(outputs), -1).mean(1)


def mean_squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error of outputs and targets (n, ...), shape (n,)."""
    return (outputs - targets).square().flatten(1).mean(1)


class NetworkTask(Task):
    """Training a network: batched over networks by :func:`run_stacked`, whatever the data.

    Subclasses give :meth:`batch` and :meth:`evaluation`.

    Args:
        network: The architecture, on the meta device or not; without buffers. Its parameters are not read.
        example: Inputs of the form that the network takes, shape (1, ...).
        objective: The loss.
        initializer: How parameters start.
        device: Where to compute.
        dtype: Floating-point type of parameters and inputs.

    Raises:
        ValueError: If the network has buffers.
    """

    def __init__(
        self,
        network: nn.Module,
        example: Tensor,
        *,
        objective: Criterion = cross_entropy,
        initializer: Initializer | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        buffers = [name for name, _ in network.named_buffers()]
        if buffers:
            raise ValueError(
                f"the network has buffers ({', '.join(buffers)}), which training would change; use layers "
                "without, for example group instead of batch normalisation"
            )
        self.network, self.objective = network, objective
        self.initializer = initializer or Initializer()
        self.device, self.dtype = torch.device(device), dtype
        where = next(iter(network.parameters())).device
        kind = torch.get_default_dtype() if example.is_floating_point() else example.dtype
        self._space = WeightSpace.from_module(network, example.to(where, kind))

    @property
    def space(self) -> WeightSpace:
        """See :class:`Task`."""
        return self._space

    def init(self, generator: torch.Generator, n: int) -> Params:
        """Drawn by the initializer."""
        return self.initializer(self.network, generator, n, dtype=self.dtype, device=self.device)

    @abc.abstractmethod
    def batch(self, generator: torch.Generator, n: int) -> Batch:
        """Inputs and targets, each (n, B, ...)."""

    @abc.abstractmethod
    def evaluation(self) -> Batch:
        """Inputs and targets of the full training loss, each (N, ...)."""

    def loss(self, params: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """The objective of the module itself."""
        inputs, targets = batch
        outputs = torch.func.functional_call(self.network, dict(params), (inputs,))
        return self.objective(outputs.unsqueeze(0), targets.unsqueeze(0))[0]

    def losses(self, params: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """See :class:`Task`."""
        return self.objective(run_stacked(self.network, batch[0], params), batch[1])

    @torch.no_grad()
    def full_losses(self, params: Mapping[str, Tensor]) -> Tensor:
        """Mean objective over the examples of :meth:`evaluation`."""
        n = len(next(iter(params.values())))
        inputs, targets = self.evaluation()
        total = torch.zeros(n, dtype=self.dtype, device=self.device)
        for x, y in zip(inputs.split(_CHUNK), targets.split(_CHUNK), strict=True):
            total += len(x) * self.losses(params, (x.expand(n, *x.shape), y.expand(n, *y.shape)))
        return total / len(inputs)


class SupervisedTask(NetworkTask):
    """Training a network on examples; minibatches are drawn with replacement.

    Args:
        network: See :class:`NetworkTask`.
        inputs: All training inputs, shape (N, ...).
        targets: Class numbers, or what the network shall put out, shape (N, ...).
        batch_size: Size of a minibatch.
        objective: See :class:`NetworkTask`.
        initializer: See :class:`NetworkTask`.
        device: See :class:`NetworkTask`.
        dtype: See :class:`NetworkTask`.

    Raises:
        ValueError: If inputs and targets do not match, or the batch size is not positive.

    Example:
        >>> network = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4))
        >>> data = torch.rand(20, 4)
        >>> task = SupervisedTask(network, data, data, batch_size=5, objective=mean_squared_error)
        >>> generator = torch.Generator().manual_seed(0)
        >>> task.losses(task.init(generator, 7), task.batch(generator, 7)).shape
        torch.Size([7])
    """

    def __init__(
        self,
        network: nn.Module,
        inputs: Tensor,
        targets: Tensor,
        *,
        batch_size: int = 64,
        objective: Criterion = cross_entropy,
        initializer: Initializer | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if len(inputs) != len(targets) or len(inputs) == 0:
            raise ValueError(
                f"got {len(inputs)} inputs and {len(targets)} targets, expected equally many, at least one"
            )
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        options = {"objective": objective, "initializer": initializer, "device": device, "dtype": dtype}
        super().__init__(network, inputs[:1], **options)  # type: ignore[arg-type]
        self.batch_size = batch_size
        self.inputs = inputs.to(device, dtype).contiguous()
        self.targets = targets.to(device, dtype if targets.is_floating_point() else targets.dtype)

    def batch(self, generator: torch.Generator, n: int) -> Batch:
        """See :class:`NetworkTask`."""
        shape = (n, self.batch_size)
        chosen = torch.randint(len(self.inputs), shape, generator=generator, device=generator.device)
        chosen = chosen.to(self.device)
        return self.inputs[chosen], self.targets[chosen]

    def evaluation(self) -> Batch:
        """All examples."""
        return self.inputs, self.targets


class CharTask(NetworkTask):
    """Predicting the next character of a text.

    Args:
        network: From codes (B, T) to logits (B, T, alphabet).
        text: The text.
        length: Characters of an excerpt, T.
        batch_size: Excerpts in a minibatch.
        evaluated: Largest number of excerpts, spread evenly over the text, of the full training loss.
        initializer: See :class:`NetworkTask`.
        device: See :class:`NetworkTask`.
        dtype: See :class:`NetworkTask`.

    Raises:
        ValueError: If the text is shorter than an excerpt.
    """

    def __init__(
        self,
        network: nn.Module,
        text: TextData,
        *,
        length: int = 16,
        batch_size: int = 16,
        evaluated: int = 512,
        initializer: Initializer | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if len(text) <= length or length < 1:
            raise ValueError(
                f"the text has {len(text)} characters, expected more than length={length}, at least 1; "
                "give a longer text or a shorter length"
            )
        example = torch.zeros(1, length, dtype=torch.int64)
        super().__init__(network, example, initializer=initializer, device=device, dtype=dtype)
        self.codes, self.length, self.batch_size = text.codes.to(device), length, batch_size
        starts = torch.arange(0, len(text) - length, length, device=device)
        places = torch.linspace(0, len(starts) - 1, min(evaluated, len(starts)), device=device).long()
        self._evaluation = self._excerpts(starts[places])

    def _excerpts(self, starts: Tensor) -> Batch:
        """Codes and next codes, each (..., T), from where excerpts start (...)."""
        place = starts.unsqueeze(-1) + torch.arange(self.length + 1, device=self.device)
        codes = self.codes[place]
        return codes[..., :-1], codes[..., 1:]

    def batch(self, generator: torch.Generator, n: int) -> Batch:
        """Excerpts that start anywhere, and the same one character later, each (n, B, T)."""
        limit = len(self.codes) - self.length
        shape = (n, self.batch_size)
        starts = torch.randint(limit, shape, generator=generator, device=generator.device)
        return self._excerpts(starts.to(self.device))

    def evaluation(self) -> Batch:
        """Excerpts spread evenly over the text."""
        return self._evaluation


class InrTask(NetworkTask):
    """Fitting each network to the pixels of one image.

    A coordinate is (row, column), each from -1 to 1 at the centres of the outermost pixels; an image with
    values in [0, 1] is fitted as ``2 x - 1``, by mean squared error. With several images, network ``i`` of a
    batch of networks fits image ``i % M``, so networks must then stay at their places.

    Args:
        network: From coordinates (B, 2) to values (B, C).
        data: Images, shape (M, H, W, C).
        batch_size: Pixels in a minibatch, drawn with replacement; ``None`` for all pixels at every step.
        initializer: See :class:`NetworkTask`.
        device: See :class:`NetworkTask`.
        dtype: See :class:`NetworkTask`.
    """

    def __init__(
        self,
        network: nn.Module,
        data: ImageData,
        *,
        batch_size: int | None = 128,
        initializer: Initializer | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        height, width = data.images.shape[1:3]
        axes = [torch.linspace(-1, 1, side, dtype=dtype, device=device) for side in (height, width)]
        self.coordinates = torch.cartesian_prod(*axes)
        self.values = (2 * data.images.flatten(1, 2) - 1).to(device, dtype)
        self.batch_size, self.by_place = batch_size, len(self.values) > 1
        super().__init__(
            network,
            self.coordinates[:1],
            objective=mean_squared_error,
            initializer=initializer,
            device=device,
            dtype=dtype,
        )

    def batch(self, generator: torch.Generator, n: int) -> Batch:
        """Coordinates (n, B, 2) and values (n, B, C)."""
        if self.batch_size is None:
            return self._all_pixels(n)
        shape = (n, self.batch_size)
        chosen = torch.randint(len(self.coordinates), shape, generator=generator, device=generator.device)
        chosen = chosen.to(self.device)
        image = torch.arange(n, device=self.device).remainder(len(self.values)).unsqueeze(1)
        return self.coordinates[chosen], self.values[image, chosen]

    def evaluation(self) -> Batch:
        """All pixels of the first image."""
        return self.coordinates, self.values[0]

    @torch.no_grad()
    def full_losses(self, params: Mapping[str, Tensor]) -> Tensor:
        """Mean squared error over all pixels of each network's image."""
        return self.losses(params, self._all_pixels(len(next(iter(params.values())))))

    def _all_pixels(self, n: int) -> Batch:
        """Coordinates (n, H * W, 2) and values (n, H * W, C) of the images of ``n`` networks."""
        image = torch.arange(n, device=self.device).remainder(len(self.values))
        return self.coordinates.expand(n, *self.coordinates.shape), self.values[image]
