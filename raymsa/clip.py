"""The nouns of the data: a clip before and after `prepare`, its row in a shard, and a batch of clips.

Axes: F frames, H height, W width, C colour channels (RGB), S audio samples at 16 kHz mono.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    import torch

SPLITS = ("train", "valid", "test")
SAMPLE_RATE = 16_000  # Hz; what the Thinker's audio tower was trained on


@dataclass(frozen=True)
class RawClip:
    """One row of a dataset's label file. `media` is relative to the raw folder; None for a text-only row."""

    id: str
    video_id: str
    text: str
    label: float
    split: str
    media: Path | None


@dataclass(frozen=True)
class Reject:
    """A row that was left out, with the reason a person can act on."""

    id: str
    media: str
    reason: str


@dataclass(frozen=True)
class Clip:
    """One prepared clip: decoded, resized, resampled; what a shard row holds.

    frames_FHWC uint8 (None without picture), audio_S int16 (None without sound), seconds is the length of the medium.
    """

    id: str
    video_id: str
    text: str
    label: float
    split: str
    seconds: float = 0.0
    frames_FHWC: np.ndarray | None = None
    audio_S: np.ndarray | None = None


SHARD_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("video_id", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("label", pa.float64(), nullable=False),
        pa.field("seconds", pa.float64(), nullable=False),
        pa.field("frames", pa.large_binary()),  # uint8, row-major; its shape is the next column
        pa.field("frames_shape", pa.list_(pa.int32())),  # [F, H, W, 3]
        pa.field("audio", pa.large_binary()),  # int16 little-endian, 16 kHz mono
        pa.field("audio_samples", pa.int32()),
    ]
)


def to_row(clip: Clip) -> dict[str, Any]:
    """A clip as one row of SHARD_SCHEMA; absent media are null."""
    frames, audio = clip.frames_FHWC, clip.audio_S
    return {
        "id": clip.id,
        "video_id": clip.video_id,
        "split": clip.split,
        "text": clip.text,
        "label": clip.label,
        "seconds": clip.seconds,
        "frames": None if frames is None else frames.tobytes(),
        "frames_shape": None if frames is None else list(frames.shape),
        "audio": None if audio is None else audio.astype("<i2").tobytes(),
        "audio_samples": None if audio is None else len(audio),
    }


def from_row(row: dict[str, Any]) -> Clip:
    """The clip in one row of SHARD_SCHEMA; arrays are read-only views of the row's bytes."""
    frames, audio = row["frames"], row["audio"]
    return Clip(
        id=row["id"],
        video_id=row["video_id"],
        text=row["text"],
        label=row["label"],
        split=row["split"],
        seconds=row["seconds"],
        frames_FHWC=None if frames is None else np.frombuffer(frames, np.uint8).reshape(row["frames_shape"]),
        audio_S=None if audio is None else np.frombuffer(audio, "<i2"),
    )


class Scale(NamedTuple):
    """What a score means: its range, and the mean, sd and median of the training labels."""

    low: float
    high: float
    mean: float
    sd: float
    median: float


@dataclass
class Batch:
    """Clips as tensors on one device.

    Axes: B clips, T tokens, M mel bins, L mel frames of all clips one after another, A clips with sound,
    V clips with picture, P patches of all clips one after another, X numbers in a patch.
    """

    ids: list[str]
    label_B: torch.Tensor
    token_BT: torch.Tensor
    mask_BT: torch.Tensor  # 1 where there is a token, 0 where there is padding
    position_3BT: torch.Tensor  # M-RoPE: time, height, width
    answer_BT: torch.Tensor | None = None  # True on tokens to be learned (generative training only)
    mel_ML: torch.Tensor | None = None
    mel_length_A: torch.Tensor | None = None
    patch_PX: torch.Tensor | None = None
    grid_V3: torch.Tensor | None = None  # patches per clip: time, height, width

    def to(self, device: torch.device) -> Batch:
        """The same batch with every tensor on `device`."""
        moved = {k: v.to(device, non_blocking=True) for k, v in vars(self).items() if hasattr(v, "to")}
        return Batch(**{**vars(self), **moved})

    @property
    def tokens(self) -> int:
        """Real tokens, padding not counted. Synchronises when the batch is on a GPU: ask before `to`."""
        return int(self.mask_BT.sum())
