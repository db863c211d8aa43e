"""The whole queue at one moment, and this machine's GPUs: what `raymsa top` draws."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass

from raymsa.report.status import served_here
from raymsa.store import Store, overview, queries
from raymsa.store.overview import Running, Waiting
from raymsa.store.queries import Task

NEXT = 8  # tasks shown of those that wait
SMI_S = 5.0  # for nvidia-smi to answer
FIELDS = ("index", "name", "utilization.gpu", "memory.used", "memory.total", "temperature.gpu", "power.draw")


@dataclass(frozen=True)
class Frame:
    """`now` is the store's clock, UNIX seconds; `names` are those of the running tasks' jobs.

    `gpus` has the FIELDS of each (percent, MiB, °C, W) as nvidia-smi says them, `no_gpus` why there are none.
    """

    now: float
    tasks: dict[str, int]
    jobs: dict[str, int]
    running: list[Task]
    names: dict[str, str]
    runs: list[Running]
    next: list[Waiting]
    here: str
    gpus: list[tuple[str, ...]]
    no_gpus: str


def frame(store: Store) -> Frame:
    """A look at everything. Raises StoreError."""
    running = queries.running_tasks(store)
    gpus, why = _gpus()
    return Frame(
        now=store.clock(),
        tasks=overview.task_counts(store),
        jobs=overview.job_counts(store),
        running=running,
        names=overview.names(store, {task.job_id for task in running}),
        runs=overview.running_runs(store),
        next=overview.next_tasks(store, NEXT),
        here=served_here(),
        gpus=gpus,
        no_gpus=why,
    )


def _gpus() -> tuple[list[tuple[str, ...]], str]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return [], "no nvidia-smi on this machine, so no NVIDIA GPU"
    command = [program, f"--query-gpu={','.join(FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=SMI_S, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return [], f"nvidia-smi did not answer in {SMI_S:.0f} s"
    rows = [tuple(cell.strip() for cell in line.split(",")) for line in said.stdout.splitlines()]
    whole = [row for row in rows if len(row) == len(FIELDS)]
    if said.returncode or not whole:
        line = " ".join((said.stderr or said.stdout).split())[:120]
        return [], f"nvidia-smi: {line or 'no GPU'}"
    return whole, ""
