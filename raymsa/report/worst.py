"""The clips that all runs of a job together are most wrong about, with their words, frames and sound where at hand.

Axes: F frames, H height, W width, C colours, B test clips.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from raymsa.clip import SAMPLE_RATE, Clip
from raymsa.data.at_hand import at_hand
from raymsa.data.manifest import Manifest
from raymsa.errors import DataError, RaymsaError, UsageError
from raymsa.report.clip_page import data_uri, image, wav, waveform
from raymsa.report.evidence import Evidence
from raymsa.target import Classification

MANY = 10
FRAMES = 4  # of a clip, spread over it
WIDE = 200  # pixels of a frame, at most; a page with ten clips stays below a few megabytes
SOUND_S = 20.0  # of a clip, at most


@dataclass(frozen=True)
class Words:
    """What is known of clips beside their scores: their words, whence these are, and the shards if they are here."""

    texts: Mapping[str, str]
    source: str
    shards: Path | None = None


@dataclass(frozen=True)
class Worst:
    """`error` is the mean absolute error over all runs (of classes, the share of runs that are wrong). `scores` has
    the score of every seed by variant, `said` the answers in words. `frames` and `sound` are elements of a page."""

    clip_id: str
    label: float
    error: float
    text: str | None
    scores: Mapping[str, tuple[float, ...]]
    said: Mapping[str, tuple[str | None, ...]]
    frames: tuple[str, ...] = ()
    sound: tuple[str, ...] = ()
    note: str = field(default="")


def worst(about: Evidence, words: Words) -> list[Worst]:
    """The worst first; of equally bad ones in the order of their ids. A clip with a NaN score is worse than any."""
    scored = [group.score_RB for group in about.groups if group.score_RB.size]
    if not scored:
        return []
    apart_RB = np.abs(np.concatenate(scored) - about.label_B)
    error_B = (apart_RB > 0).mean(0) if isinstance(about.task, Classification) else apart_RB.mean(0)
    order = np.argsort(-np.where(np.isnan(error_B), np.inf, error_B), kind="stable")[:MANY]
    return [_one(about, words, int(at), float(error_B[at])) for at in order if not error_B[at] <= 0]


def words_of(about: Evidence, shards: str | None = None) -> Words:
    """The words of a job's test clips, where their shards are at hand; `shards` is the folder that a person named.

    Raises UsageError for a folder that was named and has other clips.
    """
    digests = {run.run.data_digest for run in about.trained} - {None}
    try:
        if len(digests) > 1:
            raise DataError("the runs have seen different data")
        return _of_shards(*at_hand(next(iter(digests), None), shards))
    except (RaymsaError, OSError) as error:
        if shards is not None:
            raise UsageError(f"--shards {shards}: {error}") from None
        return Words({}, f"The words are not at hand: {error}")


def _of_shards(folder: Path, manifest: Manifest) -> Words:
    from raymsa.data.columns import columns

    table = columns(folder, manifest, ["id", "text"])
    texts = dict(zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True))
    more = "frames and sound, where clips have them, are theirs, too"
    source = f"The words are those of the shards (data {manifest.digest}); {more}."
    return Words(texts, source, folder)


def _one(about: Evidence, words: Words, at: int, error: float) -> Worst:
    clip_id = about.ids[at]
    groups = [group for group in about.groups if group.score_RB.size]
    said = {g.name: tuple(one[clip_id].text for one in g.answers if one) for g in groups}
    frames: tuple[str, ...] = ()
    sound: tuple[str, ...] = ()
    note = ""
    if words.shards is not None and clip_id in words.texts:
        try:
            clip = _clip(words.shards, clip_id)
            frames, sound = tuple(_frames(clip)), tuple(_sound(clip))
        except (RaymsaError, OSError) as problem:
            note = str(problem)
    return Worst(
        clip_id=clip_id,
        label=float(about.label_B[at]),
        error=error,
        text=words.texts.get(clip_id),
        scores={g.name: tuple(float(score) for score in g.score_RB[:, at]) for g in groups},
        said={name: texts for name, texts in said.items() if any(texts)},
        frames=frames,
        sound=sound,
        note=note,
    )


def _clip(shards: Path, clip_id: str) -> Clip:
    from raymsa.data import manifest as manifests
    from raymsa.data.columns import find

    return find(shards, manifests.read(shards), clip_id)


def _frames(clip: Clip) -> list[str]:
    if clip.frames_FHWC is None:
        return []
    many = len(clip.frames_FHWC)
    chosen = sorted({int((n + 0.5) * many / FRAMES) for n in range(FRAMES)})  # the middle of each stretch
    return [image(_small(clip.frames_FHWC[n]), f"frame {n + 1} of {many} of {clip.id}") for n in chosen]


def _small(frame_HWC: np.ndarray) -> np.ndarray:
    """The frame with blocks of pixels averaged, so that it is not wider than WIDE."""
    block = -(-frame_HWC.shape[1] // WIDE)
    height, width = (side // block for side in frame_HWC.shape[:2])
    if block == 1 or not height:
        return frame_HWC
    blocks = frame_HWC[: height * block, : width * block].reshape(height, block, width, block, -1)
    small: np.ndarray = blocks.mean((1, 3)).round().astype(np.uint8)
    return small


def _sound(clip: Clip) -> list[str]:
    if clip.audio_S is None or not len(clip.audio_S):
        return []
    heard = clip.audio_S[: int(SOUND_S * SAMPLE_RATE)]
    seconds = len(clip.audio_S) / SAMPLE_RATE
    cut = f", the first {SOUND_S:g} s of them" if len(heard) < len(clip.audio_S) else ""
    about = f"sound of the clip: {seconds:.1f} s{cut}"
    source = data_uri("audio/wav", wav(heard))
    return [
        f'<audio controls src="{source}" aria-label="{about}"></audio>',
        image(waveform(heard), f"wave of the {about}"),
    ]
