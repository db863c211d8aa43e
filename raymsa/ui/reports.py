"""Reports of jobs: a folder is one if the mark that `raymsa report` writes last names the job."""

from __future__ import annotations

import json
from pathlib import Path

from raymsa.report.page import MARK, PAGE, TABLES
from raymsa.store.queries import Job

SHOWN = (".html", ".md", ".tex", ".pdf", ".csv")
MARK_BYTES = 2**20  # a mark is small


def folder_of(root: Path, job: Job) -> Path | None:
    """Where a job's report lies: a folder named by its id or its name, in the folder of all reports."""
    for name in (job.id, job.name):
        folder = root / name
        if name not in ("", ".", "..") and "/" not in name and "\0" not in name and _job_of(folder) == job.id:
            return folder
    return None


def pages_of(folder: Path | None) -> list[str]:
    """The files that are there to be read, the page first."""
    found = [] if folder is None else _names(folder)
    return sorted(found, key=lambda name: (name != PAGE, not name.endswith(".html"), name))


def tables_of(folder: Path | None) -> dict[str, list[str]]:
    """The tables beside the page: name -> its files."""
    found: dict[str, list[str]] = {}
    for name in sorted(_names(folder / TABLES)) if folder is not None else []:
        found.setdefault(Path(name).stem, []).append(f"{TABLES}/{name}")
    return found


def _names(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return [path.name for path in folder.iterdir() if path.suffix in SHOWN and not path.name.startswith(".")]


def _job_of(folder: Path) -> str | None:
    try:
        with (folder / MARK).open(encoding="utf-8") as file:
            return str(json.loads(file.read(MARK_BYTES))["job"])
    except (OSError, ValueError, KeyError, TypeError):  # none, or a name that is too long
        return None
