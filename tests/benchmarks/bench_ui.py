"""How quick the page is over a large store, and whether it grows while it is watched.

    python -m tests.benchmarks.bench_ui [--runs 2000] [--steps 200] [--updates 3600]

Half of the runs are in one job, the others in jobs of 50. First paint and sorting are measured by Chromium itself, from
the request to the pixels. An hour of updates is as many looks as it has seconds, with a shorter pause between two.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raymsa.store import Store, tables
from tests.ui_site import ROOT, add_job, train

CHROMIUM = "/usr/bin/chromium"
PAINT = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? null"
SORT = """async (id) => {
  const begun = performance.now();
  document.getElementById(id).click();
  await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
  return performance.now() - begun;
}"""
SERVE = """
import sys
from pathlib import Path
from raymsa.ui import app, live
from raymsa.ui.security import Door
live.EVERY_S, live.SHARE = float(sys.argv[2]), float(sys.argv[3])
site, door, bound = app.Site(sys.argv[1], Path("none")), Door(), app.listening("127.0.0.1", 0)
port = app.port_of(bound)
print(f"http://127.0.0.1:{port}/?token={door.token}", flush=True)
app.serve(app.guarded(site.app(), door, "127.0.0.1", port), bound, lambda: None)
"""


def main() -> None:
    """Measure and print."""
    asked = argparse.ArgumentParser()
    asked.add_argument("--runs", type=int, default=2000)
    asked.add_argument("--steps", type=int, default=200)
    asked.add_argument("--updates", type=int, default=3600)
    args = asked.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["RAYMSA_HOME"] = folder
        url = f"sqlite:///{folder}/store.db"
        with Store.open(url) as store:
            large, live = fill(store, args.runs, args.steps)
            print(f"{args.runs:,} runs of {args.steps} steps, {os.cpu_count()} cores")
            measure(url, large, live)
            if args.updates:
                watch(store, url, live, args.updates)


def fill(store: Store, runs: int, steps: int) -> tuple[str, str]:
    """A large job, small ones, and one whose last run still trains; the ids of the first and the last."""
    variants = tuple(f"setting-{number:03}" for number in range(runs // 8))
    large = add_job(store, "large", variants, 4, 10)
    for number in range(max(0, runs // 100 - 1)):
        add_job(store, f"small-{number}", tuple("abcdefghij"), 5, 10)
    live = add_job(store, "live", tuple("abcdefghij"), 5, 10, done=False)
    with store.write() as connection:  # at once: one report after another would take minutes
        for (run_id,) in connection.execute(tables.runs.select().with_only_columns(tables.runs.c.id)).all():
            rows = [
                {"run_id": run_id, "step": step, "name": name, "value": 1 / step, "epoch": 1, "at": 0.0}
                for step in range(11, steps + 1)
                for name in ("loss", "clips_per_s", "valid_mae")[: 3 if step % 10 == 0 else 2]
            ]
            connection.execute(tables.steps.insert(), rows)
        connection.execute(tables.runs.update().values(step=steps, steps_total=steps))
    return large, live


@contextmanager
def server(url: str, every_s: float = 1.0, share: float = 4.0) -> Iterator[tuple[str, int]]:
    """The page in a process of its own; its address and process id."""
    command = [sys.executable, "-c", SERVE, url, str(every_s), str(share)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip(), process.pid
    finally:
        process.terminate()
        process.wait(30)


@contextmanager
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


def measure(url: str, large: str, live: str) -> None:
    """First paint of each page the first time and again, and sorting."""
    pages = {
        "queue": "",
        "all jobs": "jobs",
        "job of 50 runs": f"jobs/{live}",
        f"job of {large_runs(url, large)} runs": f"jobs/{large}",
        "run": f"runs/{live}-a-1",
        "all groups": "groups",
        "50 runs over each other": "compare?" + "&".join(f"group={live}{v}" for v in "abcdefghij"),
    }
    print("| page | first paint, ms | again | table sorted, ms |\n|---|---|---|---|")
    with server(url) as (address, _), browser() as opened:
        base = address.partition("?")[0]
        page = opened.new_page(viewport={"width": 1280, "height": 900})
        page.goto(address)
        for name, path in pages.items():
            paints = []
            for _ in range(2):
                page.goto(base + path)
                while (paint := page.evaluate(PAINT)) is None:
                    time.sleep(0.05)
                paints.append(paint)
            if path == "groups":  # its table may come after the first paint
                page.wait_for_selector("table[data-sortable]")
            tables_here = page.eval_on_selector_all("table[data-sortable]", "all => all.map(t => t.id)")
            times = [page.evaluate(SORT, f"{table}-by-{at}") for table in tables_here for at in (1, 1, 2, 2)]
            longest = f"{max(times):.0f}" if times else "-"
            print(f"| {name} | {paints[0]:.0f} | {paints[1]:.0f} | {longest} |", flush=True)


def large_runs(url: str, job_id: str) -> int:
    from raymsa.store import queries

    with Store.open(url) as store:
        return len(queries.runs(store, job_id))


def watch(store: Store, url: str, live: str, updates: int) -> None:
    """Memory of server and page while a run reports, a queue, a job and a run watched by three each."""
    over = threading.Event()
    run_id = f"{live}-j-5"
    writer = threading.Thread(target=_train, args=(store, run_id, over), daemon=True)
    with server(url, 0.02, 0.0) as (address, pid), browser() as opened:
        base = address.partition("?")[0]
        context = opened.new_context()
        shown = [context.new_page() for _ in range(3)]
        shown[0].goto(address)
        for page, path in zip(shown, ("", f"jobs/{live}", f"runs/{run_id}"), strict=True):
            page.goto(base + path)
        writer.start()
        print("| updates sent to the run's page | server, MiB | its page's heap, MiB |\n|---|---|---|")
        count, told = 0, 0
        while count < updates:
            time.sleep(1)
            count = int(shown[2].evaluate("Number(document.body.dataset.version.split('.')[1])"))
            if count >= told:
                print(f"| {count} | {_rss(pid):.0f} | {_heap(context, shown[2]):.1f} |", flush=True)
                told += updates // 8
        over.set()
        writer.join()


def _heap(context: Any, page: Any) -> float:
    session = context.new_cdp_session(page)
    session.send("HeapProfiler.collectGarbage")
    used = session.send("Runtime.getHeapUsage")["usedSize"]
    session.detach()
    return float(used) / 2**20


def _rss(pid: int) -> float:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def _train(store: Store, run_id: str, over: threading.Event) -> None:
    """The same 200 steps over and over: what is shown changes and does not get longer."""
    step = 11
    while not over.is_set():
        train(store, run_id, step, step, of=200)
        step = 11 if step == 200 else step + 1
        over.wait(0.02)


if __name__ == "__main__":
    main()
