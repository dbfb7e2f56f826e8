"""What an editor is made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from editors.averaging import averaged_config
from editors.edit_family import EditFamily, find_family
from editors.edits import find_edit
from editors.guide import GuideConfig
from editors.siren import SirenConfig
from nfn_opt.functionals import EquivariantConfig
from nfn_opt.weight_space import Symmetry

__all__ = ["WEIGHTS_ONLY", "EditorConfig"]

WEIGHTS_ONLY: dict[str, Any] = {
    "refinements": 1,
    "guide": GuideConfig(channels=0),
    "body": EquivariantConfig(
        hidden_channels=32,
        fourier_frequencies=16,
        fourier_scale=0.5,
        position_bands=3,
        norm=True,
        out_scale=0.1,
    ),
}
"""Options of an :class:`EditorConfig` that make the best editor that reads weights and renders nothing."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EditorConfig:
    """What an editor is made of.

    Attributes:
        siren: Architecture of the INRs.
        edit: The image edit, as text: a name, or a name with parameters as `get_edit` reads them. Stored as the edit
            writes itself. Or a family of edits, such as ``blur(sigma=0.5..2), invert``, as
            :meth:`~editors.edit_family.EditFamily.read` reads it: the editor is then told which of them is meant.
        image_size: (height, width) of the images that the INRs were fitted to.
        symmetry: ``"all"`` (NP; the position encoding tells inputs and outputs apart) or ``"hidden"`` (HNP).
        canonical: Whether the functional sees each INR in the representative of its signs and phases
            (:func:`~editors.canonical.canonicalize`); the edit of an INR in another is then the same edit.
        refinements: How often the INR is changed; each time by a functional and a guide of their own, which are given
            the INR as it was left.
        outputs: INRs that the last refinement makes of each, with a change for each from one functional. The edited
            picture is the mean of what they show, and the edited INR one that is `outputs` times as wide
            (:mod:`editors.averaging`).
        guide: What looks at the picture that the INR shows. Without one (`WEIGHTS_ONLY`), the weights are all that is
            read.
        body: The functional of each refinement; it has one channel in, the weights, and one out. The guide's gradient
            is one more channel in, further outputs of the last refinement more channels out.

    Raises:
        ValueError: If the image size is not two positive numbers, there are no refinements or no outputs, the
            functional has other channels, or the parameters of a named edit are wrong.
    """

    siren: SirenConfig
    edit: str
    image_size: tuple[int, int]
    symmetry: Symmetry = "all"
    canonical: bool = True
    refinements: int = 3
    outputs: int = 1
    guide: GuideConfig = dataclasses.field(default_factory=GuideConfig)
    body: EquivariantConfig = dataclasses.field(
        default_factory=lambda: EquivariantConfig(
            hidden_channels=8,
            hidden_layers=2,
            fourier_frequencies=0,
            position_bands=3,
            norm=True,
            out_scale=0.1,
        )
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "edit", str(self.family or find_edit(self.edit) or self.edit))
        if len(self.image_size) != 2 or min(self.image_size) < 1:
            raise ValueError(f"image_size is {self.image_size}, expected (height, width), both at least 1")
        for name in ("refinements", "outputs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        channels = (self.body.in_channels, self.body.out_channels)
        if channels != (1, 1):
            raise ValueError(
                f"body has {channels[0]} channels in and {channels[1]} out, expected 1 and 1: the weights"
            )

    @property
    def edited_siren(self) -> SirenConfig:
        """Architecture of the edited INRs: that of the INRs, or with several outputs a wider one."""
        return averaged_config(self.siren, self.outputs)

    @property
    def family(self) -> EditFamily | None:
        """The edits of an editor of several; None for an editor of one."""
        return find_family(self.edit)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EditorConfig:
        """Rebuild a configuration from ``dataclasses.asdict``, as stored in an editor's file."""
        # Files of the time before there was a choice have none of these.
        fields = {"canonical": False, "refinements": 1, "guide": {"channels": 0}, **values}
        fields["siren"] = SirenConfig(**fields["siren"])
        fields["guide"] = GuideConfig(**fields["guide"])
        fields["body"] = EquivariantConfig(**fields["body"])
        fields["image_size"] = tuple(fields["image_size"])
        return cls(**fields)
