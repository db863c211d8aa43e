"""Which runs a person means by `JOB/VARIANT`, a job, a run or a group's key, and what they said of the same clips."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raymsa.errors import DataError, NotFinished, NotFound, UsageError
from raymsa.report.members import confirming, members
from raymsa.store import Store, queries
from raymsa.target import task_of
from raymsa.words import visible

SHOWN = 3  # clips in an error


@dataclass(frozen=True)
class Side:
    """One group: its runs that are done, by seed. `asked` is how the person named it, `unfinished` how many of its runs
    are not done, `repeated` the seeds that were run more than once, of which the newest run counts. `trial`: a search
    chose it by that very run. Of finished runs of the same settings on the same clips, `fresh` are the seeds of those
    that are no trials, and `tried` its own seeds with which a search tried them, too."""

    asked: str
    name: str
    spec: Mapping[str, Any]
    group_key: str
    data_digest: str | None
    runs: tuple[str, ...]
    seeds: tuple[int, ...]
    unfinished: int
    repeated: tuple[int, ...]
    trial: bool
    tried: tuple[int, ...]
    fresh: tuple[int, ...]

    @property
    def profile(self) -> str:
        """The metric rules."""
        return task_of(self.spec).profile


@dataclass(frozen=True)
class Answers:
    """What a group's runs said of a split: scores [S, C] by seed, labels [C], ids of clips [C], and the share of all
    answers that could not be parsed."""

    score_SC: NDArray[np.float32]
    label_C: NDArray[np.float32]
    clips: tuple[str, ...]
    unparsable: float


def side(store: Store, asked: str) -> Side:
    """The group that a person names: `JOB/VARIANT` or `JOB:VARIANT`, a job of one variant, a run, a group's key.

    Jobs, runs and keys may be the beginning of an id, jobs also names. Raises NotFound, NotFinished when no run of it
    is done, UsageError when several fit, or runs are on different clips.
    """
    job_name, *variant = re.split("[/:]", asked, maxsplit=1)
    rows = _of_variant(store, queries.job(store, job_name), variant[0]) if variant else _of_word(store, asked)
    done = [row for row in rows if row.state == "done"]
    if not done:
        states = sorted({row.state for row in rows})
        raise NotFinished(f"{asked}: no run of it is done ({', '.join(states) or 'none has begun'})")
    alike = queries.finished(store, groups=sorted({row.group_key for row in done}))
    found = members(done, _jobs(store, alike), alike)
    if len(found) > 1:
        digests = ", ".join(sorted({one.data_digest or "not recorded" for one in found}))
        raise UsageError(f"{asked}: its runs are on different clips (data digests {digests}); name one run")
    (group,) = found
    first = group.runs[0]
    return Side(
        asked=asked,
        name=_name(store, first, len(group.runs)),
        spec=first.spec,
        group_key=group.key,
        data_digest=group.data_digest,
        runs=tuple(run.id for run in group.runs),
        seeds=tuple(run.seed for run in group.runs),
        unfinished=sum(row.state not in ("done", "pruned") for row in rows),
        repeated=group.repeated,
        trial=group.trial,
        tried=group.tried,
        fresh=group.fresh,
    )


def answers(store: Store, one: Side, split: str) -> Answers:
    """What its runs said. Raises UsageError when a run has nothing of this split, or other clips than the others."""
    found = [queries.predictions(store, run_id, split) for run_id in one.runs]
    for run_id, rows in zip(one.runs, found, strict=True):
        if not rows:
            raise UsageError(visible(f"{run_id} has no predictions of {split}; evaluate.splits is without it"))
    made = [_answers(rows) for rows in found]
    for run_id, other in zip(one.runs, made, strict=True):
        if reason := difference(made[0], other):
            raise UsageError(visible(f"{one.runs[0]} and {run_id} cannot stand in one group: {reason}"))
    scores = np.concatenate([each.score_SC for each in made])
    return Answers(scores, made[0].label_C, made[0].clips, float(np.mean([each.unparsable for each in made])))


def difference(one: Answers, other: Answers) -> str:
    """Why two were not asked about the same clips; empty when they were."""
    if one.clips != other.clips:
        left, right = (sorted({*a.clips} - {*b.clips}) for a, b in ((one, other), (other, one)))
        return f"their clips differ: {_some(left)} only in the first, {_some(right)} only in the second"
    differ = np.flatnonzero(one.label_C != other.label_C)
    if len(differ):
        at = differ[0]
        return (
            f"labels of {len(differ)} clips differ: {one.clips[at]!r} is {one.label_C[at]:g} in the first and "
            f"{other.label_C[at]:g} in the second"
        )
    return ""


def videos(one: Side, clips: Sequence[str], shards: str | None = None) -> list[str] | None:
    """The video of each clip: by its id, else by the shards, where they are at hand; None if neither says.

    Where every clip has a video of its own, nothing is known of videos either. `shards` is the folder that a person
    named. Raises UsageError when it has other clips.
    """
    from raymsa.spec import JobSpec

    found: list[str | None] = []
    with suppress(ValueError):  # a spec of an older raymsa
        job: Any = JobSpec.model_validate(one.spec)
        found = [job.dataset.video_of(clip) for clip in clips]
    if not found or None in found:
        found = _of_shards(one, clips, shards)
    named = [video for video in found if video]
    return named if len(named) == len(clips) > len(set(named)) else None


def _of_shards(one: Side, clips: Sequence[str], shards: str | None) -> list[str | None]:
    from raymsa.data.at_hand import at_hand
    from raymsa.data.columns import columns

    try:
        table = columns(*at_hand(one.data_digest, shards), ["id", "video_id"])
    except (DataError, OSError) as error:
        if shards is not None:
            raise UsageError(f"--shards {shards}: {error}") from None
        return []
    video = dict(zip(table["id"].to_pylist(), table["video_id"].to_pylist(), strict=True))
    return [video.get(clip) for clip in clips]


def _of_word(store: Store, asked: str) -> list[queries.RunRow]:
    """Runs of a job, else of a group, else one run."""
    with suppress(NotFound):
        return _of_job(store, queries.job(store, asked))
    with suppress(NotFound):
        return queries.group(store, queries.group_key(store, asked))
    with suppress(NotFound):
        return [queries.run(store, asked)]
    raise NotFound(f"no job, group or run {asked!r} in the store")


def _of_job(store: Store, job: queries.Job) -> list[queries.RunRow]:
    rows = queries.runs(store, job.id)
    variants = sorted({row.variant for row in rows} | set(job.spec.get("variants") or {}))
    if len(variants) > 1:
        shown = ", ".join(f"{job.name}/{variant}" for variant in variants[: queries.CANDIDATES])
        more = ", ..." if len(variants) > queries.CANDIDATES else ""
        raise UsageError(visible(f"job {job.id} ({job.name}) has several variants; name one: {shown}{more}"))
    return _one_setting(job, rows, job.name)


def _of_variant(store: Store, job: queries.Job, variant: str) -> list[queries.RunRow]:
    rows = [row for row in queries.runs(store, job.id) if row.variant == variant]
    if not rows and variant not in (job.spec.get("variants") or {}):
        known = sorted({row.variant for row in queries.runs(store, job.id)} | set(job.spec.get("variants") or {}))
        has = ", ".join(known) or "none yet"
        raise NotFound(visible(f"job {job.id} ({job.name}) has no variant {variant!r}; it has {has}"))
    return _one_setting(job, rows, f"{job.name}/{variant}")


def _one_setting(job: queries.Job, rows: list[queries.RunRow], name: str) -> list[queries.RunRow]:
    """Of a search, the runs that confirm a setting, where there are some. Raises UsageError for several settings."""
    rows = confirming(rows, {job.id: job})
    keys = {row.group_key for row in rows}
    if len(keys) > 1:
        raise UsageError(visible(f"{name} holds {len(keys)} settings of a search; name a run or a group's key"))
    return rows


def _jobs(store: Store, rows: Sequence[queries.RunRow]) -> dict[str, queries.Job]:
    return {job.id: job for job in queries.jobs(store, sorted({row.job_id for row in rows}))}


def _name(store: Store, row: queries.RunRow, seeds: int) -> str:
    job = queries.job(store, row.job_id)
    return f"{job.name}/{row.variant}" + (f" seed {row.seed}" if seeds == 1 else "")


def _answers(rows: list[queries.Prediction]) -> Answers:
    return Answers(
        np.array([[row.score for row in rows]], np.float32),
        np.array([row.label for row in rows], np.float32),
        tuple(row.clip_id for row in rows),
        float(np.mean([not row.parsed for row in rows])),
    )


def _some(clips: list[str]) -> str:
    shown = ", ".join(map(repr, clips[:SHOWN]))
    return f"{len(clips)} ({shown}{', ...' if len(clips) > SHOWN else ''})" if clips else "none"
