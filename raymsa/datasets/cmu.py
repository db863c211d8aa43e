"""MOSI and MOSEI: label.csv, and the clips in MMSA's folders, in the official ones, or in a folder of another name."""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

from pydantic import Field

from raymsa.clip import RawClip, Reject
from raymsa.datasets.base import Layout
from raymsa.datasets.folder import Listing, leaves, one_of
from raymsa.datasets.mmsa import KEYS, LABEL_FILE, MEDIA_DIR, ClipFiles, Words, label_rows, video_of
from raymsa.datasets.textfile import Fields, read_text, table_rows

# What `auto` looks for, in any case of letters: one folder of clips, and only when there is none, one of sound alone.
CLIPS = ("Raw", "Raw/Video/Segmented", "Video/Segmented", "Raw/Videos/Segmented/Combined", "Videos/Segmented/Combined")
SOUND = ("Raw/Audio/WAV_16000/Segmented", "Audio/WAV_16000/Segmented", "wav")
OFFICIAL = tuple(f"{raw}{part}" for raw in ("Raw/", "") for part in ("Video", "Videos", "Audio", "Transcript"))
TRANSCRIPTS = tuple(f"{raw}Transcript/Segmented{end}" for raw in ("Raw/", "") for end in ("/Combined", ""))
MOSI_LINE = re.compile(r"\s*(?P<number>\d{1,9})_DELIM_(?P<text>.*)")
MOSEI_LINE = re.compile(r".*?___(?P<number>\d{1,9})___(?P<start>[\d.]+)___[\d.]+___(?P<text>.*)")
SAME_START_S = 0.001  # copies that name a clip by its start keep three decimals or more


class Cmu(Layout):
    """MOSI, MOSEI: label.csv and Raw/<video_id>/<clip_id>.mp4, or the official folders, with their transcripts."""

    expects: ClassVar[str] = (
        f"{LABEL_FILE} (video_id, clip_id, text, label, mode) and Raw/<video_id>/<clip_id>.mp4, or the official "
        "Video/Segmented/<video_id>_<clip_id>.mp4 with Transcript/Segmented"
    )

    kind: Literal["cmu"] = "cmu"
    media_dir: str | None = Field(
        "auto",
        description="folder inside the raw folder with <video_id>/<clip_id>.* or <video_id>_<clip_id>.*; auto takes "
        "Raw, Video/Segmented or, where there is sound alone, wav or Audio/WAV_16000/Segmented; null takes the words "
        "alone and looks for no clips",
    )
    transcripts: str | None = Field(
        "auto",
        description="folder with the official <video_id>.annotprocessed or .txt, read where label.csv has no text; "
        "auto takes Transcript/Segmented when it is there; null takes label.csv alone",
    )

    def video_of(self, clip_id: str) -> str | None:
        """The part before `$_$`."""
        return video_of(clip_id)

    def clips(self, raw: Path) -> Iterator[RawClip | Reject]:
        """Every row of label.csv, in file order.

        Raises DataError when the file or a column is missing, or when several folders may hold the clips.
        """
        listing = Listing(raw)
        folder = _transcripts(listing) if self.transcripts == "auto" else self.transcripts
        words = Transcripts(raw, listing, folder) if folder else None
        files = ClipFiles(listing, _clips(listing) if self.media_dir == "auto" else self.media_dir)
        return self.checked(label_rows(_table(raw, words), files, words))


class Transcripts:
    """The official transcripts, one file per video, each read once and only when asked for."""

    def __init__(self, raw: Path, listing: Listing, folder: str) -> None:
        self._raw = raw
        self._listing = listing
        self._folder = folder
        self._lines: dict[str, list[Line]] = {}

    def of(self, video: str, clip: str) -> str | None:
        """The words of a clip, known by its number or by its start in seconds."""
        if video not in self._lines:
            self._lines[video] = self._read(video)
        lines = self._lines[video]
        numbered = [line.text for line in lines if line.has_number(clip)]
        return next(iter(numbered or [line.text for line in lines if line.starts_at(clip)]), None)

    def _read(self, video: str) -> "list[Line]":
        known = [] if leaves(video) else [f"{video}.annotprocessed", f"{video}.txt"]
        for name in known:
            if name in self._listing.names(self._folder):
                text = read_text(self._raw / self._folder / name, ("utf-8-sig", "cp1252", "latin-1"))
                return [line for line in map(parse_line, text.split("\n")) if line]
        return []


class Line(NamedTuple):
    """One clip's line of a transcript. MOSI's have no start."""

    number: int
    start_s: float | None
    text: str

    def has_number(self, clip: str) -> bool:
        """Whether the clip is named by this line's number: `0003` is 3."""
        return clip.isdecimal() and clip.lstrip("0") == str(self.number or "")

    def starts_at(self, clip: str) -> bool:
        """Whether the clip is named by this line's start."""
        try:
            return self.start_s is not None and math.isclose(self.start_s, float(clip), abs_tol=SAME_START_S)
        except ValueError:
            return False


def parse_line(line: str) -> Line | None:
    """`3_DELIM_words` (MOSI) or `video___3___start___end___words` (MOSEI); None for a line that is neither."""
    mosei = MOSEI_LINE.fullmatch(line.strip())
    if mosei:
        try:
            return Line(int(mosei["number"]), float(mosei["start"]), mosei["text"].strip())
        except ValueError:  # 1.2.3
            return None
    mosi = MOSI_LINE.fullmatch(line.strip())
    return Line(int(mosi["number"]), None, mosi["text"].strip()) if mosi else None


def _table(raw: Path, words: Words | None) -> Iterator[tuple[int, Fields | Reject]]:
    return table_rows(raw / LABEL_FILE, tuple(key for key in KEYS if key != "text" or not words))


def _clips(listing: Listing) -> str:
    """The folder of the clips; MMSA's where there is none, so that every row says what it misses."""
    official = listing.folders(*OFFICIAL)
    for paths in (CLIPS, SOUND):
        found = [path for path in listing.folders(*paths) if not _holds(path, official)]
        folder = one_of(found, listing.raw, "media_dir")
        if folder:
            return folder
    return MEDIA_DIR


def _holds(path: str, others: list[str]) -> bool:
    return any(other.startswith(f"{path}/") for other in others)


def _transcripts(listing: Listing) -> str | None:
    return one_of(listing.folders(*TRANSCRIPTS), listing.raw, "transcripts")
