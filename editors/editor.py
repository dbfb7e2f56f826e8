"""Editors: equivariant functionals that map the weights of an INR to the weights of the edited INR."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelHubMixin, hf_hub_download
from torch import Tensor, nn

from editors.averaging import AVERAGE_OF, averaged_set, interleave, repeat_each
from editors.canonical import Signs, canonicalize
from editors.conditioning import EMBEDDING, ConditionEmbedding, with_constants
from editors.editor_config import EditorConfig
from editors.edits import find_edit
from editors.guide import Guide, Rendering, pull_back, render_for_gradient
from editors.inr_set import InrSet
from editors.named_edit import Edit
from editors.shipped import pretrained_path
from editors.siren import COORDINATES, Siren, config_differences
from nfn_opt.artifacts import ArtifactError, load_artifact, save_artifact
from nfn_opt.functionals import EquivariantFunctional
from nfn_opt.weight_space import WeightSpace

__all__ = ["Editor", "EditorConfig"]

KIND = "editor"
"""The kind of an editor's file."""

NETWORKS_PER_CHUNK = 256
"""INRs edited at once outside training."""

STATISTICS_FROM = 256
"""INRs that the size of gradients is taken from, at most."""

HUB_FILE = "editor.safetensors"
"""Name of the file in a repository of the Hugging Face hub."""


class Editor(
    nn.Module,
    ModelHubMixin,
    library_name="nfn-opt",
    tags=["implicit-neural-representations", "weight-space"],
):
    r"""A learned edit of the weights of INRs, in a few refinements.

    From :math:`W_0 = W`, with :math:`R` refinements and the strength :math:`s`,

    .. math::
        W_r = W_{r-1} + \sigma \odot f_r\!\left(\frac{W_{r-1} - \mu}{\sigma},
        \frac{\sigma \odot g_r(W_{r-1}, W)}{c}\right), \qquad W' = W + s (W_R - W).

    :math:`f_r` are equivariant to permuting the hidden neurons of the INR, so the edit of a permuted INR is the
    permuted edit; unless the configuration says otherwise, the same holds for the signs and phases of its sines.
    :math:`\mu, \sigma` are the mean and standard deviation of each parameter tensor over the INRs that the editor was
    trained on. With one :math:`f` of the weights alone this is the editor of Sec. 4.3 of
    arXiv:2302.14040. :math:`g_r` is the gradient of a guide (:mod:`editors.guide`), which renders the INR as it is
    and never sees an edited picture; :math:`c` are the sizes of such gradients over the INRs of the training.
    With several outputs the last :math:`f_R` gives as many :math:`W_R`, and the edited picture is the mean of what
    they show.

    An editor of a family of edits is told which one is meant, ``editor(inrs, edit="blur(sigma=1.3)")``: guides and
    functionals are given an embedding of it, which is the same for all neurons.

    ``save_pretrained(folder)``, ``push_to_hub(repository)`` and ``from_pretrained(folder or repository)`` are those of
    :class:`huggingface_hub.ModelHubMixin`. Only the latter two may need a network; ``from_pretrained(repository,
    local_files_only=True)`` takes what was downloaded before.

    Args:
        config: What the editor is made of.
        generator: Source of the initial weights; None stands for a new generator of seed 0.

    Example:
        >>> from editors import fit
        >>> inrs = fit(torch.rand(2, 8, 8, 1, generator=torch.Generator().manual_seed(0)), steps=5)
        >>> editor = Editor(EditorConfig(siren=inrs.config, edit="dilate", image_size=(8, 8)))
        >>> same = editor(inrs, strength=0.0)
        >>> all(torch.equal(same.params[name], inrs.params[name]) for name in inrs.params)
        True
    """

    mean: Tensor
    std: Tensor
    gradient_size: Tensor

    def __init__(self, config: EditorConfig, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config, self.family = config, config.family
        self.metadata: dict[str, Any] = {}
        self.space = WeightSpace.from_module(
            Siren(config.siren), torch.zeros(2, COORDINATES), symmetry=config.symmetry
        )
        generator = generator or torch.Generator().manual_seed(0)
        guided = config.guide.channels > 0
        told = self.family is not None
        body = dataclasses.replace(
            config.body, in_channels=config.body.in_channels + guided + EMBEDDING * told
        )
        if self.family:
            self.embedding = ConditionEmbedding(self.family.width, generator=generator)
        self.bodies, self.guides = nn.ModuleList(), nn.ModuleList()
        for step in range(config.refinements):
            if step == config.refinements - 1:
                body = dataclasses.replace(body, out_channels=config.outputs)
            self.bodies.append(EquivariantFunctional(self.space, body, generator=generator))
            if guided:
                self.guides.append(
                    Guide(config.guide, config.siren, config.image_size, told=told, generator=generator)
                )
        self.register_buffer("mean", torch.zeros(len(self.space.names)))
        self.register_buffer("std", torch.ones(len(self.space.names)))
        if guided:
            self.register_buffer("gradient_size", torch.ones(len(self.space.names)))

    @torch.no_grad()
    def standardize(self, inrs: InrSet) -> None:
        """Take the sizes of weights, and of their gradients, from a training set of INRs."""
        self.check(inrs)
        params, _ = self._seen(inrs.params)
        for i, name in enumerate(self.space.names):
            values = params[name]
            # A single value has no deviation: the last bias of one gray INR.
            spread = values.std(correction=min(1, values.numel() - 1)).clamp_min(1e-6)
            self.mean[i], self.std[i] = values.mean(), spread
        if len(self.guides):
            some = {name: value[:STATISTICS_FROM] for name, value in params.items()}
            rendering = self._rendering(some)
            told = self._embedded(self.family.spread(len(rendering.values)) if self.family else None)
            gradient = pull_back(some, rendering, self.guides[0](rendering.values, rendering.values, told))
            for i, name in enumerate(self.space.names):
                self.gradient_size[i] = (self.std[i] * gradient[name]).square().mean().sqrt().clamp_min(1e-6)

    def change(self, params: Mapping[str, Tensor], condition: Tensor | None = None) -> dict[str, Tensor]:
        """The change of the weights at strength 1, differentiable.

        Args:
            params: Weights ``{name: (B, *shape)}``.
            condition: For an editor of several edits which one is meant for each INR, as :meth:`condition` gives it.

        Returns:
            ``{name: (B * outputs, *shape)}``; those of one INR are neighbours.
        """
        names = self.space.names
        start, signs = self._seen(params)
        edited, before, told = [dict(start)], None, self._embedded(condition)
        for step, body in enumerate(self.bodies):
            (now,) = edited  # only the last refinement makes several
            channels = [{name: (now[name] - mean) / std for name, mean, std, _ in self._sizes()}]
            if len(self.guides):
                rendering = self._rendering(now)
                before = rendering.values if before is None else before
                gradient = pull_back(now, rendering, self.guides[step](rendering.values, before, told))
                channels.append({name: gradient[name] * (std / size) for name, _, std, size in self._sizes()})
            features = self.space.as_features(*channels)
            written = body(features if told is None else with_constants(features, told))
            edited = [self._moved(now, written, channel) for channel in range(written[names[0]].shape[-1])]
        return interleave([signs.apply({name: one[name] - start[name] for name in names}) for one in edited])

    def _moved(
        self, now: Mapping[str, Tensor], written: Mapping[str, Tensor], channel: int
    ) -> dict[str, Tensor]:
        """Weights changed by one channel of what a functional has written."""
        raw = self.space.from_features(written, channel)
        return {name: torch.addcmul(now[name], raw[name], std) for name, _, std, _ in self._sizes()}

    def condition(self, edit: str | Edit | Sequence[str | Edit] | None, count: int) -> Tensor | None:
        """Which edit is meant, as numbers.

        Args:
            edit: One for all INRs, or one for each. None, or the edit it has learned, for an editor of one.
            count: Number of INRs.

        Returns:
            Of shape (count, width of the family); None for an editor of one edit.

        Raises:
            ValueError: If the editor has not learned the edit, or it is not said which of several is meant, or there
                is not one for each INR.
        """
        if self.family:
            return self.family.conditions(edit, count).to(self.mean)
        if edit is not None and str(find_edit(str(edit)) or edit) != self.config.edit:
            raise ValueError(
                f"the edit is {str(edit)!r}, expected {self.config.edit!r}, the only one that the editor has learned; "
                "leave it out, or take another editor"
            )
        return None

    def _embedded(self, condition: Tensor | None) -> Tensor | None:
        if self.family is None:
            return None
        if condition is None:
            raise ValueError(f"condition is missing: the editor learned {self.family}; see Editor.condition")
        return self.embedding(condition.to(self.mean))

    def _rendering(self, params: Mapping[str, Tensor]) -> Rendering:
        coords = self.guides[0].get_buffer("coords")
        return render_for_gradient(params, coords, self.config.siren)

    def _sizes(self) -> Iterator[tuple[str, Tensor, Tensor, Tensor]]:
        """Of each parameter its name, mean, deviation, and size of the gradients."""
        return zip(
            self.space.names,
            self.mean,
            self.std,
            self.gradient_size if len(self.guides) else self.std,
            strict=True,
        )

    def _seen(self, params: Mapping[str, Tensor]) -> tuple[Mapping[str, Tensor], Signs]:
        """The weights as the functional sees them, and the signs that bring their change back."""
        return canonicalize(params, self.config.siren) if self.config.canonical else (params, Signs([], []))

    def edit_params(
        self, params: Mapping[str, Tensor], strength: float = 1.0, condition: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The edited weights ``{name: (B * outputs, *shape)}``, differentiable.

        Those of one INR are neighbours, and the mean of what they show is the edited picture. Strength 0 gives the
        weights themselves. For the condition see :meth:`change`.
        """
        check_strength(strength)
        each = repeat_each(params, self.config.outputs)
        if strength == 0.0:
            return {name: each[name].clone() for name in self.space.names}
        change = self.change(params, condition)
        return {name: torch.add(each[name], change[name], alpha=strength) for name in self.space.names}

    @torch.no_grad()
    def forward(
        self,
        inrs: InrSet,
        strength: float = 1.0,
        edit: str | Edit | Sequence[str | Edit] | None = None,
    ) -> InrSet:
        """Edit INRs, without gradient.

        Args:
            inrs: INRs of the editor's architecture.
            strength: 0 (exactly the same INRs) to 1 (the whole edit).
            edit: For an editor of several edits the one that is meant, such as ``"blur(sigma=1.3)"``, or one for each
                INR.

        Returns:
            INRs of the architecture ``config.edited_siren``, whatever the strength. That of an editor with several
            outputs is wider, and at strength 0 shows what the INRs show, but for rounding.

        Raises:
            ValueError: If the INRs are of another architecture, the strength is out of range, or the editor has not
                learned the edit.
        """
        params, outputs = self.edited_weights(inrs, strength, edit), self.config.outputs
        return inrs.with_params(params) if outputs == 1 else averaged_set(inrs, params, outputs)

    @torch.no_grad()
    def edited_weights(
        self,
        inrs: InrSet,
        strength: float = 1.0,
        edit: str | Edit | Sequence[str | Edit] | None = None,
    ) -> dict[str, Tensor]:
        """What :meth:`edit_params` gives for any number of INRs, without gradient; see :meth:`forward`."""
        self.check(inrs)
        check_strength(strength)
        condition = self.condition(edit, len(inrs))
        if not len(inrs):
            return dict(inrs.params)
        parts = []
        for start in range(0, len(inrs), NETWORKS_PER_CHUNK):
            part = slice(start, start + NETWORKS_PER_CHUNK)
            chunk = {name: value[part] for name, value in inrs.params.items()}
            parts.append(self.edit_params(chunk, strength, None if condition is None else condition[part]))
        return {name: torch.cat([part[name] for part in parts]) for name in inrs.params}

    def check(self, inrs: InrSet) -> None:
        """Refuse INRs of another architecture.

        Raises:
            ValueError: With both architectures.
        """
        differing = config_differences(inrs.config, self.config.siren)
        if not differing:
            return
        remedy = "fit the images again with config=editor.config.siren, or train an editor for these INRs"
        if AVERAGE_OF in inrs.meta:
            remedy = (
                f"an editor with several outputs has made each of them, as the mean of {inrs.meta[AVERAGE_OF]}; fit "
                "what they show, fit(inrs.render(), config=editor.config.siren)"
            )
        raise ValueError(f"the INRs have {'; '.join(differing)}, as the editor was made for; {remedy}")

    def save(self, path: str | os.PathLike[str], metadata: Mapping[str, Any] | None = None) -> Path:
        """Write the editor to one safetensors file, atomically.

        Args:
            path: File to write.
            metadata: How the editor was trained and its scores; kept as ``editor.metadata`` when loaded.
        """
        stored = {
            "config": dataclasses.asdict(self.config),
            "space": self.space.fingerprint,
            "training": dict(metadata if metadata is not None else self.metadata),
        }
        return save_artifact(path, dict(self.state_dict()), kind=KIND, metadata=stored)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Editor:
        """Read an editor written by :meth:`save`.

        Raises:
            FileNotFoundError: If there is no such file.
            ArtifactError: If the file is truncated, is not safetensors, or does not hold a valid editor.
        """
        tensors, metadata = load_artifact(path, kind=KIND)
        try:
            editor = cls(EditorConfig.from_dict(metadata["config"]))
            if editor.space.fingerprint != metadata["space"]:
                raise ValueError("its weight space is not the one that this version finds for its INRs")
            tensors = {re.sub(r"^body\.", "bodies.0.", name): value for name, value in tensors.items()}
            editor.to(tensors["mean"].dtype).load_state_dict(tensors)
            editor.metadata = dict(metadata["training"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ArtifactError(f"{os.fspath(path)} does not hold a valid editor: {error}") from error
        return editor

    @classmethod
    def pretrained(cls, name: str) -> Editor:
        """An editor that ships with the package.

        Args:
            name: One of :func:`~editors.pretrained_editors`, such as ``"mnist-dilate"``; or an edit alone, which stands
                for the editor of colour pictures if there is one.

        Raises:
            ValueError: If none ships under that name.
        """
        return cls.load(pretrained_path(name))

    def _save_pretrained(self, save_directory: Path) -> None:
        """Write what the mixin's ``save_pretrained`` and ``push_to_hub`` share."""
        self.save(save_directory / HUB_FILE)

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        **_: Any,
    ) -> Editor:
        """Read from a folder, or from a repository of the hub."""
        if Path(model_id).is_dir():
            return cls.load(Path(model_id) / HUB_FILE)
        return cls.load(
            hf_hub_download(
                model_id,
                HUB_FILE,
                revision=revision,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
                token=token,
            )
        )

    def extra_repr(self) -> str:
        """The edit and the architecture."""
        sizes = "-".join(map(str, self.config.siren.layer_sizes))
        return f"edit={self.config.edit!r}, siren={sizes}, symmetry={self.config.symmetry!r}"


def check_strength(strength: float) -> None:
    """Refuse a strength out of range, NaN included."""
    if not 0.0 <= strength <= 1.0:
        raise ValueError(f"strength is {strength}, expected 0 (no edit) to 1 (the whole edit)")


def describe(editor: Editor) -> str:
    """The configuration and training record of an editor as indented JSON."""
    return json.dumps({"config": dataclasses.asdict(editor.config), "training": editor.metadata}, indent=2)
