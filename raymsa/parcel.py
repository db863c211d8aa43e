"""A folder of runs on its way to another machine: what is in it, and looking into one that a stranger packed.

    raymsa.json    which runs, and each file with its size, its sha256 and its place under RAYMSA_HOME/runs
    store.jsonl    their rows, as `raymsa store export` writes them
    ...            what the runs left: logs, predictions, checkpoints

Nothing but the files named in raymsa.json is read, only under names that a run's folder has, and never through a link.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Literal, NamedTuple

from pydantic import Field, ValidationError

from raymsa.errors import NotFound, UsageError
from raymsa.home import run_dir
from raymsa.plugins import Spec
from raymsa.store.imports import RUN_ID

CONTENTS, ROWS = "raymsa.json", "store.jsonl"
FORMAT = 1
LONGEST_CONTENTS = 2**26  # bytes
CHUNK = 2**20
NAME = re.compile(r"(?!\.{0,2}$)[^/\0]+")  # of a file or folder
CHECKPOINT = re.compile(r"(best|last)-\d{6,12}")
# What a run's folder may hold: no pickles, which peft would load from an adapter_model.bin.
LEFT = re.compile(
    rf"log\.txt|steps\.jsonl|data\.txt|predictions\.parquet|{CHECKPOINT.pattern}/"
    r"(state\.json|head\.safetensors|optimizer\.safetensors|adapter/(adapter_config\.json|adapter_model\.safetensors|README\.md))"
)


class Item(Spec):
    """One file: where it is in the parcel, and where it goes under RAYMSA_HOME/runs (nowhere: the rows)."""

    name: str
    to: str | None = None
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Contents(Spec):
    """raymsa.json."""

    raymsa: Literal["runs"] = "runs"
    format: int = FORMAT
    runs: tuple[str, ...] = Field(min_length=1)
    files: tuple[Item, ...]


class Parcel(NamedTuple):
    """A folder and what it says that it holds."""

    folder: Path
    contents: Contents

    @property
    def rows(self) -> Item:
        """The file of rows."""
        return next(item for item in self.contents.files if item.to is None)

    @property
    def left(self) -> list[tuple[Item, Path]]:
        """The files that runs left, each with its place under RAYMSA_HOME/runs."""
        return [(item, Path(item.to)) for item in self.contents.files if item.to is not None]


def left_by(run_id: str, done: bool) -> Iterator[tuple[Path, str]]:
    """The files of a run on this machine, with their names in its folder; what a done run would go on from is none."""
    folder = run_dir(run_id)
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not LEFT.fullmatch(name) or path.is_symlink() or not path.is_file():
            continue
        checkpoint = name.split("/")[0] if "/" in name else ""
        if checkpoint and (
            not (folder / checkpoint / "state.json").exists() or (done and checkpoint.startswith("last"))
        ):
            continue
        yield path, name


def write_contents(folder: Path, run_ids: Iterable[str], places: dict[str, str]) -> None:
    """Write raymsa.json, last of all: the rows, and the files of `places` (name in the parcel -> place under runs/)."""
    items = [_item(folder, ROWS, None), *(_item(folder, name, to) for name, to in places.items())]
    contents = Contents(runs=tuple(run_ids), files=tuple(items))
    (folder / CONTENTS).write_text(contents.model_dump_json(indent=2) + "\n", encoding="utf-8")


def read(folder: Path, most_bytes: float) -> Parcel:
    """Look into a parcel. Raises NotFound, or UsageError when it is none, too large, half there or out of order."""
    if not folder.exists():
        raise NotFound(f"{folder}: no such folder")
    if not (folder / CONTENTS).exists():
        raise UsageError(
            f"{folder}: no {CONTENTS} in it: `raymsa export --to raymsa` and `raymsa push` write one "
            "(what `raymsa store export` wrote is for `raymsa store import`)"
        )
    with opened(folder, CONTENTS) as file:
        text = file.read(LONGEST_CONTENTS + 1)
    if len(text) > LONGEST_CONTENTS:
        raise UsageError(f"{folder / CONTENTS}: has more than {LONGEST_CONTENTS:,} bytes")
    try:
        parcel = Parcel(folder, Contents.model_validate_json(text))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UsageError(f"{folder / CONTENTS}: {where + ': ' if where else ''}{first['msg']}") from None
    _check(parcel, most_bytes)
    return parcel


@contextmanager
def opened(folder: Path, name: str) -> Iterator[IO[bytes]]:
    """A plain file in a folder, reached through no link. Raises UsageError."""
    try:
        at = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        *folders, last = name.split("/")
        for part in folders:
            at = _step(at, part, os.O_DIRECTORY)
        file = os.fdopen(_step(at, last, os.O_NONBLOCK), "rb")  # a pipe would be waited for
    except OSError as error:
        link = error.errno in (errno.ELOOP, errno.ENOTDIR)
        raise UsageError(f"{folder / name}: {'is a link' if link else error.strerror}") from None
    with file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise UsageError(f"{folder / name}: is no plain file")
        yield file


def copy(parcel: Parcel, item: Item, to: Path) -> None:
    """Copy a file out of a parcel, to the disk. Raises UsageError when it is not what the parcel says, OSError."""
    digest, left = hashlib.sha256(), item.bytes
    to.parent.mkdir(parents=True, exist_ok=True)
    with opened(parcel.folder, item.name) as file, to.open("xb") as copied:
        while chunk := file.read(min(CHUNK, left + 1)):
            left -= len(chunk)
            if left < 0:
                break
            digest.update(chunk)
            copied.write(chunk)
        copied.flush()
        os.fsync(copied.fileno())
    if left or digest.hexdigest() != item.sha256:
        raise UsageError(f"{parcel.folder / item.name}: is not the file that {CONTENTS} names: half, or changed")


def _item(folder: Path, name: str, to: str | None) -> Item:
    with (folder / name).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Item(name=name, to=to, bytes=(folder / name).stat().st_size, sha256=digest)


def _step(at: int, part: str, how: int) -> int:
    """Open a name in an open folder, which is closed."""
    try:
        return os.open(part, os.O_RDONLY | os.O_NOFOLLOW | how, dir_fd=at)
    finally:
        os.close(at)


def _check(parcel: Parcel, most_bytes: float) -> None:
    """Names, number and sizes, before anything is copied."""
    where, contents = parcel.folder / CONTENTS, parcel.contents
    if contents.format != FORMAT:
        raise UsageError(f"{where}: it has format {contents.format} and this raymsa reads {FORMAT}: upgrade raymsa")
    for run_id in contents.runs:
        if not RUN_ID.fullmatch(run_id):
            raise UsageError(f"{where}: the id {run_id!r} cannot be a folder's name")
    for item in contents.files:
        _check_names(where, item, contents.runs)
    for names in ([item.name for item in contents.files], [item.to for item in contents.files]):
        if len(set(names)) < len(names):
            raise UsageError(f"{where}: a file stands in it twice")
    if [item.name for item in contents.files if item.to is None] != [ROWS]:
        raise UsageError(f"{where}: names no {ROWS}")
    _check_sizes(parcel, most_bytes)


def _is_name(part: str) -> bool:
    return NAME.fullmatch(part) is not None and part.isprintable()  # a terminal would obey the rest


def _check_names(where: Path, item: Item, run_ids: tuple[str, ...]) -> None:
    parts = item.name.split("/")
    if not all(map(_is_name, parts)):
        raise UsageError(f"{where}: {item.name!r} is no file in this folder")
    run_id, _, name = (item.to or "").partition("/")
    if item.to is not None and (run_id not in run_ids or not LEFT.fullmatch(name)):
        raise UsageError(f"{where}: {item.to!r} is no file of its runs")


def _check_sizes(parcel: Parcel, most_bytes: float) -> None:
    whole = sum(item.bytes for item in parcel.contents.files)
    if whole > most_bytes:
        raise UsageError(f"{parcel.folder}: holds {whole:,} bytes, more than the {most_bytes:,.0f} there is room for")
    for item in parcel.contents.files:
        with opened(parcel.folder, item.name) as file:
            size = os.fstat(file.fileno()).st_size
        if size != item.bytes:
            raise UsageError(
                f"{parcel.folder / item.name}: has {size:,} bytes instead of {item.bytes:,}: half, or changed"
            )
