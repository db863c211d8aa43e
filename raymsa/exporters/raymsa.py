"""Another raymsa: the runs' rows, and with checkpoints all that they left, for `raymsa import` there."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from raymsa.errors import RaymsaError
from raymsa.exporters.base import Done, Exporter, Recorded
from raymsa.parcel import ROWS, left_by, write_contents
from raymsa.place import new_folder
from raymsa.store.exports import export


class Raymsa(Exporter):
    """A parcel: see raymsa/parcel.py."""

    kind: Literal["raymsa"] = "raymsa"
    with_checkpoints: bool = False

    def write(self, runs: Sequence[Recorded], out: Path) -> Done:
        """A new folder with the runs. Raises UsageError when something is there already."""
        ids = [one.run.id for one in runs]
        with new_folder(out) as folder:
            export(runs[0].store, folder / ROWS, sorted({one.job.id for one in runs}), ids)
            places = [pair for one in runs for pair in self._copy(one, folder)]
            write_contents(folder, ids, dict(places))
        return Done(ids, [], f"raymsa import {shlex.quote(str(out))}  (on the other machine)")

    def _copy(self, one: Recorded, folder: Path) -> list[tuple[str, str]]:
        """What a run left, as (name in the parcel, place under runs/); its log always."""
        places = []
        for path, name in left_by(one.run.id, one.run.state == "done"):
            if name == "log.txt" or self.with_checkpoints:
                to = folder / "runs" / one.run.id / name
                to.parent.mkdir(parents=True, exist_ok=True)
                _copy(path, to)
                places.append((f"runs/{one.run.id}/{name}", f"{one.run.id}/{name}"))
        return places


def _copy(path: Path, to: Path) -> None:
    try:
        shutil.copyfile(path, to)
    except FileNotFoundError:  # a run that trains replaces its checkpoints
        raise RaymsaError(f"{path}: was replaced meanwhile, because the run goes on; export it again") from None
