"""Everything that a training run of an editor can be told."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from editors.editor_config import EditorConfig
from editors.guide import GuideConfig
from editors.siren import SirenConfig
from editors.training_config import TrainEditorConfig
from nfn_opt.functionals import EquivariantConfig
from nfn_opt.meta.config import plain_record
from nfn_opt.weight_space import Symmetry

__all__ = ["EditorRunConfig", "FittingConfig"]

_SMALL = SirenConfig()
_DEFAULT = EditorConfig(siren=_SMALL, edit="dilate", image_size=(1, 1))


@dataclasses.dataclass(frozen=True, kw_only=True)
class FittingConfig:
    """The INRs that are fitted, see :func:`editors.fit`.

    Attributes:
        hidden_width: Neurons of each hidden layer of an INR.
        hidden_layers: Hidden layers of an INR.
        omega_0: Factor on the argument of every sine; None chooses by the size of the images.
        steps: Adam steps of each fit.
        lr: Adam's initial learning rate.
    """

    hidden_width: int = _SMALL.hidden_width
    hidden_layers: int = _SMALL.hidden_layers
    omega_0: float | None = None
    steps: int = 100
    lr: float = 4e-3

    def siren(self, height: int, width: int, channels: int) -> SirenConfig:
        """Architecture of the INRs of images of one size."""
        usual = SirenConfig.for_images(height, width, channels)
        omega_0 = usual.omega_0 if self.omega_0 is None else self.omega_0
        return SirenConfig(
            hidden_width=self.hidden_width,
            hidden_layers=self.hidden_layers,
            out_channels=channels,
            omega_0=omega_0,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class EditorRunConfig:
    """A training run.

    Attributes:
        out: Folder to write to.
        edit: The image edit, such as dilate or blur(sigma=2); docs/edits.md lists them. Several edits with commas
            between them, and ranges of their parameters, as in "blur(sigma=0.5..2), invert", make an editor that is
            told which of them is meant.
        images: "photos" (patches of the photographs that ship with scikit-learn), any source of
            nfn_opt.data.load_images, or "rendered": what the INRs of the file given as inrs show.
        gray: Turn the images gray; otherwise they keep their colours, and so do their INRs and the editor.
        size: Height and width that the images are brought to, in pixels; None keeps theirs.
        inrs: INRs to train on: their number (fewer if there are fewer images), or a file of INRs that are fitted
            already, one for each of the images, in their order.
        held_out: INRs for choosing the best weights, and as many again for the reported error.
        fitting: Architecture and fitting of the INRs, unless they come from a file.
        symmetry: "all" or "hidden", the symmetry that the editor is built for.
        canonical: Whether the editor sees each INR in one representative of its signs and phases.
        refinements: How often the editor changes the INR, each time seeing what it has become.
        outputs: INRs that the editor makes of each; the mean of what they show is the edited picture, and the edited
            INR is so many times as wide.
        guide: What looks at the picture that the INR shows; guide.channels=0 makes an editor that reads weights only.
        body: The editor's functional.
        training: Steps, batch size, learning rate, validations.
        seed: Seed of the choice of images, of the INRs and of the editor's initial weights.
        device: "cpu", "cuda", or another device of PyTorch's.
        checkpoint_every: Steps between two checkpoints.
        checkpoint_minutes: Minutes between two checkpoints; None counts steps only.
        minutes: Stop after so many minutes, with a checkpoint; None makes all steps.
        samples: Number of validation images in the picture of samples.
        tensorboard: Log for TensorBoard as well.
        quiet: Show no progress bars.
    """

    out: Path
    edit: str = "dilate"
    images: str = "photos"
    gray: bool = True
    size: int | None = 16
    inrs: int | Path = 4000
    held_out: int = 250
    fitting: FittingConfig = dataclasses.field(default_factory=FittingConfig)
    symmetry: Symmetry = _DEFAULT.symmetry
    canonical: bool = _DEFAULT.canonical
    refinements: int = _DEFAULT.refinements
    outputs: int = _DEFAULT.outputs
    guide: GuideConfig = _DEFAULT.guide
    body: EquivariantConfig = dataclasses.field(default_factory=lambda: _DEFAULT.body)
    training: TrainEditorConfig = dataclasses.field(
        default_factory=lambda: TrainEditorConfig(steps=2000, give_up_after=20)
    )
    seed: int = 0
    device: str = "cpu"
    checkpoint_every: int = 100
    checkpoint_minutes: float | None = None
    minutes: float | None = None
    samples: int = 10
    tensorboard: bool = False
    quiet: bool = False

    def __post_init__(self) -> None:
        for name in ("inrs", "held_out", "size", "checkpoint_every", "samples"):
            value = getattr(self, name)
            if isinstance(value, int) and value < 1:
                raise ValueError(f"{name} is {value}, expected at least 1")
        for name in ("checkpoint_minutes", "minutes"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} is {value}, expected a positive number")
        if isinstance(self.out, Path) and self.out.suffix == ".safetensors":  # unless it is yet to be given
            raise ValueError(
                f"out is {self.out}, expected a folder: the editor will be the file editor.safetensors in it"
            )
        if self.images == "rendered" and isinstance(self.inrs, int):
            raise ValueError(
                f"images is 'rendered' and inrs {self.inrs}, expected a file of INRs (inrs=FILE.safetensors)"
            )
        self.editor(_SMALL, (1, 1))  # refuses a functional that edits nothing

    @property
    def steps(self) -> int:
        """All steps of the run."""
        return self.training.steps

    @property
    def evaluate_every(self) -> int:
        """Steps between two validations."""
        return self.training.validate_every

    @property
    def evaluate_minutes(self) -> float | None:
        """Validations come by steps alone, so that a run can be repeated."""
        return None

    def editor(self, siren: SirenConfig, image_size: tuple[int, int]) -> EditorConfig:
        """What the editor is made of."""
        return EditorConfig(
            siren=siren,
            edit=self.edit,
            image_size=image_size,
            symmetry=self.symmetry,
            canonical=self.canonical,
            refinements=self.refinements,
            outputs=self.outputs,
            guide=self.guide,
            body=self.body,
        )

    def record(self) -> dict[str, Any]:
        """All options as nested dicts of JSON values."""
        return plain_record(self)
