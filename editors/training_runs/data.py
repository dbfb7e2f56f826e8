"""The INRs and edited images of a training run; fits are kept in its folder, so that they are made once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from editors.edit_family import find_family
from editors.edits import get_edit
from editors.errors import no_edit_error
from editors.fitting import fit
from editors.inr_set import InrSet, psnr
from editors.training_runs.config import EditorRunConfig
from nfn_opt.data import ImageData, load_images, load_photo_patches

__all__ = ["Part", "Source", "load_source", "prepare"]

COMPARED = 256
"""INRs of a file that are compared with the images they are said to show."""


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """Images of one part of a run before its INRs are there.

    Attributes:
        images: The images.
        targets: The edited images, values in [0, 1], shape (B, H, W, C); for a family of edits the images themselves.
        inrs: INRs of the images, if they need not be fitted.
    """

    images: ImageData
    targets: Tensor
    inrs: InrSet | None


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """INRs and the edited images.

    Attributes:
        inrs: The INRs.
        targets: The edited images, values in [0, 1], shape (B, H, W, C); for a family of edits the images themselves.
    """

    inrs: InrSet
    targets: Tensor


def load_source(config: EditorRunConfig) -> dict[str, Source]:
    """Disjoint images for validation, test (the reported error) and training.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If there are too few images, the edit cannot be applied to them, or INRs of a file are not theirs.
    """
    family = find_family(config.edit)
    edit = None if family else get_edit(config.edit)
    inrs = None if isinstance(config.inrs, int) else InrSet.load(config.inrs)
    images = _images(config, inrs)
    if len(images) <= 2 * config.held_out:
        raise ValueError(
            f"{config.images} has {len(images)} images, expected more than 2 * held_out = {2 * config.held_out}"
        )
    for member in family.members if family else ():
        member.edit(images.images[:1])  # refuses images that it cannot be applied to
    if inrs is not None:
        _check_shown(inrs, images, config)
    rest = len(images) - 2 * config.held_out
    sizes = {
        "validation": config.held_out,
        "test": config.held_out,
        "train": min(config.inrs, rest) if isinstance(config.inrs, int) else rest,
    }
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(config.seed))
    chosen = order[: sum(sizes.values())].split(list(sizes.values()))
    sources = {}
    for part, index in zip(sizes, chosen, strict=True):
        own = images.subset(index)
        targets = own.images if edit is None else edit(own.images)
        sources[part] = Source(own, targets, None if inrs is None else inrs[index])
    return sources


def _images(config: EditorRunConfig, inrs: InrSet | None) -> ImageData:
    if config.images == "rendered" and inrs is not None:
        labels = torch.zeros(len(inrs), dtype=torch.int64)
        return ImageData(inrs.render(), labels, ("INR",), f"rendered {Path(str(config.inrs)).name}")
    if config.images != "photos":
        return load_images(config.images, size=config.size, gray=config.gray)
    if not isinstance(config.inrs, int) or config.size is None:
        raise ValueError(
            f"images is 'photos', inrs {config.inrs} and size {config.size}: patches are cut out anew and need a "
            "size; expected a number of INRs and a size, or the images that the INRs of the file were fitted to "
            "('rendered' for what they show)"
        )
    count = config.inrs + 2 * config.held_out
    return load_photo_patches(count, config.size, seed=config.seed, gray=config.gray)


def _check_shown(inrs: InrSet, images: ImageData, config: EditorRunConfig) -> None:
    """Refuse INRs that are not those of the images, one by one and in their order."""
    shape = (len(inrs), *inrs.image_size, inrs.config.out_channels)
    if tuple(images.images.shape) != shape:
        raise ValueError(
            f"the images of {config.images} have shape {tuple(images.images.shape)}, expected {shape} as the INRs of "
            f"{config.inrs} have; give the images that they were fitted to (size, gray), or 'rendered' for what the "
            "INRs show"
        )
    some = slice(COMPARED)
    own, other = (
        no_edit_error(inrs[some], shown) for shown in (images.images[some], images.images[some].roll(1, 0))
    )
    if own > other:
        raise ValueError(
            f"the INRs of {config.inrs} do not show the images of {config.images}: their error is {own:.3g}, and "
            f"{other:.3g} against the image before; expected one INR for each image, in the order of the images"
        )


def prepare(config: EditorRunConfig, sources: Mapping[str, Source], folder: Path) -> None:
    """Fit the INRs that the folder has not yet, and keep them there.

    Args:
        config: The run.
        sources: What :func:`load_source` gave.
        folder: The run's folder.

    Raises:
        ValueError: If the folder has INRs of other images.
    """
    for number, (name, source) in enumerate(sources.items()):
        path, data = _file(folder, name), source.images
        if path.exists():
            found = InrSet.load(path).meta.get("source", {}).get("checksum")
            if found != data.checksum:
                raise ValueError(
                    f"{path} holds INRs of other images than those of {config.images} as they are now (checksum "
                    f"{str(found)[:12]}, expected {data.checksum[:12]}); give the same images, or start a new run"
                )
            continue
        if source.inrs is not None:
            reached = psnr(2 * (source.inrs.render(clamp=False) - data.images))
            inrs = dataclasses.replace(source.inrs, psnr=reached)
        else:
            height, width, channels = data.images.shape[1:]
            inrs = fit(
                data,
                config=config.fitting.siren(height, width, channels),
                steps=config.fitting.steps,
                lr=config.fitting.lr,
                seed=config.seed + number,
                device=config.device,
                progress=not config.quiet,
            )
        meta = {**inrs.meta, "source": {"name": data.source, "checksum": data.checksum}}
        dataclasses.replace(inrs, meta=meta).save(path)


def load_parts(sources: Mapping[str, Source], folder: Path, device: str) -> dict[str, Part]:
    """The INRs that :func:`prepare` has left in the folder, with the edited images, on a device."""
    return {
        name: Part(InrSet.load(_file(folder, name)).to(device), source.targets.to(device))
        for name, source in sources.items()
    }


def _file(folder: Path, part: str) -> Path:
    return folder / f"inrs_{part}.safetensors"
