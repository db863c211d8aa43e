"""Where raymsa keeps what it writes: one folder, `RAYMSA_HOME` (default `~/.raymsa`)."""

import os
import time
from contextlib import suppress
from pathlib import Path


def home() -> Path:
    """The folder that holds store.db, runs/, models/ and shards/."""
    return Path(os.environ.get("RAYMSA_HOME") or Path.home() / ".raymsa").expanduser().absolute()


def run_dir(run_id: str) -> Path:
    """One run's folder: log.txt, checkpoints, predictions."""
    return home() / "runs" / run_id


def job_log(job_id: str) -> Path:
    """The file with everything that was said of a job."""
    return home() / "jobs" / f"{job_id}.log"


def log_to(path: Path, line: str) -> None:
    """Add a line with the time to a log; a full disk must not end what the line only tells of."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8", errors="replace") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {line}\n")


def driver_lock() -> Path:
    """Locked while a driver with a Ray session of its own serves this machine; the text in it is who."""
    return home() / f"driver-{os.uname().nodename}.lock"


def models_dir() -> Path:
    """Model folders made here (the tiny Thinker)."""
    return home() / "models"


def shards_dir() -> Path:
    """Prepared datasets, one folder each."""
    return home() / "shards"


def towers_dir() -> Path:
    """What frozen towers made of clips, one folder for each model, inputs and clips."""
    return home() / "towers"


def bench_dir() -> Path:
    """What `raymsa bench` measured, one JSON file each time."""
    return home() / "bench"


def reports_dir() -> Path:
    """Reports, one folder for each job."""
    return home() / "reports"


def store_url() -> str:
    """SQLAlchemy URL of the experiment store: `RAYMSA_STORE`, else store.db under home."""
    return os.environ.get("RAYMSA_STORE") or f"sqlite:///{home() / 'store.db'}"
