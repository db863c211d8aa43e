"""Raw clips to shards, through Ray Data: planned ahead, one task per shard, resumed after a kill, the manifest last."""

from __future__ import annotations

import contextlib
import csv
import errno
import fcntl
import io
import json
import logging
import re
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from raymsa.clip import SPLITS, RawClip, Reject
from raymsa.data import manifest as manifests
from raymsa.data.manifest import REJECTS, Manifest, ShardFile, differences, shaping, write_at_once
from raymsa.data.plan import plan_shards
from raymsa.data.shardfile import PARTS, ShardTask, Written, kept, read_journal, write_shard
from raymsa.datasets.base import Layout
from raymsa.errors import Cancelled, DataError
from raymsa.target import Labels

TICK_S = 2.0
NOTES = "notes.csv"
SHARD_NAME = re.compile(rf"({'|'.join(SPLITS)})-\d{{5}}\.parquet")
Say = Callable[[str], None]
Stop = Callable[[], bool]


def prepare(dataset: Layout, raw: Path, out: Path, say: Say, stop: Stop = lambda: False) -> Manifest:
    """The shards of a dataset in `out`, made when they are not there yet; the caller has started Ray.

    Finished shards of an earlier, interrupted call are kept; `stop` is asked after each. Raises Cancelled then, and
    DataError, in one line, when the raw folder or its labels are unusable, when `out` holds other clips, or when the
    disk is full.
    """
    raw, out = raw.expanduser().absolute(), out.expanduser().absolute()
    try:
        there = _prepared(dataset, out, say)
        if there:
            return there
        rows = _rows(dataset, raw, say)
        out.mkdir(parents=True, exist_ok=True)
        with _locked(out):
            return _prepared(dataset, out, say) or _prepare(dataset, raw, out, rows, say, stop)
    except OSError as error:
        raise DataError(_disk_line(error, out)) from None


def _prepare(dataset: Layout, raw: Path, out: Path, rows: list[RawClip | Reject], say: Say, stop: Stop) -> Manifest:
    _claim(dataset, out)
    plan = plan_shards(rows, raw, out, dataset.media)
    done = _write_shards(plan.tasks, out, say, stop)
    rejects = _all_rejects(plan.rows, done)
    write_at_once(out / REJECTS, _csv(("id", "media", "reason"), [(r.id, r.media, r.reason) for r in rejects]))
    notes = [note for written in done for note in written.notes]
    if notes:
        write_at_once(out / NOTES, _csv(("id", "note"), notes))
    if not any(written.rows for written in done):
        raise DataError(_nothing_left(raw, out, rejects))
    made = _manifest(dataset, plan.rows, done, rejects)
    _drop_strays(out, made)
    manifests.write(out, made)
    shutil.rmtree(out / PARTS, ignore_errors=True)
    _say_result(dataset, made, out, say)
    return made


def _prepared(dataset: Layout, out: Path, say: Say) -> Manifest | None:
    if not (out / manifests.FILE).exists():
        return None
    there = manifests.read(out)
    differs = differences(shaping(there.settings), shaping(_settings(dataset)))
    if differs:
        raise DataError(f"{out}: holds clips prepared with other settings ({differs}); give another --out DIR")
    shutil.rmtree(out / PARTS, ignore_errors=True)  # of a call that was killed after its manifest
    say(f"{out}: prepared already, {sum(there.counts.values())} clips; delete the folder to prepare again")
    return there


def _rows(dataset: Layout, raw: Path, say: Say) -> list[RawClip | Reject]:
    dataset.make(raw)
    if not raw.is_dir():
        raise DataError(
            f"{raw}: no such folder; the raw folder of a `{getattr(dataset, 'kind', dataset.name)}` dataset holds "
            f"{dataset.expects}; give it with --raw DIR or --set dataset.raw=DIR"
        )
    rows = list(dataset.clips(raw))
    if not rows:
        raise DataError(f"{raw}: the label file has no rows")
    say(f"{dataset.name}: {len(rows)} rows in {raw}")
    return rows


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[None]:
    """One prepare per folder; the lock goes with the process, however that ends."""
    with (out / ".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(
                f"{out}: another prepare is writing there; wait for it, or give another --out DIR"
            ) from None
        yield


def _claim(dataset: Layout, out: Path) -> None:
    """Mark `out` as ours, with the settings. Raises DataError when it holds somebody else's shards."""
    path = out / PARTS / "settings.json"
    settings = shaping(_settings(dataset))
    if path.exists():
        differs = differences(json.loads(path.read_text(encoding="utf-8")), settings)
        if differs:
            raise DataError(
                f"{out}: holds an unfinished prepare with other settings ({differs}); "
                "delete it or give another --out DIR"
            )
        return
    if any(SHARD_NAME.fullmatch(file.name) for file in out.iterdir()):
        raise DataError(f"{out}: holds shards without a manifest; delete it or give another --out DIR")
    path.parent.mkdir(exist_ok=True)
    write_at_once(path, json.dumps(settings))


def _write_shards(tasks: list[ShardTask], out: Path, say: Say, stop: Stop) -> list[Written]:
    """Each task's result, in the order of the tasks; those that an earlier call finished are not done again."""
    found = [(task, kept(task)) for task in tasks]
    done = {task.name: written for task, written in found if written}
    left = [task for task, written in found if not written]
    if done:
        say(f"{len(done)} of {len(tasks)} shards are there already")
    _drop_parts(out)
    if left:
        try:
            with _ticking(tasks, done, say):
                for written in _run(left):
                    done[written.name] = written
                    if stop() and len(done) < len(tasks):
                        raise Cancelled(f"{out}: stopped after {len(done)} of {len(tasks)} shards; they are kept")
        finally:
            _drop_parts(out)
    return [done[task.name] for task in tasks]


def _drop_parts(out: Path) -> None:
    """Remove what tasks that were ended in the middle left: it may be what fills the disk."""
    for part in (out / PARTS).glob("*.part"):
        part.unlink(missing_ok=True)


def _run(tasks: list[ShardTask]) -> Iterator[Written]:
    """The tasks' results as they finish, from one Ray Data execution."""
    import ray
    from ray.exceptions import RayError

    items = [{"task": task.model_dump_json()} for task in tasks]
    shown = ray.data.DataContext.get_current()
    shown.enable_progress_bars = shown.print_on_execution_start = False  # the lines of `say` are the progress
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        results = ray.data.from_items(items, override_num_blocks=len(items)).map(_task, num_cpus=1)
        for row in results.iter_rows():
            if row["error"]:
                raise DataError(row["error"])
            yield Written.model_validate_json(row["written"])
    except RayError as error:
        reason = str(error).strip().splitlines()[-1]
        raise DataError(
            f"{tasks[0].out}: a task of Ray Data failed: {reason}; run again: what is done is kept"
        ) from None


def _task(row: dict[str, Any]) -> dict[str, Any]:
    """What Ray Data runs, one row per shard; a full disk comes back as one line instead of a traceback."""
    task = ShardTask.model_validate_json(row["task"])
    try:
        return {"written": write_shard(task).model_dump_json(), "error": ""}
    except OSError as error:
        return {"written": "", "error": _disk_line(error, task.out)}


@contextlib.contextmanager
def _ticking(tasks: list[ShardTask], done: dict[str, Written], say: Say) -> Iterator[None]:
    """Progress lines while the tasks run; how far each one is stands in its journal."""
    stop = threading.Event()
    total, before = sum(len(task.clips) for task in tasks), sum(len(t.clips) for t in tasks if t.name in done)

    def tick() -> None:
        began = time.monotonic()
        while not stop.wait(TICK_S):
            clips, rejects = _progress(tasks, done)
            if clips == before:
                began = time.monotonic()  # workers are still starting, which says nothing about the rate
            rate = (clips - before) / max(TICK_S, time.monotonic() - began)
            say(f"{clips} of {total} clips, {rate:.1f} clips/s, {rejects} rejected")

    thread = threading.Thread(target=tick, name="prepare-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _progress(tasks: list[ShardTask], done: dict[str, Written]) -> tuple[int, int]:
    clips = rejects = 0
    for task in tasks:
        written = done.get(task.name)
        journal = None if written else read_journal(task)
        clips += len(task.clips) if journal is None else journal.done
        rejects += len(written.rejects) if written else journal.rejects if journal else 0
    return clips, rejects


def _all_rejects(rows: list[RawClip | Reject], done: list[Written]) -> list[Reject]:
    """Every reject once, in the order of the label file."""
    refused = {reject.id: reject for written in done for reject in written.rejects}
    found = [row if isinstance(row, Reject) else refused.get(row.id) for row in rows]
    return [reject for reject in found if reject]


def _manifest(dataset: Layout, rows: list[RawClip | Reject], done: list[Written], rejects: list[Reject]) -> Manifest:
    files = tuple(
        ShardFile(name=w.name, split=w.split, rows=w.rows, bytes=w.bytes, sha256=w.sha256) for w in done if w.rows
    )
    settings = _settings(dataset)
    return Manifest(
        name=dataset.name,
        digest=manifests.digest_of(files, shaping(settings)),
        counts=_per_split(done, "rows"),
        without_sound=_per_split(done, "without_sound"),
        without_picture=_per_split(done, "without_picture"),
        cut_sound=sum(w.cut_sound for w in done),
        damaged=len({clip for w in done for clip, _ in w.notes}),
        rejects=len(rejects),
        labels=_labels(dataset, rows, {reject.id for w in done for reject in w.rejects}),
        settings=settings,
        versions=manifests.versions(),
        files=files,
    )


def _per_split(done: list[Written], field: str) -> dict[str, int]:
    return {split: sum(getattr(w, field) for w in done if w.split == split) for split in SPLITS}


def _labels(dataset: Layout, rows: list[RawClip | Reject], refused: set[str]) -> Labels | None:
    clips = (row for row in rows if isinstance(row, RawClip) and row.id not in refused)
    labels = [clip.label for clip in clips if clip.split == "train"]
    return dataset.task.learned(labels) if labels else None


def _settings(dataset: Layout) -> dict[str, Any]:
    return dataset.model_dump(mode="json", exclude={"raw", "shards"})


def _csv(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()


def _drop_strays(out: Path, made: Manifest) -> None:
    """Shards of an interrupted call whose raw folder had other rows; `_claim` has seen that they are ours."""
    names = {file.name for file in made.files}
    for path in list(out.iterdir()):
        if SHARD_NAME.fullmatch(path.name) and path.name not in names:
            path.unlink()


def _nothing_left(raw: Path, out: Path, rejects: list[Reject]) -> str:
    reason, times = Counter(reject.reason for reject in rejects).most_common(1)[0]
    return f"{raw}: no clip is left of {len(rejects)} rows; most frequent: {reason} ({times}); see {out / REJECTS}"


def _disk_line(error: OSError, out: Path) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{out}: no space left on the disk; free some and run again: finished shards are kept"
    return f"{error.filename or out}: {error.strerror or error}"


def _say_result(dataset: Layout, made: Manifest, out: Path, say: Say) -> None:
    for split, published in dataset.published.items():
        here = made.counts[split]
        if here != published:
            how = f"{abs(here - published)} {'fewer' if here < published else 'more'}"
            see = f"; see {REJECTS}" if made.rejects else ""
            say(f"warning: {split} has {here} clips, published are {published} ({how}{see})")
    megabytes = sum(file.bytes for file in made.files) / 1e6
    counts = ", ".join(f"{split} {count}" for split, count in made.counts.items())
    shards = f"{len(made.files)} shard{'s' if len(made.files) > 1 else ''}"
    say(f"{out}: {counts}; {made.rejects} rejected; {shards}, {megabytes:.1f} MB; data {made.digest}")
