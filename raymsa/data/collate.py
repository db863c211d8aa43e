"""Clips to tensors: one padded batch, and batches of bounded size made from a stream of clips.

Axes as in `raymsa.clip.Batch`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate, islice
from typing import Literal, TypeVar

import numpy as np
import torch

from raymsa.clip import Batch, Clip
from raymsa.data.ahead import ahead
from raymsa.readouts.base import Readout
from raymsa.spec import TrainSpec
from raymsa.thinker.inputs import Encoded, Encoder

T = TypeVar("T")
Side = Literal["left", "right"]
WINDOWS_HELD = 2  # the one that is trained on, and the next one, which is filled meanwhile


@dataclass(frozen=True)
class Measured:
    """A clip with its prompt's tokens: what is needed to choose its batch, before any heavy work."""

    clip: Clip
    token_T: list[int]


@dataclass(frozen=True)
class Collate:
    """Clips -> Batch, for one model folder, one inputs spec and one readout."""

    encoder: Encoder
    readout: Readout
    side: Side = "left"  # generation needs left padding; nothing depends on it otherwise
    for_gpu: bool = False  # in memory that a GPU takes from, and made while it computes

    def __post_init__(self) -> None:
        self.readout.check(self.encoder.answer_tokens, self.encoder.target)

    def measure(self, clip: Clip) -> Measured:
        """The clip with its prompt tokens."""
        return Measured(clip, self.encoder.tokens(clip))

    def __call__(self, clips: list[Measured], answers: bool = False) -> Batch:
        """One padded batch in host memory; with `answers`, the readout's answers stand behind the prompts."""
        done = [self.encoder.encode(m.clip, m.token_T, self._answer(m.clip) if answers else []) for m in clips]
        width = max(len(e.token_T) for e in done)
        pad = self.encoder.tokenizer.pad_token_id
        token_BT = self._padded([np.array(e.token_T) for e in done], width, pad)
        mask_BT = self._padded([np.ones(len(e.token_T), int) for e in done], width, 0)
        lengths = [len(e.token_T) for e in done]
        answer_BT = self._padded([_marks(e) for e in done], width, False) if answers and done[0].answer else None
        batch = Batch(
            ids=[e.clip.id for e in done],
            label_B=torch.tensor([e.clip.label for e in done], dtype=torch.float32),
            token_BT=token_BT,
            mask_BT=mask_BT,
            position_3BT=self._padded([e.position_3T for e in done], width, 1).transpose(0, 1),
            lengths=lengths,
            real_N=_places(mask_BT),
            edge_E=torch.tensor([0, *accumulate(lengths)], dtype=torch.int32),
            answer_BT=answer_BT,
            learned_2K=None if answer_BT is None else answer_BT.nonzero().T,
            **_media(done),
            **self._media_places(token_BT, done),
        )
        return batch.pinned() if self.for_gpu else batch

    def ahead(self, made: Iterator[T]) -> Iterator[T]:
        """The same batches, made in a thread while a GPU computes; where the CPU computes, it would be held up."""
        return ahead(made) if self.for_gpu else made

    def _answer(self, clip: Clip) -> list[int]:
        return self.encoder.answer_tokens(self.readout.answer(clip.label, self.encoder.target))

    def _media_places(self, token_BT: torch.Tensor, done: list[Encoded]) -> dict[str, torch.Tensor]:
        """Where the towers' outputs go; found here, because the device would be waited for to count them."""
        config = self.encoder.config
        heard = any(e.mel_ML is not None or e.heard_ND is not None for e in done)
        seen = any(e.patch_PX is not None or e.seen_ND is not None for e in done)
        places = {"heard_at_N": _places(token_BT == config.audio_token_id)} if heard else {}
        return places | ({"seen_at_N": _places(token_BT == config.video_token_id)} if seen else {})

    def _padded(self, rows: list[np.ndarray], width: int, value: int) -> torch.Tensor:
        def room(row: np.ndarray) -> list[tuple[int, int]]:
            missing = width - row.shape[-1]
            ends = (missing, 0) if self.side == "left" else (0, missing)
            return [(0, 0)] * (row.ndim - 1) + [ends]

        return torch.from_numpy(np.stack([np.pad(row, room(row), constant_values=value) for row in rows]))


def _places(chosen_BT: torch.Tensor) -> torch.Tensor:
    return chosen_BT.flatten().nonzero()[:, 0]


def _marks(encoded: Encoded) -> np.ndarray:
    return np.arange(len(encoded.token_T)) >= len(encoded.token_T) - encoded.answer


def _media(done: list[Encoded]) -> dict[str, torch.Tensor]:
    mels = [e.mel_ML for e in done if e.mel_ML is not None]
    patches = [e.patch_PX for e in done if e.patch_PX is not None]
    grids = [e.grid_3 for e in done if e.grid_3 is not None]
    heard = {"mel_ML": torch.cat(mels, 1), "mel_length_A": torch.tensor([m.shape[1] for m in mels])} if mels else {}
    seen = {"patch_PX": torch.cat(patches), "grid_V3": torch.tensor(grids)} if patches else {}
    return heard | seen | _known(done)


def _known(done: list[Encoded]) -> dict[str, torch.Tensor]:
    """What the towers have made of the clips already."""
    heard = [e.heard_ND for e in done if e.heard_ND is not None]
    seen = [e.seen_ND for e in done if e.seen_ND is not None]
    return ({"heard_ND": torch.cat(heard)} if heard else {}) | ({"seen_ND": torch.cat(seen)} if seen else {})


def windows(clips: Iterable[Clip], size: int) -> Iterator[list[Clip]]:
    """Consecutive lists of `size` clips; the last may be shorter."""
    source = iter(clips)
    while window := list(islice(source, size)):
        yield window


def steps_in(clips: int, window: int, batch: int) -> int:
    """Optimizer steps that `clips` make when cut into windows and those into steps."""
    whole, rest = divmod(clips, window)
    return whole * -(-window // batch) + -(-rest // batch)


def windows_before(step: int, window: int, batch: int) -> int:
    """Whole windows whose steps all come before a step of an epoch."""
    return step // -(-window // batch)


def steps_of_epoch(
    clips: Iterable[Clip],
    measure: Callable[[Clip], Measured],
    train: TrainSpec,
    seed: int,
    skip: int,
    packed: bool = False,
) -> Iterator[list[list[Measured]]]:
    """The steps of an epoch from step `skip` on; `clips` begin with the window which that step is in.

    `packed`: the passes have no padding.
    """
    first = windows_before(skip, train.window_clips, train.batch_clips)
    skip -= first * steps_in(train.window_clips, train.window_clips, train.batch_clips)
    filled = ahead(windows(clips, train.window_clips), depth=WINDOWS_HELD - 1)
    for index, window in enumerate(filled, first):
        measured = [measure(clip) for clip in window]
        yield from steps(measured, train.batch_clips, train.batch_tokens, seed * 10_007 + index, packed)[skip:]
        skip = 0
        del window, measured  # before the next one is taken: it would be held beside the two that are stated


def steps(
    clips: list[Measured], batch_clips: int, batch_tokens: int, seed: int, packed: bool = False
) -> list[list[list[Measured]]]:
    """A window of clips as optimizer steps, each a list of forward passes within the token budget.

    Clips of like length share a step (length buckets), the order of steps is shuffled; the same seed gives the same.
    """
    random = np.random.default_rng(seed)
    shuffled = [clips[i] for i in random.permutation(len(clips))]
    by_length = sorted(shuffled, key=lambda m: len(m.token_T))
    groups = [by_length[i : i + batch_clips] for i in range(0, len(by_length), batch_clips)]
    return [list(within_budget(groups[i], batch_tokens, packed)) for i in random.permutation(len(groups))]


def within_budget(clips: Iterable[Measured], batch_tokens: int, packed: bool = False) -> Iterator[list[Measured]]:
    """Consecutive clips in passes of at most `batch_tokens` tokens (one clip always fits).

    Padding is counted, too, unless the passes are `packed`.
    """
    taken: list[Measured] = []
    lengths: list[int] = []
    for clip in clips:
        lengths.append(len(clip.token_T))
        size = sum(lengths) if packed else max(lengths) * len(lengths)
        if taken and size > batch_tokens:
            yield taken
            taken, lengths = [], lengths[-1:]
        taken.append(clip)
    if taken:
        yield taken
