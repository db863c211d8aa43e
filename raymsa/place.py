"""Folders that are named by a path or by an address (s3://bucket/folder, or any other that fsspec knows).

A local one is a pathlib.Path; any other is a UPath, which reads, lists and joins alike but is no pathlib.Path.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from raymsa.errors import DataError, RaymsaError, UsageError

ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
HALF = re.compile(r"[a-z][a-z0-9+.-]+:/([^/]|/?$)|[a-z][a-z0-9+.-]+://$", re.IGNORECASE)  # s3:/bucket, s3://
LOCAL = "file://"
LOCK = ".raymsa-writes"  # locked in a folder that is being written
NEW, OLD = "new", "old"  # in it: what is written, what it is to replace


class State(NamedTuple):
    """Of a file: `changed` differs when it was written anew."""

    bytes: int
    changed: str


def absolute(text: str | Path) -> str:
    """The same place for a process in another folder: an address as it is, a path made absolute."""
    given = str(text)
    if HALF.match(given):
        raise DataError(f"{given}: neither a path nor an address; an address is like s3://bucket/folder")
    if given.startswith(LOCAL):
        given = given.removeprefix(LOCAL)
    return given.rstrip("/") if ADDRESS.match(given) else str(Path(given).expanduser().absolute())


def place(text: str | Path) -> Path:
    """The folder or file of that name. Raises DataError for an address that this environment cannot open."""
    if not isinstance(text, (str, Path)):
        return text  # a UPath already
    given = absolute(text)
    if not ADDRESS.match(given):
        return Path(given)
    try:
        from upath import UPath

        path = UPath(given)
        path.fs  # noqa: B018 - imports what the protocol needs
    except (ImportError, ValueError) as error:
        protocol = given.partition(":")[0].lower()
        how = "pip install 'raymsa[s3]'" if protocol == "s3" else "install the fsspec package for it"
        raise DataError(f"{given}: cannot open {protocol}:// addresses here ({_line(error)}); {how}") from None
    return cast(Path, path)


def is_local(path: Path) -> bool:
    """It lies in this machine's file system."""
    return isinstance(path, Path)


def check(path: Path) -> None:
    """Raises DataError, in one line, when an address cannot be reached: no network, no credentials, no bucket."""
    if is_local(path):
        return
    try:
        path.exists()
    except Exception as error:  # every file system has errors of its own
        raise DataError(f"{path}: cannot be reached: {_line(error)}") from None


def fresh(folder: Path) -> None:
    """Forget listings that fsspec keeps: other processes write there too."""
    if not is_local(folder):
        _fs(folder).invalidate_cache()


def names(folder: Path) -> set[str]:
    """Names in a folder; none when it is not there."""
    fresh(folder)
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), reaching("listed", folder):
        return {path.name for path in folder.iterdir()}
    return set()


def states(folder: Path, files: Iterable[str]) -> dict[str, State | None]:
    """The state of files, by their names relative to the folder; None where there is none."""
    if is_local(folder):
        return {name: _local_state(folder / name) for name in files}
    listed = _listed(folder)  # one listing instead of a request for each
    return {name: listed.get(name.removeprefix("./")) for name in files}


def write_at_once(path: Path, text: str) -> None:
    """Write a small file so that it is there and whole, or not there: renamed into place, or uploaded."""
    if not is_local(path):
        with reaching("written", path):
            path.write_text(text, encoding="utf-8", newline="")
        return
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with part.open("w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def folder_at_once(folder: Path, mark: str) -> Iterator[Path]:
    """A new local folder to write into; afterwards it stands at `folder`, whole or not at all.

    When another process was first, its folder stays: it is as good, if the file `mark` is in it.
    """
    with _aside(folder) as part:
        yield part
        try:
            part.rename(folder)
        except OSError:
            if not (folder / mark).exists():
                raise


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A new local folder to write into; afterwards it stands at `folder`, which had nothing in it.

    Raises UsageError when something is there, RaymsaError when it cannot be written.
    """
    if folder.is_symlink() or (folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))):
        raise UsageError(f"{folder}: is there already; name another, or remove it first")
    try:
        with _aside(folder) as part:
            yield part
            part.rename(folder)
    except OSError as error:
        raise RaymsaError(f"{folder}: cannot be written: {error.strerror or error}") from None


@contextlib.contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """A new local folder to write into; afterwards it stands at `folder`, instead of what was there.

    What was there comes back if that fails; a link stays, and what it leads to is replaced. Raises OSError.
    """
    if folder.is_symlink():
        folder = folder.resolve()
    with _aside(folder) as part:
        yield part
        old = part.with_name(OLD)  # removed with what is around it
        try:
            if folder.exists():
                folder.rename(old)
            part.rename(folder)
        except BaseException:
            if old.exists() and not folder.exists():
                old.replace(folder)
            raise


@contextlib.contextmanager
def _aside(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder` to write into and then to rename; what killed writers left there is removed."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left in folder.parent.glob(f".*/{LOCK}"):
        _remove_of_the_dead(left)
    around = Path(tempfile.mkdtemp(prefix=f".{folder.name[:100]}-", dir=folder.parent))
    try:
        with (around / "lock").open("x") as file:
            file.write(platform.node())  # a lock need not hold on another machine that has the same disk
            file.flush()
            with contextlib.suppress(OSError):  # a file system without locks: then nobody removes it
                lock(file)
                (around / "lock").rename(around / LOCK)  # locked from when it can be seen
            part = around / NEW  # with the usual permissions; `around` is private
            part.mkdir()
            yield part
    finally:
        _remove(around)


def _remove_of_the_dead(left: Path) -> None:
    with contextlib.suppress(OSError), left.open("r+") as file:
        if file.read() == platform.node() and lock(file):
            _remove(left.parent)


def _remove(around: Path) -> None:
    """All but what was there before, if nothing has taken its place: its writer was killed in between."""
    if not ((around / OLD).exists() and (around / NEW).exists()):
        shutil.rmtree(around, ignore_errors=True)


def lock(file: IO[Any]) -> bool:
    """Take the lock of an open file, which goes with the process, however that ends; false while another has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def put(file: Path, path: Path) -> None:
    """Move a finished local file to its place, which shows it whole or not at all."""
    if is_local(path):
        file.replace(path)
        return
    with reaching("uploaded", path):
        _fs(path).put_file(str(file), cast(Any, path).path)
    file.unlink()


@contextlib.contextmanager
def local_copy(path: Path) -> Iterator[Path]:
    """The file itself where it is local, else a temporary copy. Raises OSError when it cannot be had."""
    if is_local(path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="raymsa-") as folder:
        copy = Path(folder) / f"copy{path.suffix}"
        with reaching("downloaded", path):
            _fs(path).get_file(cast(Any, path).path, str(copy))
        yield copy


def remove(folder: Path) -> None:
    """Delete a folder and all that is in it; nothing when it is not there."""
    if is_local(folder):
        shutil.rmtree(folder, ignore_errors=True)
    elif folder.exists():
        _fs(folder).rm(cast(Any, folder).path, recursive=True)


def _fs(path: Path) -> Any:
    return cast(Any, path).fs


def _local_state(path: Path) -> State | None:
    try:
        state = path.stat()
    except OSError:
        return None
    return State(state.st_size, str(state.st_mtime_ns))


def _listed(folder: Path) -> dict[str, State]:
    fresh(folder)
    root = cast(Any, folder).path.rstrip("/") + "/"
    with reaching("listed", folder):
        found = _fs(folder).find(root, detail=True)
    changed = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified", "created")
    return {
        name.removeprefix("/").removeprefix(root.removeprefix("/")): State(
            int(info["size"] or 0), next((str(info[key]) for key in changed if info.get(key)), "")
        )
        for name, info in found.items()
    }


@contextlib.contextmanager
def reaching(done: str, path: Path) -> Iterator[None]:
    """What a file system raises of its own (a network that is down) as the OSError that callers know."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(errno.EIO, f"cannot be {done}: {_line(error)}", str(path)) from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
