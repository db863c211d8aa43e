"""Clips for tests that need no files: noise for sound and picture."""

import numpy as np

from raymsa.clip import Clip


def clip(
    name: str,
    text: str,
    frames: int,
    seconds: float,
    size: tuple[int, int] = (56, 84),
    label: float = 1.0,
    sound_s: float | None = None,
    previous: tuple[str, ...] = (),
) -> Clip:
    """`seconds` is the medium's length; its sound is as long, or `sound_s`."""
    sound_s = seconds if sound_s is None else sound_s
    random = np.random.default_rng(len(name) + frames)
    return Clip(
        id=name,
        video_id="v",
        text=text,
        label=label,
        split="test",
        seconds=seconds,
        frames_FHWC=random.integers(0, 255, (frames, *size, 3), dtype=np.uint8) if frames else None,
        audio_S=(random.normal(0, 3000, int(sound_s * 16000))).astype(np.int16) if sound_s else None,
        previous=previous,
    )


MIXED = [
    clip("both", "I REALLY LIKED THIS MOVIE", 6, 2.03, label=2.4),
    clip("odd", "it's ok, 很好! 3.5 stars", 5, 1.37, (28, 56), label=0.0),
    clip("one frame", "", 1, 0.6, label=-1.75),
    clip("deaf and blind", "no sound here", 0, 0.0, label=-3.0),
    clip("long", "and so on", 16, 7.001, (112, 56), label=0.2),
]
