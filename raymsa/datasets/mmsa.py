"""label.csv as most code of the field has it (MMSA's convention): MOSI, MOSEI, CH-SIMS and CH-SIMS v2 share it."""

from collections.abc import Iterator
from typing import Protocol

from raymsa.clip import Reject
from raymsa.datasets.base import Row
from raymsa.datasets.folder import Listing, leaves
from raymsa.datasets.textfile import Fields

LABEL_FILE = "label.csv"
MEDIA_DIR = "Raw"
KEYS = ("video_id", "clip_id", "text", "label", "mode")
COLUMNS = ("video_id", "clip_id", "text", "label", "label_T", "label_A", "label_V", "annotation", "mode")
JOINT = "$_$"  # between video and clip in a clip's id
TARGETS = ("label", "label_T", "label_A", "label_V", "annotation")


class Words(Protocol):
    """Where the words of a clip stand that label.csv has none for."""

    def of(self, video: str, clip: str) -> str | None:
        """The words; None where nothing says what they are."""


class ClipFiles:
    """Finds <folder>/<video_id>/<clip_id>.* or <folder>/<video_id>_<clip_id>.*; without a folder there are none."""

    def __init__(self, listing: Listing, folder: str | None) -> None:
        self._listing = listing
        self._folder = folder

    def of(self, video: str, clip: str) -> str:
        """The path of the clip's file; where it should be when it is not there; empty without a folder."""
        if self._folder is None:
            return ""
        if leaves(video, clip):
            return f"{self._folder}/../{video}/{clip}"  # refused by the rule that every path is held to
        nested, flat = f"{video}/{clip}", f"{video}_{clip}"
        found = self._listing.clip(self._folder, nested) or self._listing.clip(self._folder, flat)
        missing = nested if self._folder.rpartition("/")[2].casefold() not in ("segmented", "combined") else flat
        return found or f"{self._folder}/{missing}.mp4"


def video_of(clip_id: str) -> str | None:
    """The video in an id of `label_rows`."""
    return clip_id.rpartition(JOINT)[0] or None


def label_rows(
    table: Iterator[tuple[int, Fields | Reject]], files: ClipFiles, words: Words | None = None
) -> Iterator[Row | Reject]:
    """Rows of label.csv; ids stay text (`-3g5y` and `0001` are ids), `id` is `video_id$_$clip_id`."""
    for number, fields in table:
        yield fields if isinstance(fields, Reject) else _row(number, fields, files, words)


def _row(number: int, fields: Fields, files: ClipFiles, words: Words | None) -> Row | Reject:
    video, clip = fields["video_id"].strip(), fields["clip_id"].strip()
    if not video or not clip:
        return Reject(f"line {number}", "", "video_id or clip_id is empty")
    name, media, text = f"{video}{JOINT}{clip}", files.of(video, clip), fields.get("text")
    if words and not (text or "").strip():
        said = words.of(video, clip)
        if said is None and text is None:
            where = (
                f"neither {LABEL_FILE} nor the transcript of {video!r}"  # quoted, so that such rows are counted as one
            )
            return Reject(name, media, f"no words: {where} has clip {clip!r}")
        text = said or ""
    targets = {name: fields[name] for name in TARGETS if name in fields}
    return Row(name, video, text or "", targets, fields["mode"], media, _order(clip))


def _order(clip: str) -> float | None:
    """A clip's number, or its start in seconds: some copies are numbered by it."""
    try:
        return float(clip)
    except ValueError:
        return None
