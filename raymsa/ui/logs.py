"""The page of a log, and the end of one beside other things."""

from __future__ import annotations

from pathlib import Path

from raymsa.errors import NotFound
from raymsa.home import home, job_log, run_dir
from raymsa.report.status import last_lines, no_log
from raymsa.store import Store, queries
from raymsa.ui.live import Seen
from raymsa.ui.words import piece, plain

LINES, BYTES = 5_000, 2 * 2**20  # on a page of its own


def log(store: Store, kind: str, name: str) -> Seen:
    """The log of a job or run."""
    title, path, host = log_of(store, kind, name)
    lines, why = end_of(path, LINES, BYTES, host)
    facts = {"kind": kind, "name": title, "whole": path.exists()}
    return Seen(f"Log of {title}", facts, {"log": piece("run_parts.html", "log", lines, why)})


def log_of(store: Store, kind: str, name: str) -> tuple[str, Path, str | None]:
    """Whose log it is, where it lies, and where it was written. Raises NotFound."""
    if kind not in ("jobs", "runs"):
        raise NotFound(f"there are logs of jobs and of runs, and none of {kind!r}")
    if kind == "jobs":
        found = queries.job(store, name)
        return found.id, job_log(found.id), None
    one = queries.run(store, name)
    return one.id, run_dir(one.id) / "log.txt", one.place


def is_ours(path: Path) -> bool:
    """Whether a path is under RAYMSA_HOME: an id may have been made to lead elsewhere."""
    return path.resolve().is_relative_to(home().resolve())


def end_of(path: Path, most: int, most_bytes: int, place: str | None) -> tuple[list[str], str]:
    """The end of a log, or why there is none. Of a line that was written over again, what came last."""
    if not is_ours(path):
        return [], "its log is not under RAYMSA_HOME"
    try:
        lines = last_lines(path, most, most_bytes)
    except OSError:
        return [], no_log((place or "").partition(" ")[0])
    return [plain(line) for line in lines], ""
