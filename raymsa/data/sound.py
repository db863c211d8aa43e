"""The sound of one media file, as 16 kHz mono.

Axes: S audio samples at 16 kHz mono.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import av
import av.error
import numpy as np

from raymsa.clip import SAMPLE_RATE

SHORTEST_SOUND_S = 0.01  # shorter than one mel frame's hop: a stream that is there, but empty
# What PyAV raises for broken input: its own errors, and ValueError or IndexError from its Python layer.
BROKEN = (av.FFmpegError, ValueError, IndexError)


class Sound(NamedTuple):
    """audio_S int16, None where there is none; `truncated`: it went on after the limit."""

    audio_S: np.ndarray | None
    truncated: bool


class Listener:
    """Takes a stream's frames as they are decoded and keeps at most `max_audio_s` seconds of them."""

    def __init__(self, max_audio_s: float) -> None:
        self._most = int(max_audio_s * SAMPLE_RATE)
        self._pieces: list[np.ndarray] = []
        self._samples = 0
        self._resampler, self._like = _resampler(), ("", "", 0)

    @property
    def full(self) -> bool:
        """More would be cut off: decoding may stop here."""
        return self._samples > self._most

    def hear(self, frame: av.AudioFrame) -> None:
        """Add a frame; raises one of BROKEN when it cannot be resampled."""
        frame.pts = None  # samples follow each other; a jump in the time stamps is no reason to fail
        now = (frame.format.name, frame.layout.name, frame.sample_rate)
        if self._like not in (("", "", 0), now):  # some broadcasts change from stereo to mono in the middle
            self._take(None)
            self._resampler = _resampler()
        self._like = now
        self._take(frame)

    def sound(self) -> Sound:
        """All that was heard."""
        if self._like != ("", "", 0):
            self._take(None)
        audio_S = np.concatenate(self._pieces) if self._pieces else np.zeros(0, np.int16)
        enough = len(audio_S) >= SHORTEST_SOUND_S * SAMPLE_RATE
        return Sound(audio_S[: self._most].copy() if enough else None, len(audio_S) > self._most)

    def _take(self, frame: av.AudioFrame | None) -> None:
        for out in self._resampler.resample(frame):
            if out is not None:
                self._pieces.append(out.to_ndarray()[0])
                self._samples += len(self._pieces[-1])


def _resampler() -> av.AudioResampler:
    return av.AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE)


def with_soundfile(path: Path, max_audio_s: float) -> Sound:
    """Sound that libsndfile reads and ffmpeg does not (odd WAV headers); nothing when it does not either."""
    import soundfile

    try:
        with soundfile.SoundFile(path) as file:
            most = int((max_audio_s + 1) * file.samplerate)
            mixed_S = file.read(most, dtype="float32", always_2d=True).mean(axis=1)
            frame = av.AudioFrame.from_ndarray(mixed_S[None], format="flt", layout="mono")
            frame.sample_rate = file.samplerate
        listener = Listener(max_audio_s)
        listener.hear(frame)
        return listener.sound()
    except (soundfile.SoundFileError, *BROKEN):
        return Sound(None, False)
