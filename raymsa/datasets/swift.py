"""ms-swift's JSON lines, in and out: messages with <video> and <audio> in them, lists of files, and a `label`.

    {"messages": [{"role": "user", "content": "<video>words"}], "videos": ["/data/1.mp4"], "label": 0.8}

ms-swift knows neither ids nor splits: here a line is named after its file and number, and its split is that of the
file. Fields that ms-swift leaves alone (id, video_id, split, order, text, targets) are taken where they are there;
`export` writes them, so that what it wrote is read back as it was.
Format: ms-swift's documentation, "Custom dataset", its parts on sequence classification and on multimodal data.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath
from typing import Any, ClassVar, Literal

from pydantic import Field

from raymsa.clip import SPLITS, RawClip, Reject
from raymsa.datasets.base import SPLIT_SPELLINGS, Layout, Row
from raymsa.datasets.folder import SOUNDS, Listing
from raymsa.datasets.textfile import as_text, json_lines
from raymsa.errors import DataError
from raymsa.target import Classification, Regression

PLACES = re.compile(r"<(?:video|audio|image)>")
FILE_NAMES = {"train": "train.jsonl", "valid": "val.jsonl", "test": "test.jsonl"}  # what `export` writes


class Swift(Layout):
    """ms-swift's JSON lines with a `label`: train.jsonl, val.jsonl and test.jsonl, and the files that they name."""

    expects: ClassVar[str] = "train.jsonl, val.jsonl or test.jsonl (messages, label) and the media that they name"

    kind: Literal["swift"] = "swift"
    files: tuple[str, ...] = Field(
        (),
        description="JSONL files inside the raw folder; none takes train, val (valid, dev, validation) and test.jsonl; "
        "the lines of a file with another name need a field `split`",
    )

    def clips(self, raw: Path) -> Iterator[RawClip | Reject]:
        """Every line of the files, in their order. Raises DataError when there is none or one cannot be read."""
        names = self.files or _named_after_splits(raw)
        return self.checked(row for name in names for row in self._rows(raw, name))

    def _rows(self, raw: Path, name: str) -> Iterator[Row | Reject]:
        split = PurePath(name).stem if PurePath(name).stem in SPLIT_SPELLINGS else ""
        for number, line in json_lines(raw / name):
            where = f"{name} line {number}"
            if isinstance(line, Reject):
                yield Reject(where, "", line.reason)
                continue
            try:
                yield self._row(raw, where, split, line)
            except _Unusable as reason:
                yield Reject(as_text(line.get("id")) or where, "", str(reason))

    def _row(self, raw: Path, where: str, split: str, line: dict[str, Any]) -> Row:
        name = as_text(line.get("id")).strip() or where
        return Row(
            id=name,
            video_id=as_text(line.get("video_id")).strip() or name,
            text=_words(line),
            targets=self._targets(line),
            split=as_text(line.get("split")).strip() or split,
            media=_inside(raw, _medium(line)),
            order=_number(line.get("order")),
        )

    def _targets(self, line: dict[str, Any]) -> dict[str, str]:
        """All labels. `label` is the one that counts; it stays spelled as in `targets` where that means the same."""
        texts, label = _texts(line.get("targets")), self._label(line)
        return texts if self._mean_the_same(texts.get(self.target), label) else {**texts, self.target: label}

    def _mean_the_same(self, spelled: str | None, label: str) -> bool:
        try:
            return spelled is not None and self.task.label(spelled) == self.task.label(label)
        except ValueError:
            return False

    def _label(self, line: dict[str, Any]) -> str:
        """The label as text: for classes, the name of the one that a whole number counts from 0."""
        if "label" not in line:
            raise _Unusable("no field label")
        label = line["label"]
        if isinstance(label, list | dict | bool):
            raise _Unusable(f"label {label} is neither a number nor the name of a class")
        if isinstance(self.task, Classification) and label in range(len(self.task.classes)):
            return self.task.classes[int(label)]
        return as_text(label)


class _Unusable(Exception):
    """Why a line is no clip."""


def export(
    rows: Iterable[RawClip | Reject], task: Regression | Classification, raw: Path, out: Path, absolute: bool = True
) -> dict[str, int]:
    """Write clips as ms-swift's train.jsonl, val.jsonl and test.jsonl; returns how many went into each split.

    A score stays a number and a class becomes its number, as ms-swift wants them. Media paths are absolute, as it
    prefers them, or relative to `raw`. Rejects are left out. Raises DataError when such a file is there already.
    """
    lines: dict[str, list[str]] = {split: [] for split in SPLITS}
    for row in rows:
        if isinstance(row, RawClip):
            lines[row.split].append(json.dumps(_line(row, task, raw, absolute), ensure_ascii=False))
    paths = {split: out / FILE_NAMES[split] for split, written in lines.items() if written}
    there = [str(path) for path in paths.values() if path.exists()]
    if there:
        raise DataError(f"{', '.join(there)}: there already; delete it or give another folder")
    out.mkdir(parents=True, exist_ok=True)
    for split, path in paths.items():
        with path.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(f"{line}\n" for line in lines[split])
    return {split: len(written) for split, written in lines.items()}


def _line(clip: RawClip, task: Regression | Classification, raw: Path, absolute: bool) -> dict[str, Any]:
    places, media = "", {}
    if clip.media is not None:
        key, places = ("audios", "<audio>") if clip.media.suffix.lower() in SOUNDS else ("videos", "<video>")
        media = {key: [str(raw.absolute() / clip.media) if absolute else clip.media.as_posix()]}
    return {
        "messages": [{"role": "user", "content": places + clip.text}],
        **media,
        "label": int(clip.label) if isinstance(task, Classification) else clip.label,
        "id": clip.id,
        "video_id": clip.video_id,
        "split": clip.split,
        "order": clip.order,
        "text": clip.text,
        "targets": dict(clip.targets),
    }


def _named_after_splits(raw: Path) -> list[str]:
    """The files named after splits: train first, test last."""
    there = Listing(raw).names("")
    names = [f"{name}.jsonl" for split in SPLITS for name, meant in SPLIT_SPELLINGS.items() if meant == split]
    found = [name for name in names if name in there]
    if not found:
        raise DataError(f"{raw}: no {', '.join(FILE_NAMES.values())}; name your files with `files`")
    return found


def _words(line: dict[str, Any]) -> str:
    """What the user says, without the places of the media; `text`, where the line has it, is exactly that."""
    if isinstance(line.get("text"), str):
        return str(line["text"])
    messages = line.get("messages")
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise _Unusable("no field messages with a list of {role, content}")
    said = [message.get("content") for message in messages if message.get("role") == "user"]
    if not all(isinstance(content, str) for content in said):
        raise _Unusable("the content of a message is not text")
    return PLACES.sub("", "\n".join(map(str, said)))


def _medium(line: dict[str, Any]) -> str:
    """The clip's one file: the video with its own sound, or the sound where there is no video."""
    videos, audios = (_one(line, key) for key in ("videos", "audios"))
    if videos and audios and PurePath(videos).stem != PurePath(audios).stem:
        raise _Unusable(f"sound and picture are two files ({videos}, {audios}); put them into one")
    return videos or audios


def _one(line: dict[str, Any], key: str) -> str:
    paths = line.get(key) or []
    if isinstance(paths, str):
        paths = [paths]
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise _Unusable(f"{key} is not a list of paths")
    if len(paths) > 1:
        raise _Unusable(f"{len(paths)} {key}; a clip has one file")
    return str(paths[0]) if paths else ""


def _inside(raw: Path, path: str) -> str:
    """A path below the raw folder, relative to it; any other as it is: the rules say what is wrong with it."""
    root = f"{str(raw.absolute()).rstrip('/')}/"
    return path.removeprefix(root)


def _texts(targets: Any) -> dict[str, str]:
    return {str(name): as_text(value) for name, value in targets.items()} if isinstance(targets, dict) else {}


def _number(value: Any) -> float | None:
    given = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if given else None
