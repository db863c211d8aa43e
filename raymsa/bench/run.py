"""A whole bench: processes in turn, their figures put together, and kept.

What was measured is a JSON file under RAYMSA_HOME, not a row of the store: it belongs to a machine and a moment, to no
run, and only drivers write the store.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from raymsa.bench.request import Request
from raymsa.errors import RaymsaError, UsageError
from raymsa.home import bench_dir
from raymsa.place import write_at_once
from raymsa.provenance import git_commit, versions
from raymsa.words import for_json

Say = Callable[[str], None]
RATIOS = {  # figures that are compared, and whether more is better
    ("training", "clips_per_s"): True,
    ("training", "host_bytes"): False,
    ("training", "device_bytes"): False,
    ("scoring", "clips_per_s"): True,
    ("scoring", "latency_s"): False,
    ("scoring", "host_bytes"): False,
    ("scoring", "device_bytes"): False,
    ("load", "seconds"): False,
    ("load_again", "seconds"): False,
}


def bench(requests: list[Request], rounds: int, command: str, say: Say) -> dict[str, Any]:
    """Every request in turn (A B A B), `rounds` times, and what came of it; it is kept as a file, too.

    Raises what the processes raise; what was measured until then is kept, and where is said.
    """
    found: dict[str, list[dict[str, Any]]] = {request.side: [] for request in requests}
    about = {
        "at": time.strftime("%Y-%m-%d %H:%M:%S"),
        "command": command,
        "spec": requests[0].spec,
        "made_up": requests[0].made_up,
        "versions": versions(),
        "git_commit": git_commit(Path(__file__).parent),
    }
    try:
        for number in range(rounds):
            for request in requests:
                if rounds * len(requests) > 1:
                    say(f"round {number + 1} of {rounds}: {request.side}")
                found[request.side].append(in_its_own_process(request))
    except BaseException:
        if any(found.values()):
            say(f"what was measured before is kept as {_kept({**about, 'runs': found})}")
        raise
    best = max(run["matrix_rate"] for runs in found.values() for run in runs)
    result = {
        **about,
        "device": found["raymsa"][0]["device"],
        "matrix_rate": best,
        "sides": {side: medians(runs, best) for side, runs in found.items()},
        "runs": found,
    }
    if "plain" in found:
        result["ratios"] = ratios(result["sides"]["raymsa"], result["sides"]["plain"])
        result["differences"] = differences(found["raymsa"][0], found["plain"][0])
    return {**result, "file": str(_kept(result))}


def in_its_own_process(request: Request) -> dict[str, Any]:
    """What `python -m raymsa.bench` finds."""
    with tempfile.TemporaryDirectory(prefix="raymsa-bench-") as folder:
        asked, told = Path(folder) / "request.json", Path(folder) / "result.json"
        asked.write_text(request.dump())
        paths = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))
        ended = subprocess.run(  # noqa: S603 - our own module
            [sys.executable, "-m", "raymsa.bench", str(asked), str(told)],
            env={**os.environ, "PYTHONPATH": paths},
            check=False,
        )
        if not told.exists():
            why = f"signal {-ended.returncode}; did memory run out?" if ended.returncode < 0 else "see above"
            raise RaymsaError(f"bench: the process of {request.side} ended without a result ({why})")
        found: dict[str, Any] = json.loads(told.read_text())
    if "error" in found:
        raise (UsageError if found["exit_code"] == UsageError.exit_code else RaymsaError)(found["error"])
    return found


def medians(runs: list[dict[str, Any]], matrix_rate: float) -> dict[str, Any]:
    """The median of every number over the rounds; words as in the first.

    Loading is that of the first round, which may quantise, and again that of the later ones. The share of the matrix
    rate is of one rate for all sides: the best that was measured.
    """
    first, later = runs[0], [run["load"] for run in runs[1:]]
    found = {name: _median([run[name] for run in runs]) for name in first if name not in ("losses", "scores")}
    found |= {"load": first["load"], **({"load_again": _median(later)} if later else {})}
    if "training" in found:
        found["training"]["share"] = found["training"]["operations_per_s"] / matrix_rate
    return found


def ratios(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, float]:
    """How many times better the first side is, above 1 if it is; of the medians."""
    found = {}
    for (section, name), more_is_better in RATIOS.items():
        if name in ours.get(section, {}) and name in theirs.get(section, {}):
            a, b = ours[section][name], theirs[section][name]
            found[f"{section}.{name}"] = a / b if more_is_better else b / a
    return found


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, float]:
    """Largest difference of the untrained losses and scores of the same clips."""
    return {
        name: max((abs(a - b) for a, b in zip(ours[name], theirs[name], strict=True)), default=0.0)
        for name in ("losses", "scores")
    }


def _median(values: list[Any]) -> Any:
    if isinstance(values[0], dict):
        shared = [key for key in values[0] if all(key in value for value in values)]
        return {key: _median([value[key] for value in values]) for key in shared}
    if isinstance(values[0], (int, float)):
        return statistics.median(values)
    return values[0]


def _kept(result: dict[str, Any]) -> Path:
    name = f"{result['spec']['name']}-{time.strftime('%Y%m%d-%H%M%S')}.json"
    path = bench_dir() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    write_at_once(path, json.dumps(for_json(result), indent=1, ensure_ascii=False) + "\n")
    return path
