"""Small real media files for the tests, written with PyAV."""

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def tone(seconds: float, rate: int = 16_000, hz: float = 440.0, channels: int = 1) -> np.ndarray:
    wave = 0.3 * np.sin(2 * np.pi * hz * np.arange(int(seconds * rate)) / rate)
    return np.repeat((wave * 32767).astype(np.int16)[:, None], channels, axis=1)


def grey_ramp(frames: int, height: int = 72, width: int = 96) -> list[np.ndarray]:
    """Frame i is evenly grey with the value 10 * i: the brightness says which frame it is."""
    return [np.full((height, width, 3), min(250, 10 * i), np.uint8) for i in range(frames)]


def write_media(
    path: Path,
    frames: list[np.ndarray] | None = None,
    sound: np.ndarray | None = None,
    fps: int = 10,
    rate: int = 16_000,
    codec: str = "mpeg4",
    times: list[int] | None = None,
    sound_codec: str = "aac",
) -> Path:
    """`times`: presentation time of each frame in units of 1/fps (default: one after the other)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as out:
        picture = voice = None
        if frames is not None:
            picture = out.add_stream(codec, rate=fps, options={"qscale": "2"})
            picture.height, picture.width = frames[0].shape[:2]
            picture.pix_fmt = "yuv420p"
        if sound is not None:
            voice = out.add_stream(sound_codec, rate=rate, layout="stereo" if sound.shape[1] == 2 else "mono")
        for number, image in enumerate(frames or []):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = times[number] if times else number
            frame.time_base = Fraction(1, fps)
            out.mux(picture.encode(frame))
        if picture:
            out.mux(picture.encode(None))
        if voice:
            block = av.AudioFrame.from_ndarray(sound.reshape(1, -1), format="s16", layout=voice.layout.name)
            block.sample_rate = rate
            out.mux(voice.encode(block))
            out.mux(voice.encode(None))
    return path


def turn_by_90(path: Path) -> None:
    """Set the rotation in an mp4's track header, as a phone held upright does."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40  # the matrix of a version 0 header
    data[at : at + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


def damage(path: Path, box: bytes, share: float, seed: int = 0) -> None:
    """Overwrite a share of the bytes of one part of an mp4, the rest stays as it is."""
    data = bytearray(path.read_bytes())
    start = data.index(box) + 4
    length = struct.unpack(">I", data[start - 8 : start - 4])[0] - 8
    rng = np.random.default_rng(seed)
    for at in rng.choice(length, int(length * share), replace=False):
        data[start + at] = rng.integers(256)
    path.write_bytes(data)
