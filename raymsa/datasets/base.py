"""What every dataset config says, and the one method a layout has to bring."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from raymsa.clip import RawClip, Reject
from raymsa.plugins import Spec

MERGED_PATCH = 28  # pixels: 14-pixel patches, merged 2 x 2 into one token (Qwen2.5-Omni vision tower)


class MediaSettings(Spec):
    """How clips are decoded by `prepare`; part of the shards' identity."""

    max_frames: int = Field(16, ge=1, le=768, description="frames kept per clip, spread evenly over it")
    max_pixels: int = Field(
        128 * MERGED_PATCH**2,
        ge=MERGED_PATCH**2,
        description="pixels per frame after resizing (both sides multiples of 28); the default is the least "
        "that the model's own processor makes",
    )
    max_audio_s: float = Field(300.0, gt=0, description="seconds of sound kept per clip; the audio tower's own limit")


class Layout(Spec):
    """A dataset: where it lies, how it is laid out, and what its labels mean."""

    name: str = Field(description="short name, used in tables and folder names", pattern=r"^[a-z0-9][a-z0-9_.-]*$")
    raw: str | None = Field(None, description="folder with the raw clips and labels")
    shards: str | None = Field(None, description="folder with prepared shards; default: under RAYMSA_HOME/shards")
    low: float = Field(-3.0, description="lowest possible label")
    high: float = Field(3.0, description="highest possible label")
    metrics: Literal["mosi", "sims"] = Field("mosi", description="metric rules: mosi (MOSI, MOSEI) or sims (CH-SIMS)")
    published: dict[Literal["train", "valid", "test"], int] = Field(
        default_factory=dict, description="clips per split as published; `prepare` warns when the counts differ"
    )
    media: MediaSettings = Field(default_factory=MediaSettings, description="how clips are decoded")

    @model_validator(mode="after")
    def _range_is_a_range(self) -> "Layout":
        if not self.low < self.high:
            raise ValueError(f"low ({self.low}) must be below high ({self.high})")
        return self

    def clips(self, raw: Path) -> Iterator[RawClip | Reject]:
        """Every row of the label file, in file order: a clip, or the reason why it is none.

        Raises DataError when the folder or the label file as a whole is unusable.
        """
        raise NotImplementedError  # each layout's own
