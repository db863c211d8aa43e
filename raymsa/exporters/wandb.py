"""Weights & Biases: one offline run each, which `wandb sync` uploads if somebody wants that. Nothing is sent here."""

from __future__ import annotations

import re
import shlex
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from raymsa.errors import RaymsaError
from raymsa.exporters.base import Done, Exporter, Recorded, is_there, locked, needed, replaced, surroundings

QUIET = {"WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false", "WANDB_SILENT": "true"}
SETTINGS: dict[str, Any] = {  # nothing of this machine, its packages or its code
    "console": "off",
    "disable_code": True,
    "disable_git": True,
    "host": "",
    "silent": True,
    "x_disable_machine_info": True,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_disable_viewer": True,
    "x_save_requirements": False,
}
NOT_ALLOWED = re.compile(r"[/\\#?%:\x00-\x1f]")  # in names of projects
PROJECT, TAG = 120, 64  # characters
OVER_WELL = ("done", "pruned")  # W&B knows finished and failed only; the tag says which state it was


class Wandb(Exporter):
    """FOLDER/wandb/offline-run-*, one for each run; project = the job's name, group = the runs' group."""

    kind: Literal["wandb"] = "wandb"

    def write(self, runs: Sequence[Recorded], out: Path) -> Done:
        """Add the runs; one that has changed since it was exported is replaced, one that has not is left alone."""
        with surroundings("WANDB_", QUIET):
            wandb = needed("wandb", self.kind)
            try:
                return _add_all(wandb, runs, out)
            except wandb.Error as error:
                raise RaymsaError(f"{out}: wandb refused: {' '.join(str(error).split())[:300]}") from None
            finally:
                wandb.teardown()


def _add_all(wandb: Any, runs: Sequence[Recorded], out: Path) -> Done:
    done = Done([], [], f"wandb sync {shlex.quote(str(out))}/wandb/offline-run-*  (uploads them)")
    with locked(out):
        for one in runs:
            (done.written if _add(wandb, one, out / "wandb") else done.there).append(one.run.id)
    return done


def _add(wandb: Any, one: Recorded, folder: Path) -> bool:
    there = folder / f"offline-run-{time.strftime('%Y%m%d_%H%M%S', time.gmtime(one.begun_at))}-{one.key}"
    if is_there(there, one.mark):
        return False
    for old in folder.glob(f"offline-run-*-{one.key}"):
        if old != there:
            shutil.rmtree(old)
    with replaced(there, one.mark) as part:
        _record(wandb, one, part)
        (made,) = (part / "wandb").glob("offline-run-*")
        for file in made.glob("*.wandb"):
            file.rename(part / file.name)
        shutil.rmtree(part / "wandb")
    return True


def _record(wandb: Any, one: Recorded, folder: Path) -> None:
    run = wandb.init(
        mode="offline",
        dir=str(folder),
        project=NOT_ALLOWED.sub("_", one.job.name)[:PROJECT] or "raymsa",
        group=one.run.group_key,
        job_type=one.run.variant,
        name=one.run.id,
        id=one.key,
        tags=[f"{name}:{one.tags[name]}"[:TAG] for name in ("job", "run", "variant", "seed", "state")],
        config={**one.params, **{f"raymsa.{name}": value for name, value in one.tags.items()}},
        reinit="create_new",
        settings=wandb.Settings(**SETTINGS, x_start_time=one.begun_at),
    )
    for moment in one.moments:
        epoch = {"epoch": moment.epoch} if moment.epoch is not None else {}
        run.log({**moment.values, **epoch, "_timestamp": moment.at}, step=moment.step)
    run.summary.update(one.finals)
    run.finish(exit_code=0 if one.run.state in OVER_WELL else 1)
