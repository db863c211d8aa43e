"""The largest passes that a run makes of its clips: what its memory is decided by.

Only sizes matter, so the clips have frames and sound of nothing, in the right shapes.

Axes: N clips, 3 tokens in all, of sound, of picture.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

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
LEAST_SIDE = 56  # pixels of a frame that has tokens
SIZES = ["id", "split", "text", "seconds", "frames_shape", "audio_samples", "previous"]


class Largest(NamedTuple):
    """The clips of a large pass, its tokens, and whether its step has more passes than this one."""

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
    """All clips of some splits, by their sizes. Raises DataError when a shard cannot be read."""
    rows = columns(folder, manifest, SIZES).to_pylist()
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
        if row["split"] in splits
    ]


def largest(
    clips: list[Clip], collate: Collate, batch_tokens: int, batch_clips: int | None, packed: bool
) -> list[Largest]:
    """The passes, one or a few, of which one takes the most memory of all that these clips can make.

    They have the most tokens (padding counted unless `packed`), the most sound, the most picture, or the most of all
    together: which of them takes the most is up to the model, and to what of it is recomputed. `batch_clips` is the
    most that a step takes, None where there are no steps, as in scoring.
    """
    most = batch_clips or len(clips)
    size_N3 = np.array([_sizes(clip, collate) for clip in clips])
    heard_N, seen_N = size_N3[:, 1] > 0, size_N3[:, 2] > 0
    for heard, seen in {*zip(heard_N.tolist(), seen_N.tolist(), strict=True)}:
        size_N3[(heard_N == heard) & (seen_N == seen), 0] += _prompt(collate, heard, seen)
    by_length_N = np.argsort(-size_N3[:, 0], kind="stable")
    chosen: dict[tuple[int, ...], None] = {}
    for kind in range(3):  # of all clips, of those with sound, of those with a picture
        some = by_length_N[size_N3[by_length_N, kind] > 0]
        if len(some):
            total_N3 = _passes(size_N3[some], most, batch_tokens, packed)
            for total_N in (total_N3[:, kind], total_N3.sum(1)):
                first = int(total_N.argmax())
                chosen[tuple(some[first : first + most])] = None
    # more clips than counted above may fit once their words are counted, so they are measured until none does
    found = [next(within_budget((collate.measure(clips[i]) for i in few), batch_tokens, packed)) for few in chosen]
    return [_largest(some, min(most, len(clips)) if batch_clips else 0, packed) for some in found]


def _prompt(collate: Collate, heard: bool, seen: bool) -> int:
    """Tokens of a clip without words beside those that stand for sound and picture: their marks among them."""
    shape = (1, LEAST_SIDE, LEAST_SIDE) if seen else None
    clip = _clip("", "", 1.0, shape, SAMPLE_RATE if heard else None, ())
    return len(collate.measure(clip).token_T) - _sizes(clip, collate)[0]


def _passes(size_N3: np.ndarray, most: int, batch_tokens: int, packed: bool) -> np.ndarray:
    """Tokens, sound and picture of the pass that begins with each clip, [N, 3]; lengths fall."""
    first_N = np.arange(len(size_N3))
    before_N3 = np.concatenate([np.zeros((1, 3), int), size_N3.cumsum(0)])
    if packed:
        end_N = np.searchsorted(before_N3[:, 0], before_N3[:-1, 0] + batch_tokens, side="right") - 1
    else:
        end_N = first_N + batch_tokens // size_N3[:, 0]
    end_N = end_N.clip(first_N + 1, np.minimum(first_N + most, len(size_N3)))
    total_N3: np.ndarray = before_N3[end_N] - before_N3[first_N]
    if not packed:
        total_N3[:, 0] = size_N3[:, 0] * (end_N - first_N)
    return total_N3


def _largest(clips: list[Measured], step: int, packed: bool) -> Largest:
    exact = [len(one.token_T) for one in clips]
    return Largest(clips, sum(exact) if packed else max(exact) * len(exact), len(clips) < step)


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


def _sizes(clip: Clip, collate: Collate) -> tuple[int, int, int]:
    """Tokens of a clip beside the prompt's, words not counted exactly; those of sound, of picture."""
    inputs = collate.encoder.inputs
    heard = clip.audio_tokens * ("audio" in inputs.modalities)
    seen = clip.video_tokens * ("video" in inputs.modalities)
    words = [clip.text, *clip.previous[len(clip.previous) - min(inputs.context, len(clip.previous)) :]]
    said = sum(map(len, words)) // CHARACTERS_PER_TOKEN * ("text" in inputs.modalities)
    return heard + seen + min(said, inputs.max_text_tokens + inputs.max_context_tokens), heard, seen
