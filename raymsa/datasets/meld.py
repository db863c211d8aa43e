"""MELD: dialogues of a television series; an emotion and a sentiment for each utterance."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

from pydantic import Field

from raymsa.clip import RawClip, Reject
from raymsa.datasets.base import Layout, Row
from raymsa.datasets.folder import Listing
from raymsa.datasets.textfile import Fields, table_rows
from raymsa.errors import DataError
from raymsa.target import Classification, Task

EMOTIONS = ("neutral", "surprise", "fear", "sadness", "joy", "disgust", "anger")
COLUMNS = ("Utterance", "Emotion", "Sentiment", "Dialogue_ID", "Utterance_ID")
CORRECTED = "final_videos_test"  # before the name of clips of the test split that were cut again
TIME = re.compile(r"(\d{1,2}):(\d{1,2}):(\d{1,2})[,.](\d{1,3})")
TIMES = {"start_s": "StartTime", "end_s": "EndTime"}
# cp1252 read as Latin-1 leaves control characters; UTF-8 read as cp1252 leaves `â€™`. Both are in copies of the files.
WINDOWS = {code: bytes([code]).decode("cp1252", "ignore") or chr(code) for code in range(0x80, 0xA0)}
GARBLED = {"".join(WINDOWS.get(byte, chr(byte)) for byte in meant.encode()): meant for meant in "‘’“”…–—"}
PLAIN = {
    **dict.fromkeys(map(ord, "‘’‚‛′"), "'"),
    **dict.fromkeys(map(ord, "“”„‟″"), '"'),
    **dict.fromkeys(range(0x80, 0xA0), ""),  # what even cp1252 has no character for
}


class _Part(NamedTuple):
    """One split: its label file, and its folder of clips under the names it is met with, the published one first."""

    split: str
    labels: str
    folders: tuple[str, ...]


PARTS = (
    _Part("train", "train_sent_emo.csv", ("train_splits", "train")),
    _Part("dev", "dev_sent_emo.csv", ("dev_splits_complete", "dev_splits", "dev")),
    _Part("test", "test_sent_emo.csv", ("output_repeated_splits_test", "test_splits", "test")),
)


class Meld(Layout):
    """MELD: train_, dev_, test_sent_emo.csv and dia<D>_utt<U>.mp4 in the three folders of the published archive."""

    expects: ClassVar[str] = ", ".join(f"{p.labels} with {p.folders[0]}/" for p in PARTS) + "; in it or up to two down"
    main_target: ClassVar[str] = "emotion"

    kind: Literal["meld"] = "meld"
    task: Task = Field(
        default_factory=lambda: Classification(classes=EMOTIONS),
        description="what is predicted: the target is emotion or sentiment (negative, neutral, positive)",
    )

    def video_of(self, clip_id: str) -> str | None:
        """The dialogue: the part before `_utt`."""
        return clip_id.rpartition("_utt")[0] or None

    def clips(self, raw: Path) -> Iterator[RawClip | Reject]:
        """Every row of the label files that are there, train, dev, test. A dialogue's order is that of its utterances.

        Raises DataError when none of the three is there, one is there twice, or a column is missing.
        """
        listing = Listing(raw)
        labels = {part: path for part in PARTS if (path := _only(listing, part.labels))}
        if not labels:
            raise DataError(f"{raw}: no label file; one of {', '.join(part.labels for part in PARTS)} belongs there")
        return self.checked(row for part, path in labels.items() for row in _rows(listing, part, raw / path))


def plain_words(text: str) -> str:
    """The text with plain quotes, whatever encoding it went through on its way."""
    text = text.translate(WINDOWS)
    for garbled, meant in GARBLED.items():
        text = text.replace(garbled, meant)
    return text.translate(PLAIN)


def parse_time(text: str) -> float | None:
    """Seconds of `00:14:38,127`; None for anything else: a clip is not lost for a time that nobody needs."""
    match = TIME.fullmatch(text.strip())
    if not match:
        return None
    hours, minutes, seconds, fraction = match.groups()
    return int(hours) * 3600 + int(minutes) * 60 + float(f"{seconds}.{fraction}")


def _only(listing: Listing, name: str) -> str | None:
    found = listing.find(name)
    if len(found) > 1:
        raise DataError(f"{listing.raw}: {name} is there twice ({', '.join(found)}); point `raw` at one of the folders")
    return found[0] if found else None


def _rows(listing: Listing, part: _Part, path: Path) -> Iterator[Row | Reject]:
    folder = _clip_folder(listing, part)
    for _, fields in table_rows(path, COLUMNS, encodings=("utf-8-sig", "latin-1")):
        if isinstance(fields, Reject):
            yield replace(fields, id=f"{part.labels} {fields.id}")
        else:
            yield _row(listing, part, folder, fields)


def _clip_folder(listing: Listing, part: _Part) -> str:
    """Where the clips of a split lie: people unpack the archive into a folder `train` of its own, or call it so."""
    for name in part.folders:
        for path in listing.find(name):
            for place in (path, f"{path}/{name}"):
                if any(file.startswith(("dia", CORRECTED)) for file in listing.names(place)):
                    return place
    return part.folders[0]


def _row(listing: Listing, part: _Part, folder: str, fields: Fields) -> Row:
    dialogue, utterance = fields["Dialogue_ID"].strip(), fields["Utterance_ID"].strip()
    clip = f"dia{dialogue}_utt{utterance}"
    corrected = listing.clip(folder, CORRECTED + clip) if part.split == "test" else None
    times = {name: parse_time(fields.get(column, "")) for name, column in TIMES.items()}
    return Row(
        id=f"{part.split}_{clip}",
        video_id=f"{part.split}_dia{dialogue}",  # dialogues are counted from 0 in every split
        text=plain_words(fields["Utterance"]),
        targets={
            "emotion": fields["Emotion"].strip().lower(),
            "sentiment": fields["Sentiment"].strip().lower(),
            "speaker": plain_words(fields.get("Speaker", "")),
            **{name: f"{seconds:.3f}" for name, seconds in times.items() if seconds is not None},
        },
        split=part.split,
        media=corrected or listing.clip(folder, clip) or f"{folder}/{clip}.mp4",
        order=float(utterance) if utterance.isdecimal() else None,
    )
