"""Where the vectors of picture and sound stand in the sequence, and their M-RoPE positions.

Everything equals transformers' Qwen2_5OmniProcessor and get_rope_index (tests/test_parity.py, tests/test_inputs.py).

Axes: T tokens, V tokens of the picture, A tokens of the sound, N tokens of both.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Picture:
    """The patch grid of one video, and the time that one temporal patch covers."""

    grid_3: tuple[int, int, int]  # patches: time, height, width
    span_s: float
    merge: int  # patches per token, on each side

    @property
    def tokens(self) -> int:
        """Places in the sequence."""
        return self.grid_3[0] * self._each

    @property
    def _each(self) -> int:
        return self.grid_3[1] // self.merge * (self.grid_3[2] // self.merge)

    def time_V(self, per_second: float) -> np.ndarray:
        """Time of each token in steps of 1 / `per_second`, in float64: transformers' processor lays tokens by it."""
        return np.repeat(np.arange(self.grid_3[0]), self._each) * self.span_s * per_second

    def position_3V(self, per_second: float) -> np.ndarray:
        """M-RoPE ids counted from 0 (see `vision_positions`)."""
        return vision_positions(self.grid_3, self.span_s, self.merge, per_second)


def vision_positions(grid_3: tuple[int, int, int], span_s: float, merge: int, per_second: float) -> np.ndarray:
    """M-RoPE ids [3, tokens] of one video, counted from 0: time in 1/25 s, then row, then column of merged patches.

    `span_s` is the time one temporal patch covers. Source: get_rope_index of Qwen2.5-Omni (float32 as there).
    """
    steps, rows, columns = grid_3[0], grid_3[1] // merge, grid_3[2] // merge
    time = (torch.arange(steps) * torch.tensor(span_s).float() * per_second).long().numpy()
    return np.stack([axis.ravel() for axis in np.meshgrid(time, np.arange(rows), np.arange(columns), indexing="ij")])


def interleaved(time_V: np.ndarray, sound: int, per_chunk: int) -> list[np.ndarray]:
    """Picture and sound in turns of `per_chunk` time steps, as runs of indices: 0 to V-1 are picture, V to V+A-1 sound.

    Chunk by chunk, picture first; the longer of the two goes on alone.
    """
    seen = chunks(time_V, per_chunk)
    heard = [run + len(time_V) for run in chunks(np.arange(sound), per_chunk)]
    return [runs[turn] for turn in range(max(len(seen), len(heard))) for runs in (seen, heard) if turn < len(runs)]


def chunks(time_N: np.ndarray, per_chunk: int) -> list[np.ndarray]:
    """Indices of rising times, cut where the next chunk begins.

    Source: get_chunked_index. It begins at most one chunk per token, so that a step over several chunks (a frame every
    5 s, say) cuts single tokens off instead of leaving chunks empty: the same here.
    """
    starts = [0]
    while True:
        start = max(int(np.searchsorted(time_N, len(starts) * per_chunk)), starts[-1] + 1)
        if start >= len(time_N):
            return np.split(np.arange(len(time_N)), starts[1:])
        starts.append(start)


def plain_positions(tokens: int, picture: Picture | None, start: int, per_second: float) -> np.ndarray:
    """M-RoPE ids [3, T] of a sequence whose picture, if there is one, stands in one run from `start` on."""
    if picture is None:
        return np.broadcast_to(np.arange(tokens), (3, tokens))
    seen_3V = picture.position_3V(per_second)
    return _around(tokens, seen_3V + start, start, after=start + int(seen_3V.max()) + 1)


def interleaved_positions(
    tokens: int, picture: Picture, sound: int, start: int, per_second: float, per_chunk: int
) -> np.ndarray:
    """M-RoPE ids [3, T] of a sequence whose picture and sound are interleaved from `start` on.

    The begin marks of picture and sound share a position, and so do their end marks. What follows counts on from the
    last chunk, not from the highest position. Source: get_rope_index with use_audio_in_video.
    """
    seen_3V = picture.position_3V(per_second)
    both_3N = np.concatenate([seen_3V, np.broadcast_to(np.arange(sound), (3, sound))], axis=1)
    runs = interleaved(seen_3V[0], sound, per_chunk)
    first = start - 1  # one position fewer than tokens: the two begin marks share one
    end = first + int(both_3N[:, runs[-1]].max()) + 1
    position_3T = _around(tokens, both_3N[:, np.concatenate(runs)] + first, start, after=end - 1)
    position_3T[:, start - 1] = first - 1
    position_3T[:, start + both_3N.shape[1]] = end
    return position_3T


def _around(tokens: int, media_3N: np.ndarray, start: int, after: int) -> np.ndarray:
    """Words counted from 0 to `start`, the media's own positions, then words counted from `after`."""
    stop = start + media_3N.shape[1]
    position_3T = np.empty((3, tokens), np.int64)
    position_3T[:, :start] = np.arange(start)
    position_3T[:, start:stop] = media_3N
    position_3T[:, stop:] = np.arange(tokens - stop) + after
    return position_3T
