"""What bulk segmentation is asked to do."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..convert.sam import load_sam
from ..convert.tuned import Setting
from ..convert.weight_files import weights_sha256
from ..errors import InputError
from .inputs import CHUNK

COLUMNS = "columns"  # `BulkConfig.prompts` where they come with the photographs


@dataclass(frozen=True)
class Everything:
    """Arguments of `SamAutomaticMaskGenerator`."""

    points_per_side: int
    pred_iou_thresh: float
    stability_score_thresh: float


@dataclass(frozen=True)
class BulkConfig:
    """What is computed for every photograph, and on what.

    Attributes:
        checkpoint: path of the model, on every node.
        model: its `weights_sha256`.
        side: of its encoder's images, in pixels.
        setting: how its encoder runs.
        prompts: `COLUMNS`, the SHA-256 of a file of prompts, or None where nothing is asked for.
        everything: masks without prompts, by this grid.
        all_masks: all three masks of a prompt, not the best one.
        embeddings: whether they are written, too.
        device: "cpu" or "cuda", of every worker.
        batch: photographs that are encoded in one call, at most `CHUNK`.
        threads: of a worker on the CPU.
    """

    checkpoint: str
    model: str
    side: int
    setting: Setting = field(default_factory=Setting)
    prompts: str | None = None
    everything: Everything | None = None
    all_masks: bool = False
    embeddings: bool = False
    device: str = "cpu"
    batch: int = 1
    threads: int = 1

    @classmethod
    def of(cls, checkpoint: str | Path, **options: Any) -> BulkConfig:
        """A configuration for a model file, which is read for it; `options` are attributes from `setting` on.

        Raises InputError where it is no model, or the options do not go together.
        """
        side = load_sam(checkpoint).image_encoder.img_size
        return cls(str(Path(checkpoint).absolute()), weights_sha256(checkpoint), side, **options)

    def __post_init__(self) -> None:
        if not 1 <= self.batch <= CHUNK:
            raise InputError(f"a batch has 1 to {CHUNK} photographs, not {self.batch}")
        if self.threads < 1:
            raise InputError(f"a worker has at least 1 thread, not {self.threads}")
        if self.prompts is not None and self.everything is not None:
            raise InputError("prompts or everything: give one of the two")
        if self.prompts is None and self.everything is None and not self.embeddings:
            raise InputError("nothing to do: give prompts, everything mode or embeddings")
        if self.setting.focus:
            raise InputError("bulk segmentation encodes a photograph once for all of its boxes: leave focus out")

    @property
    def frame(self) -> int | None:
        """The size to which photographs are brought before they reach a worker, or None where they come as they are."""
        return self.side if self.everything is None else None

    def settings(self) -> dict[str, Any]:
        """What decides the results, for their folder; not how they are computed in parallel."""
        everything = None if self.everything is None else asdict(self.everything)
        return {
            "model": self.model, "dtype": self.setting.dtype, "native": self.setting.native,
            "keep_ratio": self.setting.keep_ratio, "prompts": self.prompts, "everything": everything,
            "all_masks": self.all_masks, "embeddings": self.embeddings, "device": self.device, "chunk": CHUNK,
        }  # fmt: skip
