"""The nouns of the data: a clip before and after `prepare`, its row in a shard, and a batch of clips.

Axes: F frames, H height, W width, C colour channels (RGB), S audio samples at 16 kHz mono.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    import torch

SPLITS = ("train", "valid", "test")
SAMPLE_RATE = 16_000  # Hz; what the Thinker's audio tower was trained on
CONTEXT_MOST = 16  # previous clips whose words are kept with a clip

# Qwen2.5-Omni's geometry, the same in its 3B and 7B: what a clip costs in tokens is known before any model is loaded.
MERGED_PATCH = 28  # pixels: 14-pixel patches, merged 2 x 2 into one token
FRAMES_PER_TOKEN = 2
SAMPLES_PER_MEL_FRAME = 160
LEAST_SAMPLES = SAMPLE_RATE // 10  # shorter sound is filled up with silence: the tower needs 3 mel frames or more


@dataclass(frozen=True)
class RawClip:
    """One row of a dataset's label file. `media` is relative to the raw folder; None for a text-only row.

    `label` is the task's (a score, or a class counted from 0); `targets` has every label of the row as it is written.
    `order` is the clip's place in its video or dialogue. `previous` are the words of up to CONTEXT_MOST clips before
    it, oldest first: of the same video and the same split.
    """

    id: str
    video_id: str
    text: str
    label: float
    split: str
    media: Path | None
    order: float = 0.0
    targets: Mapping[str, str] = field(default_factory=dict)
    previous: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reject:
    """A row that was left out, with the reason a person can act on."""

    id: str
    media: str
    reason: str


@dataclass(frozen=True)
class Unlabelled(Reject):
    """A row that was left out for its label alone: its words still stand before those of the clips after it."""

    video_id: str
    split: str
    text: str
    order: float


class Vectors(NamedTuple):
    """What the towers made of a clip, as bytes of numbers of torch's type `dtype`; None where it has no such medium."""

    dtype: str
    heard: np.ndarray | None
    seen: np.ndarray | None


@dataclass(frozen=True)
class Clip:
    """One prepared clip: decoded, resized, resampled; what a shard row holds.

    frames_FHWC uint8 (None without picture), audio_S int16 (None without sound), seconds is the length of the medium.
    `label`, `targets` and `previous` as in RawClip. With `vectors`, frames and sound have their shapes and no content.
    """

    id: str
    video_id: str
    text: str
    label: float
    split: str
    seconds: float = 0.0
    frames_FHWC: np.ndarray | None = None
    audio_S: np.ndarray | None = None
    targets: Mapping[str, str] = field(default_factory=dict)
    previous: tuple[str, ...] = ()
    vectors: Vectors | None = None

    @property
    def audio_tokens(self) -> int:
        """Places that the sound takes in the sequence."""
        return 0 if self.audio_S is None else audio_tokens(len(self.audio_S))

    @property
    def video_tokens(self) -> int:
        """Places that the picture takes in the sequence."""
        return 0 if self.frames_FHWC is None else video_tokens(*self.frames_FHWC.shape[:3])


def mel_frames(samples: int) -> int:
    """Frames of the mel spectrogram, one every 10 ms."""
    return -(-max(samples, LEAST_SAMPLES) // SAMPLES_PER_MEL_FRAME)


def audio_tokens(samples: int) -> int:
    """Tokens of a sound: mel frames through two halvings (convolution with stride 2, pooling by 2)."""
    return ((mel_frames(samples) - 1) // 2 + 1 - 2) // 2 + 1


def video_tokens(frames: int, height: int, width: int) -> int:
    """Tokens of a picture whose sides are multiples of MERGED_PATCH."""
    return -(-frames // FRAMES_PER_TOKEN) * (height // MERGED_PATCH) * (width // MERGED_PATCH)


SIZES = ("mel_length_A", "grid_V3")  # of a batch: what the towers' work is planned by, on the host

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
        pa.field("audio_tokens", pa.int32(), nullable=False),
        pa.field("video_tokens", pa.int32(), nullable=False),
        pa.field("targets", pa.map_(pa.string(), pa.string())),  # every label of the row, as the label file has it
        pa.field("previous", pa.list_(pa.string())),  # words of the clips before it, oldest first
    ]
)


# A shard's rows with the towers' outputs in the place of sound and picture (raymsa/training/towers.py).
VECTORS_SCHEMA = pa.schema(
    [
        *(field for field in SHARD_SCHEMA if field.name not in ("frames", "audio")),
        pa.field("heard", pa.large_binary()),
        pa.field("seen", pa.large_binary()),
        pa.field("vector_type", pa.string(), nullable=False),
        pa.field("vector_bytes", pa.int64(), nullable=False),
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
        "audio_tokens": clip.audio_tokens,
        "video_tokens": clip.video_tokens,
        "targets": list(clip.targets.items()),
        "previous": list(clip.previous),
    }


def from_row(row: dict[str, Any]) -> Clip:
    """The clip in one row of SHARD_SCHEMA or VECTORS_SCHEMA; arrays are read-only views of the row's bytes."""
    return Clip(
        id=row["id"],
        video_id=row["video_id"],
        text=row["text"],
        label=row["label"],
        split=row["split"],
        seconds=row["seconds"],
        targets=dict(row["targets"]),
        previous=tuple(row["previous"]),
        **(_vectors(row) if "vector_type" in row else _media(row)),
    )


def _media(row: dict[str, Any]) -> dict[str, Any]:
    frames, audio = row["frames"], row["audio"]
    return {
        "frames_FHWC": None if frames is None else np.frombuffer(frames, np.uint8).reshape(row["frames_shape"]),
        "audio_S": None if audio is None else np.frombuffer(audio, "<i2"),
    }


def _vectors(row: dict[str, Any]) -> dict[str, Any]:
    """Arrays of one number, stretched to the media's shapes: lengths and positions follow from these."""
    frames_shape, samples = row["frames_shape"], row["audio_samples"]
    return {
        "frames_FHWC": None if frames_shape is None else np.broadcast_to(np.uint8(0), frames_shape),
        "audio_S": None if samples is None else np.broadcast_to(np.int16(0), samples),
        "vectors": Vectors(row["vector_type"], row["heard"], row["seen"]),
    }


@dataclass
class Batch:
    """Clips as tensors on one device.

    Axes: B clips, T tokens, M mel bins, L mel frames of all clips one after another, A clips with sound,
    V clips with picture, P patches of all clips one after another, X numbers in a patch, N real tokens of all clips,
    or all vectors of a tower, E = B + 1 edges between clips. A place counts through the [B * T] of the batch.
    """

    ids: list[str]
    label_B: torch.Tensor
    token_BT: torch.Tensor
    mask_BT: torch.Tensor  # 1 where there is a token, 0 where there is padding
    position_3BT: torch.Tensor  # M-RoPE: time, height, width
    lengths: list[int]  # real tokens of each clip, known without asking the device
    real_N: torch.Tensor  # places of all real tokens
    edge_E: torch.Tensor  # where each clip begins among these, and their number (int32, as attention kernels want it)
    answer_BT: torch.Tensor | None = None  # True on tokens to be learned (generative training only)
    learned_2K: torch.Tensor | None = None  # row and column of each of the K tokens to be learned
    mel_ML: torch.Tensor | None = None
    mel_length_A: torch.Tensor | None = None
    patch_PX: torch.Tensor | None = None
    grid_V3: torch.Tensor | None = None  # patches per clip: time, height, width
    heard_ND: torch.Tensor | None = None  # the towers' outputs of all clips, in place of mel and patches
    seen_ND: torch.Tensor | None = None
    heard_at_N: torch.Tensor | None = None  # places of the towers' outputs
    seen_at_N: torch.Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """The same batch on `device`; sizes, which the host reads, stay where they are."""
        moved = {k: v.to(device, non_blocking=True) for k, v in self._tensors().items() if k not in SIZES}
        return Batch(**{**vars(self), **moved})

    def pinned(self) -> Batch:
        """The same batch in memory that a GPU takes from while the host goes on."""
        return Batch(**{**vars(self), **{k: v.pin_memory() for k, v in self._tensors().items() if k not in SIZES}})

    def _tensors(self) -> dict[str, torch.Tensor]:
        return {k: v for k, v in vars(self).items() if hasattr(v, "to")}

    @property
    def tokens(self) -> int:
        """Real tokens, padding not counted."""
        return sum(self.lengths)
