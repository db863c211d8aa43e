"""One media file as frames and sound: what `prepare` keeps of it, and nothing else.

Axes: F frames, H height, W width, C colour channels (RGB), S audio samples at 16 kHz mono.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import av
import av.error
import av.logging
import numpy as np

from raymsa.clip import SAMPLE_RATE
from raymsa.data.picture import Chooser, SkipFailed, Times
from raymsa.data.sound import BROKEN, SHORTEST_SOUND_S, Listener, Sound, with_soundfile
from raymsa.errors import MediaError

if TYPE_CHECKING:
    from av.container import InputContainer

    from raymsa.datasets.base import MediaSettings

# Containers people keep clips in. ffmpeg knows hundreds more: text shown as a picture (tty), playlists that name
# other files (hls, concat), game formats nobody has fuzzed. Those are refused before their demuxer runs.
CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,h264,hevc,m4v,ivf,flv,asf,rm,dv,mxf,ogg,gif,"
    "wav,w64,flac,mp3,aac,aiff,caf,au,amr,ac3,mjpeg,nut"
)
S = TypeVar("S", av.VideoStream, av.AudioStream)
KEPT_BYTES = 32_000_000  # of compressed picture held from the first reading, so that a short clip is read once


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
    try:
        with _open(path) as container:
            return _Reading(path, container, settings).media()
    except MemoryError:  # ffmpeg counts it among its own errors; it is no fault of the stream
        raise
    except BROKEN as error:
        sound = with_soundfile(path, settings.max_audio_s)
        if sound.audio_S is None:
            raise MediaError(f"not a media file: {_reason(error)}") from None
        return Media(len(sound.audio_S) / SAMPLE_RATE, None, sound.audio_S, sound.truncated)


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


class _Reading:
    """One file that is open. It is read once: sound is decoded on the way, the picture when its times are known."""

    def __init__(self, path: Path, container: InputContainer, settings: MediaSettings) -> None:
        self.path, self.container, self.settings = path, container, settings
        self.picture, self.sound = _first(container.streams.video), _first(container.streams.audio)
        self.shown, self.heard = Times(), Times()
        self.packets: list[av.Packet[Any]] | None = []  # of the picture; None once they are too many to be held
        self.listener = Listener(settings.max_audio_s)
        self.notes: list[str] = []

    def media(self) -> Media:
        self._read()
        frames_FHWC = self._frames()
        audio_S, truncated = self._sound()
        if frames_FHWC is None and audio_S is None:
            raise MediaError("; ".join(["no frames and no sound could be decoded", *self.notes]))
        heard_s = 0.0 if audio_S is None else len(audio_S) / SAMPLE_RATE
        spans = [(self.shown, self.picture), (self.heard, self.sound)]
        lengths = [times.length() * float(stream.time_base or 0) for times, stream in spans if stream]
        return Media(max(heard_s, *lengths), frames_FHWC, audio_S, truncated, tuple(self.notes))

    def _read(self) -> None:
        wanted = [stream for stream in (self.picture, self.sound) if stream is not None]
        broken = held = 0
        for packet in _until_broken(self.container.demux(wanted)) if wanted else ():
            if not packet.size:
                continue
            if packet.stream is self.sound:
                self.heard.add(packet)
                broken += self._listen(packet)
                continue
            self.shown.add(packet)
            held += packet.size
            if self.packets is not None:
                self.packets.append(packet)
            if held > KEPT_BYTES:
                self.packets = None
        if broken:
            self.notes.append(f"sound: {broken} packets could not be decoded")

    def _listen(self, packet: av.Packet[Any] | None) -> bool:
        """True: it could not be decoded."""
        if self.sound is None or self.sound.codec_context is None or self.listener.full:
            return False
        try:
            for frame in self.sound.codec_context.decode(packet):
                assert isinstance(frame, av.AudioFrame)
                self.listener.hear(frame)
        except MemoryError:  # ffmpeg counts it among its own errors; it is no fault of the stream
            raise
        except BROKEN:
            return True
        return False

    def _sound(self) -> Sound:
        if self.sound is None:
            return Sound(None, False)
        if self.sound.codec_context is None:
            self.notes.append("sound: the codec is unknown")
            return Sound(None, False)
        try:
            self._listen(None)
            sound = self.listener.sound()
        except MemoryError:  # ffmpeg counts it among its own errors; it is no fault of the stream
            raise
        except BROKEN as error:
            self.notes.append(f"sound: {_reason(error)}")
            return Sound(None, False)
        if sound.audio_S is None and not any(note.startswith("sound") for note in self.notes):
            self.notes.append(f"sound: shorter than {SHORTEST_SOUND_S * 1000:.0f} ms, or not decodable")
        return sound

    def _frames(self) -> np.ndarray | None:
        if self.picture is None or not self.shown.packets:
            return None
        if self.picture.codec_context is None:
            self.notes.append("picture: the codec is unknown")
            return None
        try:
            frames_FHWC, broken = self._chosen(self.picture.codec_context)
        except MemoryError:  # ffmpeg counts it among its own errors; it is no fault of the stream
            raise
        except BROKEN as error:
            self.notes.append(f"picture: {_reason(error)}")
            return None
        if broken:
            self.notes.append(f"picture: {broken} packets could not be decoded")
        elif frames_FHWC is None:
            self.notes.append("picture: there is a stream, but no frame could be decoded")
        return frames_FHWC

    def _chosen(self, codec: av.VideoCodecContext) -> tuple[np.ndarray | None, int]:
        """The frames, and how many packets were broken."""
        for skipping in (True, False):
            chooser = Chooser(self.shown, self.settings.max_frames, self.settings.max_pixels, skipping)
            try:
                if skipping and self.packets is not None:
                    return chooser.choose(self.packets, codec), chooser.broken
                with _open(self.path) as container:
                    stream = _first(container.streams.video)
                    assert stream is not None
                    packets = (packet for packet in _until_broken(container.demux(stream)) if packet.size)
                    return chooser.choose(packets, stream.codec_context), chooser.broken
            except SkipFailed:
                continue
        raise AssertionError("without skipping nothing of it fails")


def _first(streams: tuple[S, ...]) -> S | None:
    """The first of a kind, one with a known codec if there is one; a cover picture is none."""
    found = [stream for stream in streams if not stream.disposition & stream.disposition.attached_pic]
    return next((stream for stream in found if stream.codec_context is not None), next(iter(found), None))


def _until_broken(packets: Iterator[av.Packet[Any]]) -> Iterator[av.Packet[Any]]:
    """Packets up to the first that cannot be read: what a file cut in the middle still has."""
    try:
        yield from packets
    except MemoryError:  # ffmpeg counts it among its own errors; it is no fault of the stream
        raise
    except BROKEN:
        return


def _reason(error: Exception) -> str:
    """ffmpeg's words without number and path: the path stands beside them in rejects.csv."""
    if isinstance(error, av.error.ArgumentError):  # what the white list of formats answers
        return "the container format is not supported"
    words = str(getattr(error, "strerror", None) or error)
    return " ".join(words.split())[:200] or type(error).__name__
