"""A finished run as a folder for the Hugging Face Hub, which is also a parcel: `raymsa import` takes it in."""

from __future__ import annotations

import json
import math
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from sqlalchemy import Table

from raymsa.errors import NotFinished, RaymsaError, UsageError
from raymsa.home import run_dir
from raymsa.parcel import CONTENTS, ROWS, read, write_contents
from raymsa.place import ADDRESS, new_folder
from raymsa.report.card import card_of, text
from raymsa.store import Store, queries, tables
from raymsa.store.exports import Edit, export

ON_THE_HUB = re.compile(r"[\w.-]+/[\w.-]+")
# Fields that hold a folder or an address, in a spec, its variants and the choices of its search; and the model's, which
# may be an id on the Hub as well.
FOLDERS, MODEL = re.compile(r"\b(raw|shards)(\.|$)"), re.compile(r"\bmodel\.path(\.|$)")
PATH = re.compile(rf"[/~]|\.\.?[\\/]|[A-Za-z]:[\\/]|{ADDRESS.pattern}", re.IGNORECASE)  # in any other field
CONFIG, WEIGHTS, HEAD, STATE = "adapter_config.json", "adapter_model.safetensors", "head.safetensors", "state.json"
SPEC, CARD = "spec.yaml", "README.md"
LEFT_OUT = (tables.predictions, tables.events, tables.artifacts, tables.waits)  # of the rows: clips, people, machines
# Of rows that go along, what tells of people and machines, and what is there instead.
BLANK: dict[str, dict[str, Any]] = {
    "jobs": {"submitted_by": "", "folder": ""},
    "tasks": {"driver": None, "said": None, "error": None},
    "runs": {"place": None},
}


class File(NamedTuple):
    """A file of the folder."""

    name: str
    bytes: int


class Order(NamedTuple):
    """What to push: a run, and the base model's id on the Hub where the spec has a folder instead."""

    run: queries.RunRow
    base_model: str | None


def prepare(store: Store, order: Order, out: Path) -> bool:
    """Write the folder; false when it is there already, from this run: a person may have added to its card.

    Raises NotFinished, UsageError when something else is there, RaymsaError when the checkpoint is gone.
    """
    if _is_there(order.run.id, out):
        return False
    best = checkpoint_of(order.run)
    with new_folder(out) as folder:
        write(store, order, best, folder)
    return True


def would_be(store: Store, order: Order, out: Path) -> tuple[list[File], bool]:
    """What `prepare` and `listing` would give; nothing is left behind."""
    if _is_there(order.run.id, out):
        return listing(out), False
    best = checkpoint_of(order.run)
    with tempfile.TemporaryDirectory(prefix="raymsa-") as folder:
        write(store, order, best, Path(folder))
        return listing(Path(folder)), True


def _is_there(run_id: str, out: Path) -> bool:
    return (out / CONTENTS).is_file() and read(out, math.inf).contents.runs == (run_id,)


def checkpoint_of(run: queries.RunRow) -> Path:
    """A finished run's best checkpoint. Raises NotFinished, RaymsaError if it is gone, UsageError without adapters."""
    from raymsa.training import checkpoint

    if run.state != "done":
        raise NotFinished(f"run {run.id} is {run.state}; a run that is done can be pushed")
    best = checkpoint.find(run_dir(run.id), "best")
    if best is None:
        raise RaymsaError(
            f"run {run.id}: no checkpoint in {run_dir(run.id)}: it was removed, or made on another machine "
            "(raymsa export --with-checkpoints there); else train again"
        )
    if checkpoint.adapter(best) is None:
        raise UsageError(f"run {run.id} trained no adapters (train.epochs: 0): there is nothing to push")
    return best


def write(store: Store, order: Order, best: Path, folder: Path) -> None:
    """Fill an empty folder with a run's adapters, head, spec, card and rows."""
    run = order.run
    public = _without_paths(order.base_model)
    spec = public(run.spec)
    base_model = _hub_id(spec["model"]["path"])
    shutil.copyfile(best / "adapter" / WEIGHTS, folder / WEIGHTS)
    config = json.loads((best / "adapter" / CONFIG).read_text(encoding="utf-8"))
    _put(folder / CONFIG, json.dumps({**config, "base_model_name_or_path": base_model}, indent=2) + "\n")
    places = {CONFIG: f"adapter/{CONFIG}", WEIGHTS: f"adapter/{WEIGHTS}", STATE: STATE}
    shutil.copyfile(best / STATE, folder / STATE)
    if (best / HEAD).exists():
        shutil.copyfile(best / HEAD, folder / HEAD)
        places[HEAD] = HEAD
    _put(folder / SPEC, yaml.safe_dump(spec, allow_unicode=True, sort_keys=False))
    _put(folder / CARD, text(card_of(store, run, spec, base_model, HEAD in places)))
    export(store, folder / ROWS, [run.job_id], [run.id], _public_rows(public))
    write_contents(folder, [run.id], {name: f"{run.id}/{best.name}/{to}" for name, to in places.items()})


def listing(folder: Path) -> list[File]:
    """What would be uploaded: what was written, and licence files that a person put beside it."""
    names = (CARD, CONFIG, WEIGHTS, HEAD, SPEC, STATE, ROWS, CONTENTS)
    found = [folder / name for name in names] + sorted(folder.glob("LICEN[CS]E*"))
    return [File(path.name, path.stat().st_size) for path in found if path.is_file() and not path.is_symlink()]


def _without_paths(base_model: str | None) -> Callable[[Any], Any]:
    """Makes plain data public: a path of this machine is its last part; a spec's model is the one on the Hub."""

    def public(value: Any, name: str = "") -> Any:
        if isinstance(value, dict):
            return {key: public(part, f"{name}.{key}") for key, part in value.items()}
        if isinstance(value, list):
            return [public(part, name) for part in value]
        if base_model and name.endswith("model.path"):
            return base_model
        return _last_part(value) if isinstance(value, str) and _is_path(name, value) else value

    return public


def _is_path(name: str, value: str) -> bool:
    """Whether a text is a folder or address of ours: by the field that it is the value of, or by its form."""
    if FOLDERS.search(name):
        return True
    if MODEL.search(name):
        return ON_THE_HUB.fullmatch(value) is None or value.startswith(".") or Path(value).exists()
    return "\n" not in value and PATH.match(value) is not None


def _last_part(path: str) -> str:
    """Without the folders before it, and without the name and password of an address."""
    return re.split(r"[\\/]+", path.rstrip("\\/"))[-1].rpartition("@")[2]


def _public_rows(public: Callable[[Any], Any]) -> Edit:
    def edit(table: Table, row: dict[str, Any]) -> dict[str, Any] | None:
        if table in LEFT_OUT:
            return None
        plain: dict[str, Any] = {name: public(row[name]) for name in ("spec", "payload") if name in row}
        return {**row, **plain, **BLANK.get(table.name, {})}

    return edit


def _hub_id(path: str) -> str | None:
    return path if ON_THE_HUB.fullmatch(path) else None


def _put(path: Path, words: str) -> None:
    path.write_text(words, encoding="utf-8", errors="replace")
