"""One media file as frames and sound: what `prepare` keeps of it, and nothing else.

Axes: F frames, H height, W width, C colour channels (RGB), S audio samples at 16 kHz mono.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import av
import av.logging
import numpy as np

from raymsa.clip import MERGED_PATCH, SAMPLE_RATE
from raymsa.datasets.base import MediaSettings
from raymsa.errors import MediaError

if TYPE_CHECKING:
    from av.container import InputContainer

SHORTEST_SOUND_S = 0.01  # shorter than one mel frame's hop: a stream that is there, but empty
# Containers people keep clips in. ffmpeg knows hundreds more: text shown as a picture (tty), playlists that name
# other files (hls, concat), game formats nobody has fuzzed. Those are refused before their demuxer runs.
CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,h264,hevc,m4v,ivf,flv,asf,rm,dv,mxf,ogg,gif,"
    "wav,w64,flac,mp3,aac,aiff,caf,au,amr,ac3,mjpeg,nut"
)
# What PyAV raises for broken input: its own errors, and ValueError or IndexError from its Python layer.
BROKEN = (av.FFmpegError, ValueError, IndexError)


@dataclass(frozen=True)
class Media:
    """What was decoded: frames_FHWC uint8 and audio_S int16, None where there is no such stream.

    `truncated`: sound went on after max_audio_s. `notes`: a stream that is there but could not be decoded.
    """

    seconds: float
    frames_FHWC: np.ndarray | None
    audio_S: np.ndarray | None
    truncated: bool
    notes: tuple[str, ...] = ()


def decode(path: Path, settings: MediaSettings) -> Media:
    """The frames and the sound of one file. Raises MediaError with a short reason when there are neither."""
    av.logging.set_level(None)  # ffmpeg writes its complaints to stderr; the reason is in our error
    _check_file(path)
    sound, frames = _Sound(None, False), None
    notes: list[str] = []
    try:
        spans = _scan(path)
        frames = _try_frames(path, spans.video, settings, notes)
        sound = _try_sound(path, spans.audio, settings.max_audio_s, notes)
    except BROKEN as error:
        sound = _soundfile(path, settings.max_audio_s)
        if sound.audio_S is None:
            raise MediaError(f"not a media file: {_reason(error)}") from None
        spans = _Spans(None, None)
    if frames is None and sound.audio_S is None:
        raise MediaError("; ".join(["no frames and no sound could be decoded", *notes]))
    heard_s = 0.0 if sound.audio_S is None else len(sound.audio_S) / SAMPLE_RATE
    seconds = max(heard_s, *(span.length_s for span in spans if span), 0.0)
    return Media(seconds, frames, sound.audio_S, sound.truncated, tuple(notes))


def grid(height: int, width: int, max_pixels: int) -> tuple[int, int]:
    """Height and width after resizing: multiples of 28, at most max_pixels, about the same aspect, never larger.

    A side shorter than 28 pixels becomes 28; the other side then gives way to the budget.
    """
    shrink = min(1.0, math.sqrt(max_pixels / (height * width)))
    budget = max_pixels // MERGED_PATCH**2
    rows = max(1, int(height * shrink) // MERGED_PATCH)
    columns = max(1, int(width * shrink) // MERGED_PATCH)
    return min(rows, budget) * MERGED_PATCH, min(columns, budget // min(rows, budget)) * MERGED_PATCH


class _Span(NamedTuple):
    """Packets of one stream: how many, and their times in seconds in order of display (None: no time stamps)."""

    packets: int
    times: list[float] | None
    length_s: float


class _Spans(NamedTuple):
    video: _Span | None
    audio: _Span | None


class _Sound(NamedTuple):
    audio_S: np.ndarray | None
    truncated: bool


def _check_file(path: Path) -> None:
    try:
        if not path.exists():
            raise MediaError("missing file")
        if not path.is_file():
            raise MediaError("not a file")
        with path.open("rb") as file:
            if not file.read(1):
                raise MediaError("empty file (0 bytes)")
    except OSError as error:  # a name too long for the file system, a file that may not be read
        raise MediaError(f"cannot be read: {error.strerror}") from None


def _open(path: Path) -> InputContainer:
    # `file:` and the white lists: a name with a colon is no protocol, and no file makes ffmpeg open another one.
    options = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}
    return av.open(f"file:{path.absolute()}", options=options, metadata_errors="replace")


def _scan(path: Path) -> _Spans:
    """Packet times of the first picture and sound stream: the container's own counts are often absent or wrong."""
    with _open(path) as container:
        video, audio = _stream(container, "picture"), _stream(container, "sound")
        wanted = [stream for stream in (video, audio) if stream is not None]
        if not wanted:
            return _Spans(None, None)
        times: dict[int, list[tuple[float | None, float]]] = {stream.index: [] for stream in wanted}
        for packet in _until_broken(container.demux(wanted)):
            if packet.size and not packet.is_discard:
                start_s = None if packet.pts is None else float(packet.pts * packet.time_base)
                lasts_s = float((packet.duration or 0) * packet.time_base)
                times[packet.stream_index].append((start_s, lasts_s))
        return _Spans(*(None if stream is None else _span(times[stream.index]) for stream in (video, audio)))


def _stream(container: InputContainer, kind: str) -> av.VideoStream | av.AudioStream | None:
    """The first stream of that kind, one with a known codec if there is one; a cover picture is none."""
    streams = container.streams.video if kind == "picture" else container.streams.audio
    found = [stream for stream in streams if not stream.disposition & stream.disposition.attached_pic]
    return next((stream for stream in found if stream.codec_context is not None), next(iter(found), None))


def _span(packets: list[tuple[float | None, float]]) -> _Span:
    known = sorted((start, lasts) for start, lasts in packets if start is not None)
    if len(known) < len(packets) or not known:
        return _Span(len(packets), None, sum(lasts for _, lasts in packets))
    step = known[-1][1] or (known[-1][0] - known[0][0]) / max(1, len(known) - 1)
    return _Span(len(packets), [start for start, _ in known], known[-1][0] + step - known[0][0])


def _until_broken(packets: Iterator[av.Packet[Any]]) -> Iterator[av.Packet[Any]]:
    """Packets up to the first that cannot be read: what a file cut in the middle still has."""
    try:
        yield from packets
    except BROKEN:
        return


def _decoded(path: Path, kind: str, notes: list[str]) -> Iterator[av.VideoFrame | av.AudioFrame]:
    """Frames of the first video or audio stream; a packet that does not decode is passed over, and noted once."""
    broken = 0
    with _open(path) as container:
        stream = _stream(container, kind)
        if stream is None or stream.codec_context is None:
            notes.append(f"{kind}: the codec is unknown")
            return
        stream.codec_context.thread_count = 1  # the parallelism is one task per core, not threads inside each
        for packet in _until_broken(container.demux(stream)):
            try:
                yield from packet.decode()
            except BROKEN:
                broken += 1
    if broken:
        notes.append(f"{kind}: {broken} packets could not be decoded")


def _try_frames(path: Path, span: _Span | None, settings: MediaSettings, notes: list[str]) -> np.ndarray | None:
    if span is None:
        return None
    try:
        chosen = list(_chosen(path, span, settings, notes))
    except BROKEN as error:
        notes.append(f"picture: {_reason(error)}")
        return None
    if not chosen and not notes:
        notes.append("picture: there is a stream, but no frame could be decoded")
    return np.stack(chosen) if chosen else None


def _chosen(path: Path, span: _Span, settings: MediaSettings, notes: list[str]) -> Iterator[np.ndarray]:
    """The frame shown at the middle of each of n equal spans, resized; one decoded frame is held at a time."""
    wanted = iter(_middles(span, settings.max_frames))
    middle = next(wanted, None)
    last: np.ndarray | None = None
    previous: tuple[av.VideoFrame, tuple[int, int]] | None = None
    size: tuple[int, int] | None = None
    at = -math.inf
    for number, frame in enumerate(_decoded(path, "picture", notes)):
        if middle is None:
            return
        assert isinstance(frame, av.VideoFrame)
        size = size or _upright_grid(frame, settings.max_pixels)
        if span.times is None:
            at = number
        elif frame.time is not None:  # else: a frame without a time stands where the one before it stood
            at = frame.time
        while middle is not None and previous is not None and at > middle:
            last = _resized(*previous)
            yield last
            middle = next(wanted, None)
        previous = (frame, size)
    # The stream may end, or break, before the last middles: they show what was on screen last.
    left = [] if middle is None else [middle, *wanted]
    if left and previous is not None:
        yield from itertools.repeat(_resized(*previous), len(left))


def _middles(span: _Span, max_frames: int) -> list[float]:
    """Where the frames are taken: seconds on the stream's clock, or frame numbers where it has no clock."""
    n = min(max_frames, span.packets)
    if span.times is None:
        return [(k + 0.5) * span.packets / n for k in range(n)]
    return [span.times[0] + (k + 0.5) * span.length_s / n for k in range(n)]


def _upright_grid(frame: av.VideoFrame, max_pixels: int) -> tuple[int, int]:
    height, width = (frame.width, frame.height) if frame.rotation % 180 else (frame.height, frame.width)
    return grid(height, width, max_pixels)


def _resized(frame: av.VideoFrame, size: tuple[int, int]) -> np.ndarray:
    """The frame upright and at `size`, HWC uint8."""
    return resize(np.rot90(frame.to_ndarray(format="rgb24"), k=frame.rotation // 90), size)


def resize(image_HWC: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A uint8 image at `size` (height, width): antialiased bicubic, as the model's own video processor does it."""
    import torch
    from torch.nn.functional import interpolate

    image_1CHW = torch.from_numpy(image_HWC.copy()).permute(2, 0, 1)[None]
    small_1CHW = interpolate(image_1CHW, size=size, mode="bicubic", antialias=True)
    return np.ascontiguousarray(small_1CHW[0].permute(1, 2, 0).numpy())


def _try_sound(path: Path, span: _Span | None, max_audio_s: float, notes: list[str]) -> _Sound:
    if span is None:
        return _Sound(None, False)
    try:
        frames = (frame for frame in _decoded(path, "sound", notes) if isinstance(frame, av.AudioFrame))
        sound = _mono(frames, max_audio_s)
    except BROKEN as error:
        notes.append(f"sound: {_reason(error)}")
        return _Sound(None, False)
    if sound.audio_S is None and not any(note.startswith("sound") for note in notes):
        notes.append(f"sound: shorter than {SHORTEST_SOUND_S * 1000:.0f} ms, or not decodable")
    return sound


def _mono(frames: Iterator[av.AudioFrame], max_audio_s: float) -> _Sound:
    """16 kHz mono int16, at most max_audio_s of it; decoding stops there."""
    most = int(max_audio_s * SAMPLE_RATE)
    pieces: list[np.ndarray] = []
    samples = 0
    for piece_S in _resampled(frames):
        pieces.append(piece_S)
        samples += len(piece_S)
        if samples > most:
            break
    audio_S = np.concatenate(pieces) if pieces else np.zeros(0, np.int16)
    enough = len(audio_S) >= SHORTEST_SOUND_S * SAMPLE_RATE
    return _Sound(audio_S[:most].copy() if enough else None, len(audio_S) > most)


def _resampled(frames: Iterator[av.AudioFrame]) -> Iterator[np.ndarray]:
    resampler, like = _resampler(), None
    for frame in frames:
        frame.pts = None  # samples follow each other; a jump in the time stamps is no reason to fail
        now = (frame.format.name, frame.layout.name, frame.sample_rate)
        if like not in (None, now):  # some broadcasts change from stereo to mono in the middle
            yield from (out.to_ndarray()[0] for out in resampler.resample(None))
            resampler = _resampler()
        like = now
        yield from (out.to_ndarray()[0] for out in resampler.resample(frame))
    if like is not None:
        yield from (out.to_ndarray()[0] for out in resampler.resample(None) if out is not None)


def _resampler() -> av.AudioResampler:
    return av.AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE)


def _soundfile(path: Path, max_audio_s: float) -> _Sound:
    """Sound that libsndfile reads and ffmpeg does not (odd WAV headers); nothing when it does not either."""
    import soundfile

    try:
        with soundfile.SoundFile(path) as file:
            most = int((max_audio_s + 1) * file.samplerate)
            mixed_S = file.read(most, dtype="float32", always_2d=True).mean(axis=1)
            frame = av.AudioFrame.from_ndarray(mixed_S[None], format="flt", layout="mono")
            frame.sample_rate = file.samplerate
        return _mono(iter([frame]), max_audio_s)
    except (soundfile.SoundFileError, *BROKEN):
        return _Sound(None, False)


def _reason(error: Exception) -> str:
    """ffmpeg's words without number and path: the path stands beside them in rejects.csv."""
    if isinstance(error, av.error.ArgumentError):  # what the white list of formats answers
        return "the container format is not supported"
    words = str(getattr(error, "strerror", None) or error)
    return " ".join(words.split())[:200] or type(error).__name__
