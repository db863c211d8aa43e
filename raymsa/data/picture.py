"""Some frames of a video: which ones, decoding no more than they need, upright and resized.

Axes: F frames, H height, W width, C colour channels (RGB). Times are in ticks of the stream's time base.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from raymsa.clip import MERGED_PATCH
from raymsa.data.sound import BROKEN


@dataclass
class Times:
    """Time stamps of one stream's packets, in the order of the file: the container's own counts are often wrong."""

    starts: list[int | None] = field(default_factory=list)
    lasts: list[int] = field(default_factory=list)
    keys: list[bool] = field(default_factory=list)  # packets at which decoding can begin
    kept: list[bool] = field(default_factory=list)  # False: there to be decoded, not to be shown

    def add(self, packet: av.Packet[Any]) -> None:
        """Note one packet."""
        self.starts.append(packet.pts)
        self.lasts.append(packet.duration or 0)
        self.keys.append(packet.is_keyframe)
        self.kept.append(not packet.is_discard)

    @property
    def packets(self) -> int:
        """How many are shown."""
        return sum(self.kept)

    def shown(self) -> list[tuple[int, int]] | None:
        """Start and length of what is shown, in order of display; None where there is no clock, or it stands still."""
        known = sorted(
            (start, lasts)
            for start, lasts, kept in zip(self.starts, self.lasts, self.kept, strict=True)
            if kept and start is not None
        )
        if not known or len(known) < self.packets or (known[0][0] == known[-1][0] and len(known) > 1):
            return None
        return known

    def length(self) -> float:
        """Of the stream, in ticks."""
        known = self.shown()
        if known is None:
            return sum(lasts for lasts, kept in zip(self.lasts, self.kept, strict=True) if kept)
        step = known[-1][1] or (known[-1][0] - known[0][0]) / max(1, len(known) - 1)
        return known[-1][0] + step - known[0][0]


class SkipFailed(Exception):
    """Decoding did not begin cleanly at a packet marked as a beginning; the stream has to be decoded whole."""


@dataclass
class Chooser:
    """The frame shown at the middle of each of n equal spans. `frames_FHWC` fills up as `choose` is fed.

    `skipping` leaves out packets that no wanted frame needs; the frames are those of decoding everything.
    """

    times: Times
    max_frames: int
    max_pixels: int
    skipping: bool = True
    broken: int = 0  # packets that did not decode

    def choose(self, packets: Iterable[av.Packet[Any]], codec: av.VideoCodecContext) -> np.ndarray | None:
        """The frames, FHWC uint8; None when none could be decoded. Raises SkipFailed when they may not be right."""
        n = min(self.max_frames, self.times.packets)
        if not n:
            return None
        # The parallelism is one process per core, not threads inside each; and more threads hold back frames.
        codec.thread_count = 1
        known = self.times.shown()
        frames = self._in_time(packets, codec, known, n) if known else self._counted(packets, codec, n)
        return _resized(frames, n, self.max_pixels)

    def _counted(
        self, packets: Iterable[av.Packet[Any]], codec: av.VideoCodecContext, n: int
    ) -> Iterator[av.VideoFrame]:
        """Without a clock frames are counted, and every packet is decoded."""
        wanted = iter([int((k + 0.5) * self.times.packets / n) for k in range(n)])
        at, last = next(wanted, None), None
        decoded = (frame for packet in itertools.chain(packets, [None]) for frame in self._decoded(codec, packet))
        for number, frame in enumerate(decoded):
            last = frame
            while at is not None and number >= at:
                yield frame
                at = next(wanted, None)
            if at is None:
                return
        if last is not None:
            yield last

    def _in_time(
        self, packets: Iterable[av.Packet[Any]], codec: av.VideoCodecContext, known: list[tuple[int, int]], n: int
    ) -> Iterator[av.VideoFrame]:
        starts = [start for start, _ in known]
        step = self.times.length() / n
        wanted = [starts[bisect_right(starts, starts[0] + (k + 0.5) * step) - 1] for k in range(n)]
        last: av.VideoFrame | None = None
        for frame in self._needed(packets, codec, wanted):
            if frame is not None and frame.pts is None:  # stands where the one before it stood
                last = frame
                continue
            at = math.inf if frame is None or frame.pts is None else frame.pts
            while wanted and at > wanted[0] and last is not None:  # it did not decode: what was before it is shown
                yield last
                wanted.pop(0)
            last = frame or last
            while wanted and at == wanted[0] and frame is not None:
                yield frame
                wanted.pop(0)
            if not wanted:
                return

    def _needed(
        self, packets: Iterable[av.Packet[Any]], codec: av.VideoCodecContext, wanted: list[int]
    ) -> Iterator[av.VideoFrame | None]:
        """Decoded frames in order of display, None at the end; `wanted` shrinks while they are consumed."""
        begin = self._beginnings() if self.skipping else []
        exact, left_out, resumed = set(wanted), False, None
        for number, packet in enumerate(packets):
            if begin and number < _before(begin, wanted[0]):
                left_out = True
                continue
            if left_out:
                codec.flush_buffers()
                left_out, resumed = False, packet.pts
            # Frames that no other frame refers to need not be decoded unless they are wanted themselves.
            codec.skip_frame = "NONREF" if self.skipping and packet.pts not in exact else "DEFAULT"
            for frame in self._decoded(codec, packet):
                if resumed is not None and frame.pts is not None:
                    if frame.pts < resumed:
                        continue  # refers to what was left out
                    if frame.pts > resumed or frame.is_corrupt:
                        raise SkipFailed
                    resumed = None
                yield frame
        yield from self._decoded(codec, None)
        yield None

    def _beginnings(self) -> list[tuple[int, int]]:
        """Time and number of the packets at which decoding can begin, in rising order of both."""
        found: list[tuple[int, int]] = []
        for number, (start, key) in enumerate(zip(self.times.starts, self.times.keys, strict=True)):
            if key and start is not None and (not found or start > found[-1][0]):
                found.append((start, number))
        return found

    def _decoded(self, codec: av.VideoCodecContext, packet: av.Packet[Any] | None) -> list[av.VideoFrame]:
        try:
            return codec.decode(packet)
        except EOFError:
            return []
        except MemoryError:  # ffmpeg counts it among its own errors; it is no fault of the stream
            raise
        except BROKEN:
            self.broken += packet is not None
            return []


def _before(begin: list[tuple[int, int]], time: int) -> int:
    """Number of the last packet from which decoding reaches `time`."""
    at = bisect_right(begin, (time, 1 << 62)) - 1
    return begin[at][1] if at >= 0 else 0


def _resized(frames: Iterator[av.VideoFrame], n: int, max_pixels: int) -> np.ndarray | None:
    """FHWC uint8: n frames, the last one again where the stream ended early; one decoded frame is held at a time."""
    reformatter = VideoReformatter()  # kept: it would set up its tables anew for every frame
    out_FHWC: np.ndarray | None = None
    before: av.VideoFrame | None = None
    number = 0
    for number, frame in enumerate(frames):
        if out_FHWC is None:
            size = _upright_grid(frame, max_pixels)
            out_FHWC = np.empty((n, *size, 3), np.uint8)
        out_FHWC[number] = out_FHWC[number - 1] if frame is before else _upright(frame, size, reformatter)
        before = frame
    if out_FHWC is not None:
        out_FHWC[number + 1 :] = out_FHWC[number]
    return out_FHWC


def _upright_grid(frame: av.VideoFrame, max_pixels: int) -> tuple[int, int]:
    height, width = (frame.width, frame.height) if frame.rotation % 180 else (frame.height, frame.width)
    return grid(height, width, max_pixels)


def _upright(frame: av.VideoFrame, size: tuple[int, int], reformatter: VideoReformatter) -> np.ndarray:
    image_HWC = reformatter.reformat(frame, format="rgb24").to_ndarray()
    return resize(np.rot90(image_HWC, k=frame.rotation // 90), size)


def grid(height: int, width: int, max_pixels: int) -> tuple[int, int]:
    """Height and width after resizing: multiples of 28, at most max_pixels, about the same aspect, never larger.

    A side shorter than 28 pixels becomes 28; the other side then gives way to the budget.
    """
    shrink = min(1.0, math.sqrt(max_pixels / (height * width)))
    budget = max_pixels // MERGED_PATCH**2
    rows = max(1, int(height * shrink) // MERGED_PATCH)
    columns = max(1, int(width * shrink) // MERGED_PATCH)
    return min(rows, budget) * MERGED_PATCH, min(columns, budget // min(rows, budget)) * MERGED_PATCH


def resize(image_HWC: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A uint8 image at `size` (height, width): antialiased bicubic, as the model's own video processor does it."""
    import torch
    from torch.nn.functional import interpolate

    # Colours stay the innermost axis in memory: torch has a faster way for that, with the same result.
    image_1CHW = torch.from_numpy(np.ascontiguousarray(image_HWC))[None].permute(0, 3, 1, 2)
    small_1CHW = interpolate(image_1CHW, size=size, mode="bicubic", antialias=True)
    return np.ascontiguousarray(small_1CHW[0].permute(1, 2, 0).numpy())
