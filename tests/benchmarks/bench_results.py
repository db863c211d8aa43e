"""How long `raymsa results` takes over a large store, whole processes.

    python -m tests.benchmarks.bench_results [--runs 2000] [--steps 200] [--clips 686]

Every job has four seeds of one setting; every tenth run has collapsed, so that its predictions are looked at.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from raymsa.evaluation.metrics import constant_scores, measure
from raymsa.jobfile import load_job
from raymsa.spec import runs as runs_of
from raymsa.store import Store, tables
from tests.stores import put

ROOT = Path(__file__).parent.parent.parent
RAYMSA = (sys.executable, "-c", "from raymsa.cli import main; main(prog_name='raymsa')")
SEEDS, ROUNDS = 4, 5
STEP_NAMES = ("loss", "grad_norm", "clips_per_s", "tokens_per_s", "data_wait")
WORDS = (
    "results",
    "results --format csv",
    "results --format json",
    "results --literature mosi",
    "results job0",
    "list",
)


def main() -> None:
    """Measure and print."""
    asked = argparse.ArgumentParser()
    asked.add_argument("--runs", type=int, default=2_000)
    asked.add_argument("--steps", type=int, default=200)
    asked.add_argument("--clips", type=int, default=686)
    args = asked.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/store.db"
        fill(url, args.runs, args.steps, args.clips)
        print(f"{args.runs:,} runs, {args.steps} steps, {args.clips} test clips; median of {ROUNDS}, seconds")
        for words in WORDS:
            print(f"| `raymsa {words}` | {statistics.median(taken(words, url) for _ in range(ROUNDS)):.2f} |")


def taken(words: str, url: str) -> float:
    """Seconds of one command."""
    begun = time.monotonic()
    subprocess.run([*RAYMSA, *words.split(), "--store", url], cwd=ROOT, check=True, capture_output=True)
    return time.monotonic() - begun


def fill(url: str, count: int, steps: int, clips: int) -> None:
    """A store of finished runs."""
    job = load_job(ROOT / "jobs/mosi_text_only.yaml")
    (run, *_) = runs_of(job)
    spec = run.spec.model_dump(mode="json")
    draw = np.random.default_rng(0)
    label = np.round(draw.uniform(-3, 3, clips), 1).astype(np.float32)
    with Store.open(url, create=True) as store:
        for number in range(count // SEEDS):
            job_id = put(store, f"job{number}")
            with store.write() as connection:
                connection.execute(
                    tables.jobs.update().where(tables.jobs.c.id == job_id).values(spec=job.model_dump(mode="json"))
                )
                for seed in range(SEEDS):
                    run_id = f"{job_id}-disc-{seed}"
                    collapsed = (number * SEEDS + seed) % 10 == 0
                    score = (
                        np.full_like(label, 0.2) if collapsed else label + draw.normal(0, 0.8, clips).astype(np.float32)
                    )
                    connection.execute(tables.runs.insert(), _run(run_id, job_id, seed, f"{number:016x}", spec, steps))
                    connection.execute(tables.finals.insert(), list(_finals(run_id, score, label)))
                    connection.execute(tables.steps.insert(), list(_steps(run_id, steps)))
                    connection.execute(tables.predictions.insert(), list(_predictions(run_id, score, label)))
        with store.write() as connection:
            connection.execute(tables.tasks.update().values(state="done"))


def _run(run_id: str, job_id: str, seed: int, key: str, spec: Any, steps: int) -> dict[str, Any]:
    made = {"id": run_id, "job_id": job_id, "variant": "disc", "seed": seed, "group_key": key, "spec": spec}
    done = {"state": "done", "attempts": 1, "started_at": 0.0, "finished_at": 1.0, "wall_s": 600.0, "device_s": 600.0}
    return made | done | {"spec_digest": run_id, "data_digest": "d", "step": steps, "peak_memory_bytes": 2**30}


def _finals(run_id: str, score: Any, label: Any) -> Iterator[dict[str, Any]]:
    floor = {f"constant_{name}": value for name, value in constant_scores("mosi", 0.2, label).items()}
    for split in ("valid", "test"):
        for name, value in {**measure("mosi", score, label), **floor, "out_of_range": 0.0}.items():
            yield {"run_id": run_id, "split": split, "name": name, "value": value}


def _steps(run_id: str, steps: int) -> Iterator[dict[str, Any]]:
    for step in range(1, steps + 1):
        for name in STEP_NAMES:
            yield {"run_id": run_id, "step": step, "name": name, "value": 1.0, "epoch": 1, "at": 0.0}


def _predictions(run_id: str, score: Any, label: Any) -> Iterator[dict[str, Any]]:
    for n, (said, true) in enumerate(zip(score.tolist(), label.tolist(), strict=True)):
        clip = {"run_id": run_id, "split": "test", "clip_id": f"clip{n}", "label": true, "score": said}
        yield clip | {"text": None, "parsed": True, "in_range": True}


if __name__ == "__main__":
    main()
