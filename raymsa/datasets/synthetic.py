"""Clips that raymsa makes for itself, for the demo and the tests: the score is said, sounded and shown.

Each modality carries the score with its own noise, so each is informative and imperfect, and together they are better.
Axes: F frames, H height, W width, C colour channels (RGB), S audio samples.
"""

import csv
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import av
import numpy as np
from pydantic import Field

from raymsa.clip import SAMPLE_RATE, SPLITS, RawClip, Reject
from raymsa.datasets.base import Layout
from raymsa.datasets.folder import Listing
from raymsa.datasets.mmsa import KEYS, LABEL_FILE, MEDIA_DIR, ClipFiles, label_rows, video_of
from raymsa.datasets.textfile import table_rows
from raymsa.errors import DataError
from raymsa.target import Regression

MADE_FILE = "made.json"  # the settings a folder was made with; it is there when the folder is whole
SIDE = 64  # pixels of the square picture
FRAMES_PER_S = 8
CLIPS_PER_VIDEO = 4
NOISE_SD = 0.25  # of each modality, on the scale -1 .. 1; three of them together are left with 0.14
OPINIONS = ("awful", "terrible", "bad", "weak", "average", "decent", "good", "great", "wonderful")  # worst to best
THINGS = ("film", "story", "acting", "music", "ending", "script", "cast", "picture")


class Synthetic(Layout):
    """Clips made on the spot, in the MOSI layout: score carried by words, pitch and loudness, and a drawn face."""

    expects: ClassVar[str] = "what `prepare` makes there by itself"

    kind: Literal["synthetic"] = "synthetic"
    counts: dict[Literal["train", "valid", "test"], int] = Field(
        {"train": 192, "valid": 48, "test": 64}, description="clips per split"
    )
    seed: int = Field(7, ge=0, description="of everything random; the same seed makes the same clips")
    seconds: float = Field(1.0, ge=0.25, le=60, description="length of each clip in seconds")

    def make(self, raw: Path) -> None:
        """Write label.csv and Raw/ into `raw`, all at once; nothing when they are there already.

        Raises DataError when the folder holds something else: another seed's clips, or anybody's files.
        """
        if _is_made(raw, self._settings()):
            return
        part = raw.with_name(f"{raw.name}.making-{os.getpid()}")
        shutil.rmtree(part, ignore_errors=True)
        try:
            self._write(part)
            _publish(part, raw, self._settings())
        finally:
            shutil.rmtree(part, ignore_errors=True)

    def video_of(self, clip_id: str) -> str | None:
        """The part before `$_$`."""
        return video_of(clip_id)

    def clips(self, raw: Path) -> Iterator[RawClip | Reject]:
        """Every row of label.csv, in file order. Raises DataError when it was not made."""
        return self.checked(label_rows(table_rows(raw / LABEL_FILE, KEYS), ClipFiles(Listing(raw), MEDIA_DIR)))

    def _settings(self) -> dict[str, object]:
        return {**self.model_dump(mode="json", include={"counts", "seed", "seconds"}), "range": list(self._range())}

    def _range(self) -> tuple[float, float]:
        """Of the scores; a classification takes their `annotation` (Negative, Neutral, Positive)."""
        return (self.task.low, self.task.high) if isinstance(self.task, Regression) else (-3.0, 3.0)

    def _write(self, folder: Path) -> None:
        rng = np.random.default_rng(self.seed)
        rows = list(self._rows(rng))
        folder.mkdir(parents=True)
        for row in rows:
            path = folder / "Raw" / row.video_id / f"{row.clip_id}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            _write_clip(path, row.strength, self.seconds, rng)
        _write_labels(folder / LABEL_FILE, rows)
        (folder / MADE_FILE).write_text(json.dumps(self._settings()))

    def _rows(self, rng: np.random.Generator) -> Iterator["_Made"]:
        low, high = self._range()
        middle, half = (low + high) / 2, (high - low) / 2
        for split in SPLITS:
            for number in range(self.counts.get(split, 0)):  # type: ignore[call-overload]
                strength = float(rng.uniform(-1, 1))
                label = round(middle + half * strength, 2)
                # A leading dash and leading zeros, as real ids have them.
                video = f"-{split}{number // CLIPS_PER_VIDEO:04d}"
                clip, words = f"{number % CLIPS_PER_VIDEO:04d}", _sentence(strength, rng)
                yield _Made(video, clip, words, label, _annotation(strength), split, strength)


class _Made(NamedTuple):
    video_id: str
    clip_id: str
    text: str
    label: float
    annotation: str
    mode: str
    strength: float  # the label on the scale -1 .. 1


def _annotation(strength: float) -> str:
    """Thirds of the scale, so that the three classes are equally frequent."""
    return ("Negative", "Neutral", "Positive")[min(2, int((strength + 1) * 1.5))]


def _is_made(raw: Path, settings: dict[str, object]) -> bool:
    if not raw.exists() or not any(raw.iterdir()):
        return False
    if not (raw / MADE_FILE).exists():
        raise DataError(f"{raw}: holds files that raymsa did not make; give an empty or new folder with --raw DIR")
    there = json.loads((raw / MADE_FILE).read_text())
    if there != settings:
        raise DataError(f"{raw}: was made with {there}, now asked for {settings}; delete it or give another --raw DIR")
    return True


def _publish(part: Path, raw: Path, settings: dict[str, object]) -> None:
    try:
        part.rename(raw)  # onto nothing or onto an empty folder
    except OSError:
        if not _is_made(raw, settings):  # somebody else made the same clips meanwhile
            raise


def _write_labels(path: Path, rows: list[_Made]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(_Made._fields[:-1])
        writer.writerows(row[:-1] for row in rows)


def _noisy(strength: float, rng: np.random.Generator) -> float:
    return float(np.clip(strength + rng.normal(0, NOISE_SD), -1, 1))


def _sentence(strength: float, rng: np.random.Generator) -> str:
    """Two opinions about two things; each word is drawn around the score."""
    first, second = rng.choice(THINGS, size=2, replace=False)
    a, b = (_opinion(_noisy(strength, rng)) for _ in range(2))
    return f"the {first} was {a} and the {second} was {b}"


def _opinion(strength: float) -> str:
    return OPINIONS[round((strength + 1) / 2 * (len(OPINIONS) - 1))]


def _tone(strength: float, seconds: float, rng: np.random.Generator) -> np.ndarray:
    """S int16: the better the score, the higher (140 to 560 Hz) and louder the tone; some hiss over it."""
    time_S = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    pitch_hz = 280 * 2**strength
    swing_S = 0.02 * np.sin(2 * np.pi * 5 * time_S + rng.uniform(0, 6))
    phase_S = 2 * np.pi * pitch_hz * (time_S + swing_S / 5)
    wave_S = sum(np.sin(k * phase_S) / k for k in (1, 2, 3)) * (0.25 + 0.15 * strength)
    noisy_S = wave_S + rng.normal(0, 0.01, len(time_S))
    return (np.clip(noisy_S, -1, 1) * 32767).astype(np.int16)


def _face(strength: float, rng: np.random.Generator) -> np.ndarray:
    """HWC uint8: a face on a ground; the better the score, the brighter the ground and the more the mouth smiles."""
    y, x = np.mgrid[0:SIDE, 0:SIDE]
    at_y, at_x = SIDE / 2 + rng.uniform(-3, 3, 2)
    image_HWC = np.empty((SIDE, SIDE, 3))
    image_HWC[:] = 110 + 90 * strength + rng.uniform(-10, 10, 3)
    image_HWC[(y - at_y) ** 2 + (x - at_x) ** 2 < 24**2] = (225, 180, 140)
    for side in (-8, 8):
        image_HWC[(y - at_y + 8) ** 2 + (x - at_x - side) ** 2 < 9] = (30, 30, 60)
    bend = strength * 8 * (0.5 - ((x - at_x) / 12) ** 2)  # a parabola: corners up for a smile
    image_HWC[(np.abs(y - at_y - 10 - bend) < 1.8) & (np.abs(x - at_x) < 12)] = (150, 20, 30)
    return np.clip(image_HWC, 0, 255).astype(np.uint8)


def _write_clip(path: Path, strength: float, seconds: float, rng: np.random.Generator) -> None:
    face_HWC, tone_S = _face(_noisy(strength, rng), rng), _tone(_noisy(strength, rng), seconds, rng)
    with av.open(str(path), "w") as out:
        picture = out.add_stream("mpeg4", rate=FRAMES_PER_S, options={"qscale": "4"})
        picture.width, picture.height, picture.pix_fmt = SIDE, SIDE, "yuv420p"
        sound = out.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
        for _ in range(round(seconds * FRAMES_PER_S)):
            moved_HWC = np.roll(face_HWC, int(rng.integers(-1, 2)), axis=1)
            out.mux(picture.encode(av.VideoFrame.from_ndarray(moved_HWC, format="rgb24")))
        out.mux(picture.encode(None))
        block = av.AudioFrame.from_ndarray(tone_S[None], format="s16", layout="mono")
        block.sample_rate = SAMPLE_RATE
        out.mux(sound.encode(block))
        out.mux(sound.encode(None))
