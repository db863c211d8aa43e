"""What an exporter gets of a run, what it gives back, and how a run that is there already is known.

Every tool has parameters, metrics over steps, final metrics and tags; here they are made once, from the store.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib
import json
import os
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from raymsa.errors import NotFinished, NotFound, RaymsaError, UsageError
from raymsa.merge import flat
from raymsa.place import replaced_folder
from raymsa.plugins import Spec
from raymsa.report.finals import finals_of
from raymsa.store import Store, queries
from raymsa.target import task_of
from raymsa.words import for_json

TAGS = ("variant", "seed", "state", "data_digest", "spec_digest", "git_commit", "cause", "error")
COST = ("wall_s", "device_s", "peak_memory_bytes", "trainable_parameters", "best_epoch", "data_wait")
MARK = ".raymsa"  # a file in a run's folder: the digest of what was exported into it
TIMES = ("started_at", "finished_at", "heard_at")


class Moment(NamedTuple):
    """What a run reported at one step; `at` in UNIX seconds."""

    step: int
    epoch: int | None
    at: float
    values: dict[str, float]


@dataclass(frozen=True)
class Recorded:
    """A run as the store has it, in the words that trackers share."""

    store: Store
    job: queries.Job
    run: queries.RunRow

    @cached_property
    def params(self) -> dict[str, Any]:
        """The resolved spec, flattened: `train.lora_lr` -> 2e-4."""
        return {clean(name): _leaf(value) for name, value in flat(self.run.spec)}

    @cached_property
    def tags(self) -> dict[str, str]:
        """Whose run it is, on which data, with which versions, and in which state."""
        of_run = {name: getattr(self.run, name) for name in TAGS}
        ids = {"run": self.run.id, "job": self.job.id, "job_name": self.job.name, "group": self.run.group_key}
        versions = {f"version.{name}": version for name, version in (self.run.versions or {}).items()}
        found = {**ids, **of_run, "submitted_by": self.job.submitted_by, **versions}
        return {name: clean(str(value)) for name, value in found.items() if value is not None}

    @cached_property
    def moments(self) -> list[Moment]:
        """Metrics over steps, one entry for each step, in order."""
        rows = groupby(queries.steps(self.store, self.run.id), key=lambda row: row.step)
        told = [(step, list(some)) for step, some in rows]
        return [
            Moment(step, some[0].epoch, max(one.at for one in some), {one.name: one.value for one in some})
            for step, some in told
        ]

    @cached_property
    def finals(self) -> dict[str, float]:
        """Final metrics: `test/mae`, and what the run cost: `cost/device_s`."""
        by_split = finals_of(self.store, self.run, task_of(self.run.spec).profile)
        found = {f"{split}/{name}": value for split, named in by_split.items() for name, value in named.items()}
        cost = {f"cost/{name}": getattr(self.run, name) for name in COST}
        return {**found, **{name: float(value) for name, value in cost.items() if value is not None}}

    @cached_property
    def ended_at(self) -> float:
        """When its last figures are from, in UNIX seconds."""
        told = [self.run.finished_at, self.run.heard_at, self.run.started_at]
        return next((at for at in told if at is not None), self.job.created_at)

    @cached_property
    def begun_at(self) -> float:
        """When its first figures are from: the latest attempt may have begun after some of them."""
        first = self.moments[0].at if self.moments else self.ended_at
        return min(first, self.run.started_at or first)

    @property
    def key(self) -> str:
        """A name for the run that every tool takes, whatever its id holds."""
        return hashlib.sha256(self.run.id.encode()).hexdigest()[:32]

    @cached_property
    def mark(self) -> str:
        """Digest of all that is exported: the same as long as the run has not changed."""
        plain = [self.params, self.tags, self.moments, self.finals, [getattr(self.run, name) for name in TIMES]]
        return hashlib.sha256(json.dumps(for_json(plain), sort_keys=True).encode()).hexdigest()


class Done(NamedTuple):
    """Runs that were written and those that were there already, by id; `look` is how to see them."""

    written: list[str]
    there: list[str]
    look: str


class Exporter(Spec):
    """A tool that runs are exported to; its `kind` is the word after `--to`."""

    @abstractmethod
    def write(self, runs: Sequence[Recorded], out: Path) -> Done:
        """Write runs into the folder. Raises UsageError when it cannot take them, RaymsaError when writing fails."""


def chosen(store: Store, names: Sequence[str]) -> list[Recorded]:
    """The runs of jobs, or runs, named by id, the start of one, or a job's name; each once.

    Raises NotFound, NotFinished when a job has no run yet, UsageError when several fit.
    """
    found: dict[str, Recorded] = {}
    for name in names:
        for one in _of(store, name):
            found.setdefault(one.run.id, one)
    return list(found.values())


def needed(package: str, extra: str) -> Any:
    """An optional package, imported. Raises UsageError that says what to install."""
    try:
        return importlib.import_module(package)
    except ImportError:
        raise UsageError(f"exporting to {extra} needs a package: pip install 'raymsa[{extra}]'") from None


def _leaf(value: Any) -> Any:
    """A number as it is, anything else as text; a list is JSON."""
    if isinstance(value, (int, float)):
        return value
    return clean(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def clean(text: str) -> str:
    """A text without NUL and halves of surrogate pairs, which databases and protocol buffers refuse."""
    return text.replace("\0", "\ufffd").encode(errors="replace").decode()


@contextmanager
def surroundings(prefix: str, given: Mapping[str, str]) -> Iterator[None]:
    """A tool's environment variables are those given and no others: a person's may name a server to send to."""
    before = dict(os.environ)
    for name in [name for name in before if name.startswith(prefix)]:
        del os.environ[name]
    os.environ.update(given)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """The folder, made if it must be, for one export at a time. Raises RaymsaError when it cannot be written."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with (out / ".raymsa.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
    except OSError as error:
        raise RaymsaError(f"{out}: cannot be written: {error.strerror or error}") from None


def is_there(folder: Path, mark: str) -> bool:
    """Whether a folder holds just what would be exported into it."""
    file = folder / MARK
    return file.is_file() and file.read_text(encoding="utf-8") == mark


@contextmanager
def replaced(folder: Path, mark: str) -> Iterator[Path]:
    """A new folder to write a run into; afterwards it stands at `folder`, marked, instead of what was there.

    For one process at a time: see `locked`.
    """
    with replaced_folder(folder) as part:
        yield part
        (part / MARK).write_text(mark, encoding="utf-8")


def _of(store: Store, name: str) -> list[Recorded]:
    try:
        job = queries.job(store, name)
    except NotFound:
        try:
            run = queries.run(store, name)
        except NotFound:
            raise NotFound(f"no job and no run {name!r} in the store") from None
        return [Recorded(store, queries.job(store, run.job_id), run)]
    runs = queries.runs(store, job.id)
    if not runs:
        raise NotFinished(f"job {job.id} has no run yet; raymsa status {job.id}")
    return [Recorded(store, job, run) for run in runs]
