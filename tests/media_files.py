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
    options: dict[str, str] | None = None,
) -> Path:
    """`times`: presentation time of each frame in units of 1/fps (default: one after the other)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as out:
        picture = voice = None
        if frames is not None:
            picture = out.add_stream(codec, rate=fps, options={"qscale": "2", **(options or {})})
            picture.height, picture.width = frames[0].shape[:2]
            picture.pix_fmt = "yuv420p"
        if sound is not None:
            voice = out.add_stream(sound_codec, rate=rate, layout={1: "mono", 2: "stereo", 6: "5.1"}[sound.shape[1]])
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


def stop_the_clock(path: Path) -> None:
    """Set every frame's duration in an mp4 to 0: the file says 0 frames per second."""
    data = bytearray(path.read_bytes())
    at = data.index(b"stts") + 8
    entries = struct.unpack(">I", data[at : at + 4])[0]
    for entry in range(entries):
        data[at + 8 + 8 * entry : at + 12 + 8 * entry] = bytes(4)
    path.write_bytes(data)


def slow_clip(path: Path) -> Path:
    """About half a second of decoding, from one key frame on: time for a test to catch the decoder at it."""
    noise = np.random.default_rng(0).integers(0, 255, (12, 960, 1280, 3)).astype(np.uint8)
    return write_media(path, list(noise), codec="mpeg2video", fps=25, options={"g": "300"})


def poisoned(folder: Path) -> dict[str, str]:
    """One file of every kind that has ever cost somebody an evening; the words that name each, empty: kept whole."""
    ramp, sound = grey_ramp(20), tone(2.0)
    write_media(folder / "truncated.mp4", ramp, sound)
    (folder / "truncated.mp4").write_bytes((folder / "truncated.mp4").read_bytes()[:3000])
    (folder / "zero.mp4").touch()
    (folder / "text.mp4").write_text("<html>404 not found</html>\n" * 50)
    (folder / "folder.mp4").mkdir()
    write_media(folder / "renamed.wav", sound=sound, sound_codec="pcm_s16le").rename(folder / "renamed.mp4")
    write_media(folder / "silent.mp4", ramp)
    write_media(folder / "blind.mp4", sound=sound)
    stop_the_clock(write_media(folder / "0fps.mp4", ramp))
    turn_by_90(write_media(folder / "rotated.mp4", ramp, sound))
    write_media(folder / "8khz.mp4", ramp, tone(2.0, rate=8000), rate=8000)
    write_media(folder / "surround.mp4", ramp, tone(2.0, channels=6))
    write_media(folder / "short.mp4", grey_ramp(1), tone(0.1))
    write_media(folder / "long.mkv", [ramp[0]] * 1200, tone(1200, rate=8000), fps=1, rate=8000, sound_codec="pcm_s16le")
    slow_clip(folder / "hangs.mpg")
    slow_clip(folder / "crashes.mpg")
    return {
        "truncated.mp4": "not a media file",
        "zero.mp4": "empty file (0 bytes)",
        "text.mp4": "not a media file",
        "folder.mp4": "not a file",
        "gone.mp4": "missing file",
        "renamed.mp4": "has no picture",
        "silent.mp4": "has no sound",
        "blind.mp4": "has no picture",
        "0fps.mp4": "has no sound",
        "rotated.mp4": "",
        "8khz.mp4": "",
        "surround.mp4": "",
        "short.mp4": "",
        "long.mkv": "sound is cut at 300 s",
        "hangs.mpg": "decoding took longer than",
        "crashes.mpg": "the decoder crashed (signal 11, SIGSEGV)",
    }
