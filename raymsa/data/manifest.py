"""manifest.json of a folder of shards: what is in it, and, because it is written last, that all of it is there."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from raymsa.errors import DataError
from raymsa.place import fresh, reaching, states, write_at_once
from raymsa.target import Labels, Target, Task

FORMAT = 2  # of this file and of the shards' schema; a reader refuses another one
FILE = "manifest.json"
REJECTS = "rejects.csv"
NOTES = "notes.csv"
ROWS = "rows.csv"
# Settings that change nothing in the shards.
NOT_IN_SHARDS = ("raw", "shards", "published", "language", "prompt")
NOT_IN_SHARDS_OF_THE_TASK = ("task.metrics", "task.class_weights")


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ShardFile(_Entry):
    """One Parquet file of the folder."""

    name: str
    split: str
    rows: int
    bytes: int
    sha256: str


class Manifest(_Entry):
    """What a folder of shards holds. Counts are per split; `labels` is None when no training clip is left."""

    name: str
    format: int = FORMAT
    digest: str = Field(description="of the shards' contents and the settings: the identity of the data")
    counts: dict[str, int]
    without_sound: dict[str, int]
    without_picture: dict[str, int]
    cut_sound: int = Field(description="clips whose sound went on after media.max_audio_s")
    damaged: int = Field(description="clips kept although a stream of theirs could not be decoded whole; see notes.csv")
    rejects: int
    seconds: dict[str, float] = Field({}, description="length of the media, per split")
    audio_tokens: int = Field(0, description="of all clips together; `video_tokens` alike")
    video_tokens: int = 0
    media_bytes: int = Field(0, description="frames and sound of all clips, uncompressed")
    with_previous: int = Field(0, description="clips that have the words of others before them")
    largest_clip_bytes: int = Field(0, description="frames and sound of the largest clip, uncompressed")
    rows: str = Field("", description="digest of the label file's rows and their files' sizes; one by one in rows.csv")
    beside: dict[str, str] = Field({}, description="sha256 of the csv files beside the shards, by name")
    labels: Labels | None
    settings: dict[str, Any]
    versions: dict[str, str]
    files: tuple[ShardFile, ...]

    def of(self, split: str) -> list[ShardFile]:
        """The shards of one split, in order."""
        return [file for file in self.files if file.split == split]


def read(folder: Path) -> Manifest:
    """The manifest of a folder of shards, a path or what `place` gives. Raises DataError when it is not whole."""
    fresh(folder)
    manifest = parse(folder)
    there = states(folder, [file.name for file in manifest.files])
    for file in manifest.files:
        state = there[file.name]
        if state is None:
            raise DataError(f"{folder / file.name}: the shard is missing; delete {folder} and prepare again")
        if state.bytes != file.bytes:
            raise DataError(
                f"{folder / file.name}: has {state.bytes:,} bytes, {FILE} says {file.bytes:,}; "
                f"delete {folder} and prepare again"
            )
    return manifest


def parse(folder: Path) -> Manifest:
    """The manifest alone, whatever has become of the shards. Raises DataError when it cannot be read."""
    return parse_and_compare(folder)[0]


def parse_and_compare(folder: Path) -> tuple[Manifest, bool]:
    """The same, and whether it is as it was written; true where it has no digest of its own, as older ones."""
    path = folder / FILE
    try:
        with reaching("read", path):
            text = path.read_text(encoding="utf-8")
        raw = json.loads(text)
    except FileNotFoundError:
        raise DataError(
            f"{folder}: no prepared clips there ({FILE} is missing); make them with `raymsa prepare`"
        ) from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        given = raw.get("format") if isinstance(raw, dict) else type(raw).__name__
        raise DataError(
            f"{path}: given format {given}; this raymsa reads format {FORMAT}; delete {folder} and prepare again"
        )
    said = raw.pop("sha256", None)
    try:
        return Manifest.model_validate(raw), said in (None, _sha256(raw))
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise DataError(f"{path}: {where}: {problem['msg']}; delete {folder} and prepare again") from None


def write(folder: Path, manifest: Manifest) -> None:
    """Write manifest.json, with a digest of all that it says, at once: it is there and whole, or not there."""
    raw = manifest.model_dump(mode="json")
    text = json.dumps({**raw, "sha256": _sha256(raw)}, indent=1, ensure_ascii=False)
    write_at_once(folder / FILE, text + "\n")


def target(manifest: Manifest, task: Task) -> Target:
    """What is predicted: the task as a job has it, with what the training labels of these shards say.

    Raises DataError when there are no training clips to learn it from.
    """
    if manifest.labels is None:
        raise DataError(f"{manifest.name}: no training clips among the shards, so nothing is known of their labels")
    return task.with_labels(manifest.labels)


def versions() -> dict[str, str]:
    """Versions of what decodes: another one may make other bytes from the same clips."""
    return {name: version(name) for name in ("raymsa", "av", "soundfile", "torch", "pyarrow")}


def digest_of(files: tuple[ShardFile, ...], settings: dict[str, Any]) -> str:
    """sha256 (16 hex digits) of what the shards hold and how they were made."""
    text = json.dumps([[(f.name, f.sha256) for f in files], settings], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def digest_of_rows(digests: list[tuple[str, str]]) -> str:
    """sha256 (16 hex digits) of the rows that a folder was prepared from."""
    return hashlib.sha256(json.dumps(digests).encode()).hexdigest()[:16]


def shaping(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a dataset that change what its shards hold, by dotted name."""
    flat = _flat({name: value for name, value in settings.items() if name not in NOT_IN_SHARDS})
    return {name: value for name, value in flat.items() if name not in NOT_IN_SHARDS_OF_THE_TASK}


def differences(there: dict[str, Any], asked: dict[str, Any]) -> str:
    """Which settings differ, in words for an error; empty when none does."""
    old, new = _flat(there), _flat(asked)
    names = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
    return ", ".join(f"{name}: {old.get(name)} there, {new.get(name)} asked for" for name in names)


def _sha256(raw: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(raw, sort_keys=True).encode()).hexdigest()


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat.update(_flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value})
    return flat
