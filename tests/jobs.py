"""A job small enough for a test, and the real command line in a process of its own."""

import os
import subprocess
import sys
import time
from pathlib import Path

import yaml

RAYMSA = (sys.executable, "-c", "from raymsa.cli import main; main(prog_name='raymsa')")


def job_file(folder: Path, name: str = "small", **sections) -> Path:
    """A YAML job on 48 clips that raymsa makes itself and the tiny Thinker."""
    job = {
        "name": name,
        "dataset": {"kind": "synthetic", "name": "synthetic", "counts": {"train": 32, "valid": 8, "test": 8}},
        "model": {"path": "tiny"},
        "inputs": {"prompt": "{text}", "system": "Score."},
        "readout": {"kind": "disc"},
        "lora": {"rank": 4, "alpha": 8},
        "train": {"epochs": 2, "batch_clips": 8, "lora_lr": 2e-3, "checkpointing": False},
        "seeds": [1],
        "resources": {"gpus": 0, "cpus": 1},
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**job, **sections}))
    return path


def environment(home: Path) -> dict[str, str]:
    """The environment of a raymsa process with a home of its own."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY", "RAYMSA"))}
    return {**kept, "RAYMSA_HOME": str(home), "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}


def raymsa(home: Path, *words: str, timeout_s: float = 300) -> subprocess.CompletedProcess:
    """Run a command to its end."""
    return subprocess.run(
        [*RAYMSA, *words], env=environment(home), capture_output=True, text=True, timeout=timeout_s, check=False
    )


def start_raymsa(home: Path, *words: str, under: tuple[str, ...] = ()) -> subprocess.Popen:
    """Start a command in a process group of its own, perhaps `under` another; its words go to <home>/../out.txt."""
    home.mkdir(parents=True, exist_ok=True)
    out = (home.parent / f"out-{time.monotonic_ns()}.txt").open("w")
    process = subprocess.Popen(
        [*under, *RAYMSA, *words], env=environment(home), stdout=out, stderr=subprocess.STDOUT, start_new_session=True
    )
    process.words = Path(out.name)  # type: ignore[attr-defined]
    return process


def wait_for(what, timeout_s: float = 240, process: subprocess.Popen | None = None):
    """The first true value of `what()`; fails with the process's words when it takes too long or the process ends.

    On a busy machine, RAYMSA_TEST_SLOWNESS=5 waits five times as long.
    """
    until = time.monotonic() + timeout_s * float(os.environ.get("RAYMSA_TEST_SLOWNESS", "1"))
    while time.monotonic() < until:
        if found := what():
            return found
        if process is not None and process.poll() is not None:
            break
        time.sleep(0.2)
    words = process.words.read_text()[-4000:] if process is not None else ""
    why = "the process ended" if process and process.poll() is not None else "time is up"
    raise AssertionError(f"nothing came of {what}: {why}\n{words}")
