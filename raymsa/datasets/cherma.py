"""CHERMA: Chinese film and television clips; one of seven emotions for the clip, and one for each modality alone.

Its authors hand out extracted features only, with train.json, dev.json and test.json: a list of objects with
`audio_file`, `video_file` and the labels `txt_label`, `audio_label`, `visual_label`, `video_label` (the clip's), as
their reading code shows (sunjunaimer/LFMIM, data_prepare.py). How the clips themselves are laid out is not published.
Assumed here, and easy to bring about: the files named by `video_file` (or `audio_file`, where there is no picture)
lie in a folder video/, clips/ or audio/, or in train/, dev/ and test/ inside it; the words stand under `text`.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any, ClassVar, Literal

from pydantic import Field

from raymsa.clip import RawClip, Reject
from raymsa.datasets.base import SPLIT_SPELLINGS, Layout, Row
from raymsa.datasets.folder import ENDINGS, Listing, leaves
from raymsa.datasets.textfile import CHINESE, as_text, json_list, table_rows
from raymsa.errors import DataError
from raymsa.target import Classification, Language, Task

EMOTIONS = ("愤怒", "厌恶", "恐惧", "高兴", "平静", "悲伤", "惊奇")
TARGETS = {"label": "video_label", "label_T": "txt_label", "label_A": "audio_label", "label_V": "visual_label"}
FILES = ("video_file", "audio_file")
FOLDERS = ("video", "videos", "visual", "clips", "audio", "")
STAGES = ("train", "dev", "valid", "val", "test")


class Cherma(Layout):
    """CHERMA: train, dev and test .json or .csv with a label per clip and per modality, and a folder of clips."""

    expects: ClassVar[str] = (
        "train, dev and test .json or .csv (video_file or audio_file, video_label, text) and the clips in video/, "
        "or in video/train, video/dev and video/test"
    )

    kind: Literal["cherma"] = "cherma"
    task: Task = Field(
        default_factory=lambda: Classification(classes=EMOTIONS),
        description="what is predicted; label_T, label_A and label_V are the emotions of one modality alone",
    )
    language: Language = Field("zh", description="language of the words, and of the prompt where none is given: en, zh")
    text: str | None = Field(
        "text", description="name of the column or JSON field with what is said; null takes sound and picture alone"
    )

    def clips(self, raw: Path) -> Iterator[RawClip | Reject]:
        """Every row of the label files that are there: train, dev, test. Raises DataError when there is none."""
        listing = Listing(raw)
        names = (f"{stage}{ending}" for stage in STAGES for ending in (".json", ".csv"))
        there = [name for name in names if name in listing.names("")]
        if not there:
            raise DataError(f"{raw}: no label file; train.json, dev.json and test.json (or .csv) belong there")
        _one_per_split(raw, there)
        return self.checked(row for name in there for row in self._rows(listing, name))

    def _rows(self, listing: Listing, name: str) -> Iterator[Row | Reject]:
        path, stage = listing.raw / name, PurePath(name).stem
        read = json_list(path, CHINESE) if name.endswith(".json") else table_rows(path, ("video_label",), ",", CHINESE)
        for number, fields in read:
            if isinstance(fields, Reject):
                yield replace(fields, id=f"{name} {fields.id}")
            else:
                yield self._row(listing, stage, f"{name} {number}", fields)

    def _row(self, listing: Listing, stage: str, where: str, fields: Any) -> Row | Reject:
        files = [file for file in (as_text(fields.get(key)).strip() for key in FILES) if file]
        if not files:
            return Reject(where, "", f"neither {' nor '.join(FILES)} says which clip it is")
        if self.text is not None and self.text not in fields:
            return Reject(where, files[0], f"no field {self.text} with the words; name it with `text`, or give null")
        clip = f"{stage}_{_stem(files[0])}"
        targets = {name: as_text(fields.get(key)) for name, key in TARGETS.items()}
        return Row(
            clip,
            clip,
            as_text(fields.get(self.text)) if self.text else "",
            targets,
            stage,
            _media(listing, stage, files),
        )


def _one_per_split(raw: Path, there: list[str]) -> None:
    for split in set(SPLIT_SPELLINGS.values()):
        same = [name for name in there if SPLIT_SPELLINGS[PurePath(name).stem] == split]
        if len(same) > 1:
            raise DataError(f"{raw}: {' and '.join(same)} are both the labels of {split}; leave one there")


def _media(listing: Listing, stage: str, files: list[str]) -> str:
    """The clip's file, with whatever ending it has; the sound alone where there is no picture."""
    if leaves(*files):
        return f"../{files[0]}"  # refused by the rule that every path is held to
    stems = [_stem(file) for file in files]
    for folder in FOLDERS:
        for place in (f"{folder}/{stage}".strip("/"), folder):
            found = next(filter(None, (listing.clip(place, stem) for stem in stems)), None)
            if found:
                return found
    return f"{FOLDERS[0]}/{stage}/{stems[0]}.mp4"


def _stem(file: str) -> str:
    """Without its ending, if it has one of a media file: names with dots in them are kept whole."""
    stem, dot, ending = file.rpartition(".")
    return stem if dot and f".{ending.lower()}" in ENDINGS else file
