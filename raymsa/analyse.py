"""The hidden states of a run's clips, tuned and before tuning: how they lie to each other.

Axes: N clips, D numbers of a hidden state.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raymsa.errors import DataError, UsageError
from raymsa.evaluation.components import components
from raymsa.evaluation.neighbours import Distance, neighbourhoods
from raymsa.predict import best_of, spec_of, student_of
from raymsa.report.latent import Latent, Space
from raymsa.store import Store, queries
from raymsa.target import Classification

if TYPE_CHECKING:
    from raymsa.clip import Batch
    from raymsa.training.student import Student

FILE = "hidden_{split}.parquet"
TUNED, BASE = "tuned", "base"  # the run's Thinker, and the same without its adapters
LEAST = 3  # clips: of two, each is the other's neighbour whatever they are


@dataclass(frozen=True)
class Hidden:
    """The final-layer hidden state that each clip's answer is read from, in float32; `states` has one array per name.

    `tuned` is not there where a run trained no adapters.
    """

    run_id: str
    readout: str
    split: str
    range: tuple[float, float]  # of the labels
    clip_ids: list[str]
    label_N: np.ndarray
    states: dict[str, np.ndarray]  # name -> [N, D]


def hidden(store: Store, run_prefix: str, split: str, say: Callable[[str], None], shards: str | None = None) -> Hidden:
    """One forward pass over the run's clips for each state; `shards` is where a person says they are.

    Raises NotFinished when the run has no checkpoint, SpecError or DataError when another raymsa made it or its shards
    are not those that it was trained on, UsageError for classes and for a split with too few clips.
    """
    run = queries.run(store, run_prefix)  # before torch: a misspelt run is answered at once
    spec = spec_of(run)
    task = spec.dataset.task
    if isinstance(task, Classification):
        raise UsageError(f"run {run.id} predicts classes; analyse compares scores: give a run that predicts one")
    best = best_of(run)
    clips, count = _clips(split, run, shards)
    say(f"loading run {run.id} on {spec.model.path}")
    from raymsa.training.evaluate import each
    from raymsa.training.run import collate_for

    student = student_of(spec, best)
    say(f"reading the hidden states of {count:,} clips of {split}")
    packed = student.thinker.packing  # nothing is decoded, whatever the readout
    read = partial(_states, student)
    found = list(each(read, collate_for(student, spec), clips.of(0), spec.train, packed))
    return Hidden(
        run.id,
        spec.readout.kind,
        split,
        (task.low, task.high),
        [clip.id for clip, _ in found],
        np.array([clip.label for clip, _ in found]),
        {name: np.stack([states[name] for _, states in found]) for name in found[0][1]},
    )


def latent(found: Hidden, ks: list[int], distance: Distance, permutations: int, seed: int) -> Latent:
    """How the clips lie to each other in each space. Raises UsageError for a k that is too large."""
    spaces = []
    for name, state_ND in found.states.items():
        try:
            near = neighbourhoods(state_ND, found.label_N, ks, distance, permutations, seed)
        except ValueError as error:
            raise UsageError(f"run {found.run_id}, {found.split}, {name}: {error}") from None
        place_N2, share_2 = components(state_ND, found.label_N)
        spaces.append(Space(name, near, place_N2, share_2, state_ND.shape[1]))
    about = (found.run_id, found.readout, found.split, found.range, found.label_N)
    return Latent(*about, distance, permutations, seed, spaces)


def save(found: Hidden, folder: Path) -> Path:
    """Write `hidden_SPLIT.parquet`: clip_id, label, and a list of float32 for each state. Raises UsageError."""
    size = next(iter(found.states.values())).shape[1]
    columns = {"clip_id": pa.array(found.clip_ids), "label": pa.array(found.label_N, pa.float64())} | {
        name: pa.FixedSizeListArray.from_arrays(pa.array(state_ND.ravel()), size)
        for name, state_ND in found.states.items()
    }
    path = folder / FILE.format(split=found.split)
    part = path.with_name(f".{path.name}.part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns, metadata={"run": found.run_id}), part)
        part.replace(path)
    except OSError as error:
        raise UsageError(f"--out: {folder}: cannot be written: {error.strerror}") from None
    return path


def _states(student: Student, batch: Batch) -> list[dict[str, np.ndarray]]:
    """Of each clip, by name."""
    states = {TUNED: student.states(batch)} if student.thinker.adapted else {}
    with student.thinker.without_adapters():
        states[BASE] = student.states(batch)
    return [dict(zip(states, some, strict=True)) for some in zip(*states.values(), strict=True)]


def _clips(split: str, run: queries.RunRow, shards: str | None) -> tuple[Any, int]:
    """The clips of a split as the run has seen them, and how many they are."""
    from raymsa.data.at_hand import at_hand
    from raymsa.data.groups import count, read, row_groups

    try:
        folder, made = at_hand(run.data_digest, shards)
    except DataError as error:
        raise DataError(f"run {run.id}: {error}") from None
    groups = row_groups(folder, [file.name for file in made.of(split)])
    if count(groups) < LEAST:
        raise UsageError(f"--split {split}: {folder} has {count(groups)} clips of it; give one with at least {LEAST}")
    return read([groups]), count(groups)
