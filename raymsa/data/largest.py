"""The largest pass that a run makes of its clips: what its memory is decided by.

Only sizes matter, so the clips have frames and sound of nothing, in the right shapes.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from raymsa.clip import SAMPLE_RATE, Clip
from raymsa.data.collate import Collate, Measured, within_budget
from raymsa.data.columns import columns
from raymsa.data.manifest import Manifest
from raymsa.data.picture import grid
from raymsa.datasets.base import MediaSettings

# A clip of MOSI, as far as is known without any: 25 words in 5 s, from a video of 1280 x 720.
STATED_S, STATED_WORDS, STATED_SHAPE = 5.0, 25, (720, 1280)
WORD = "good"  # one token in every vocabulary here
CHARACTERS_PER_TOKEN = 4  # to sort clips by length before their words are counted exactly
SIZES = ["id", "split", "text", "seconds", "frames_shape", "audio_samples", "audio_tokens", "video_tokens", "previous"]


class Largest(NamedTuple):
    """The clips of the largest pass, its tokens, and whether its step has more passes than this one."""

    clips: list[Measured]
    tokens: int
    more: bool


def stated(media: MediaSettings) -> Clip:
    """A clip as one meets them, for a dataset that is not prepared: full frames, some seconds, some words."""
    height, width = grid(*STATED_SHAPE, media.max_pixels)
    seconds = min(STATED_S, media.max_audio_s)
    words = " ".join([WORD] * STATED_WORDS)
    return _clip("stated", words, seconds, (media.max_frames, height, width), int(seconds * SAMPLE_RATE), ())


def in_shards(folder: Path, manifest: Manifest, splits: tuple[str, ...]) -> list[Clip]:
    """All clips of some splits, by their sizes, the longest first. Raises DataError when a shard cannot be read."""
    rows = columns(folder, manifest, SIZES).to_pylist()
    rows = [row for row in rows if row["split"] in splits]
    rows.sort(key=_tokens, reverse=True)
    return [
        _clip(
            row["id"],
            row["text"],
            row["seconds"],
            tuple(row["frames_shape"][:3]) if row["frames_shape"] else None,
            row["audio_samples"],
            tuple(row["previous"] or ()),
        )
        for row in rows
    ]


def largest(clips: list[Clip], collate: Collate, batch_tokens: int, batch_clips: int | None, packed: bool) -> Largest:
    """The pass with the most tokens, padding counted unless it is `packed`, that clips (the longest first) can make.

    `batch_clips` is the most that a step takes, None where there are no steps, as in scoring.
    """
    most = batch_clips or len(clips)
    fixed = len(collate.measure(_clip("", "", 0.0, None, None, ())).token_T)
    lengths = [fixed + _length(clip, collate) for clip in clips]
    passes = [_pass(lengths, i, most, batch_tokens, packed) for i in range(len(clips))]
    first = max(range(len(clips)), key=lambda i: passes[i][1])
    measured = [collate.measure(clip) for clip in clips[first : first + min(most, passes[first][0] + 2)]]
    found = next(within_budget(measured, batch_tokens, packed))
    exact = [len(one.token_T) for one in found]
    tokens = sum(exact) if packed else max(exact) * len(exact)
    return Largest(found, tokens, batch_clips is not None and len(found) < min(batch_clips, len(clips)))


def _pass(lengths: list[int], first: int, most: int, batch_tokens: int, packed: bool) -> tuple[int, int]:
    """Clips and tokens of the pass that begins with clip `first`; lengths fall."""
    longest, last = lengths[first], min(first + most, len(lengths))
    if not packed:
        count = min(last - first, max(1, batch_tokens // longest))
        return count, count * longest
    tokens, at = longest, first + 1
    while at < last and tokens + lengths[at] <= batch_tokens:
        tokens, at = tokens + lengths[at], at + 1
    return at - first, tokens


def within(clip: Clip, media: MediaSettings) -> Clip:
    """The clip with no more frames and pixels than these settings keep."""
    if clip.frames_FHWC is None:
        return clip
    frames, height, width = clip.frames_FHWC.shape[:3]
    if frames <= media.max_frames and height * width <= media.max_pixels:
        return clip
    shape = (min(frames, media.max_frames), *grid(height, width, media.max_pixels), 3)
    return replace(clip, frames_FHWC=np.broadcast_to(np.uint8(0), shape))


def _clip(
    name: str,
    text: str,
    seconds: float,
    shape_FHW: tuple[int, ...] | None,
    samples: int | None,
    previous: tuple[str, ...],
) -> Clip:
    return Clip(
        id=name,
        video_id="",
        text=text,
        label=0.0,
        split="train",
        seconds=seconds,
        frames_FHWC=None if shape_FHW is None else np.broadcast_to(np.uint8(0), (*shape_FHW, 3)),
        audio_S=None if samples is None else np.broadcast_to(np.int16(0), (samples,)),
        previous=previous,
    )


def _tokens(row: dict[str, Any]) -> int:
    return int(row["audio_tokens"] + row["video_tokens"] + len(row["text"]) // CHARACTERS_PER_TOKEN)


def _length(clip: Clip, collate: Collate) -> int:
    """Tokens of a clip beside the prompt's, words not counted exactly."""
    inputs = collate.encoder.inputs
    heard = clip.audio_tokens * ("audio" in inputs.modalities)
    seen = clip.video_tokens * ("video" in inputs.modalities)
    words = [clip.text, *clip.previous[len(clip.previous) - min(inputs.context, len(clip.previous)) :]]
    said = sum(map(len, words)) // CHARACTERS_PER_TOKEN * ("text" in inputs.modalities)
    return heard + seen + min(said, inputs.max_text_tokens + inputs.max_context_tokens)
