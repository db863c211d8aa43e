"""One run from its folder's state to its predictions: build, resume, train, score. Without Ray.

The run folder holds log.txt, the checkpoints, and at the end predictions.parquet. What happens on the way is told to
`report`, a dict at a time: the worker hands it to Ray Train, the driver writes it to the store.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from raymsa.causes import NO_MEMORY
from raymsa.clip import Batch, Clip
from raymsa.data.collate import WINDOWS_HELD, Collate, steps_in, steps_of_epoch, windows_before
from raymsa.data.groups import Clips, Plan, RowGroup, after, count, row_groups, shuffled
from raymsa.data.manifest import Manifest, target
from raymsa.errors import DataError, OutOfMemory
from raymsa.evaluation.metrics import measure
from raymsa.home import log_to
from raymsa.place import write_at_once
from raymsa.prompts import prompt_of
from raymsa.target import Target
from raymsa.thinker.backbone import Thinker
from raymsa.thinker.inputs import Encoder
from raymsa.thinker.load import load
from raymsa.training import checkpoint
from raymsa.training.evaluate import Prediction, error_of, score
from raymsa.training.loop import Feed, Position, Progress, fit, memory_bytes
from raymsa.training.predictions import write_predictions
from raymsa.training.room import wait_for_room
from raymsa.training.student import Student
from raymsa.training.towers import cached
from raymsa.words import duration

REPORT_EVERY_S = 2.0  # a step's figures wait at most this long for their report

Report = Callable[[dict[str, Any]], None]
Stream = Callable[[Plan], Clips]


class Work(NamedTuple):
    """What a run needs to know: its spec (one seed), and where clips come from and results go."""

    spec: Any  # JobSpec
    shards: Path
    manifest: Manifest
    folder: Path
    stopping: Callable[[], bool] = lambda: False  # asked after every step and batch; true ends it with a checkpoint


def execute(work: Work, device: torch.device, stream: Stream, report: Report) -> None:
    """Train (or go on training) and score one run; ends with predictions.parquet in the run folder.

    Raises TrainingError when the run cannot go on, Stopped when `work.stopping` said so.
    """
    work.folder.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    seed = work.spec.seeds[0]
    torch.manual_seed(seed)
    last = checkpoint.find(work.folder, "last")
    _keep_to_the_data(work, last)
    position = checkpoint.position_of(last) if last else Position()
    aim = target(work.manifest, work.spec.dataset.task)
    towers = work.spec.inputs.cache == "none"
    if not towers:
        _wait_for_room(work, device)
        work = work._replace(shards=_without_media(work, device))
    plan = planned(work, position)
    with closing(stream(plan.passes)) as clips:  # reading begins while the model is loaded
        _wait_for_room(work, device)
        student = build(work.spec, aim, device, last, towers)
        collate = collate_for(student, work.spec)
        watch = _Watch(work, student, report, position)
        feed = _feed(work, student, collate, clips, plan, watch)
        total = feed.steps_per_epoch * work.spec.train.epochs
        report({"trainable_parameters": student.trainable(), "steps_total": total, "resumed_at": position.step})
        watch.log(clips.about(WINDOWS_HELD * work.spec.train.window_clips))
        begins = f"{'goes on' if last else 'starts'} at step {position.step}"
        watch.log(f"{begins}; loaded in {time.monotonic() - begun:.1f} s")
        if work.spec.train.packing and not student.thinker.packing:
            kind = work.spec.readout.kind
            watch.log(f"train.packing: off, for `{kind}` puts blocks between the layers; its passes are padded")
        position = fit(student, work.spec.train, feed, watch, seed, checkpoint.start(last) if last else None)
        best = checkpoint.find(work.folder, "best") or checkpoint.save(work.folder, "best", student, position, None)
        checkpoint.load_weights(best, student)
        _score(work, student, collate, clips, plan, watch)
    if (wait := position.data_wait()) is not None:
        watch.log(f"waited for clips in {wait:.1%} of {duration(position.trained_s)} of training")
    ended = {"best_epoch": position.best_epoch, "data_wait": wait, "finished": True}
    report({"memory_bytes": memory_bytes(device), **ended})


def _without_media(work: Work, device: torch.device) -> Path:
    say = partial(log_to, work.folder / "log.txt")
    return cached(work.spec, work.manifest, work.shards, device, say, work.stopping)


def _wait_for_room(work: Work, device: torch.device) -> None:
    if device.type == "cuda":  # the run before may still be leaving
        wait_for_room(lambda: torch.cuda.mem_get_info(device), partial(log_to, work.folder / "log.txt"))


def _keep_to_the_data(work: Work, last: Path | None) -> None:
    """Raises DataError when a checkpoint is of other clips: going on would be training on a mixture."""
    mark = work.folder / "data.txt"
    before = mark.read_text(encoding="utf-8") if last and mark.exists() else work.manifest.digest
    if before != work.manifest.digest:
        raise DataError(
            f"{work.shards}: holds data {work.manifest.digest}, but this run has seen data {before}; "
            "submit the job anew, or put the shards back"
        )
    write_at_once(mark, work.manifest.digest)  # half of it would be other clips


class Planned(NamedTuple):
    """All that a run still reads: train and valid clips in turn for every epoch left, then the splits to be scored."""

    passes: Plan
    train_clips: int
    epoch: int  # the first one left
    scoring: int  # number of the first pass that is only scored


def planned(work: Work, position: Position) -> Planned:
    """What is left to read at a position. Raises DataError when training lacks clips."""
    train, seed = work.spec.train, work.spec.seeds[0]
    groups = {split: _groups(work, split) for split in {"train", "valid", *work.spec.evaluate.splits}}
    empty = [split for split in ("train", "valid") if not count(groups[split])]
    if train.epochs and empty:
        raise DataError(f"{work.shards}: no {' and no '.join(empty)} clips; training needs both train and valid")
    over = position.stale() >= train.patience
    passes: Plan = []
    for epoch in range(position.epoch, 0 if over else train.epochs):
        passes += [shuffled(groups["train"], seed, epoch), groups["valid"]]
    if passes:
        done = windows_before(position.step_in_epoch, train.window_clips, train.batch_clips)
        passes[0] = after(passes[0], done * train.window_clips)
    scored = [groups[split] for split in work.spec.evaluate.splits]
    return Planned([*passes, *scored], count(groups["train"]), position.epoch, len(passes))


def build(spec: Any, target: Target, device: torch.device, saved: Path | None, towers: bool = True) -> Student:
    """The student of a spec: fresh, or with the adapter and head of a checkpoint folder.

    Without its towers it reads clips whose vectors are known already (`training.towers`).
    """
    adapter = checkpoint.adapter(saved) if saved else None
    lora = spec.lora if spec.train.epochs else None
    modalities = spec.inputs.modalities if towers else ("text",)
    thinker = load(spec.model, lora, modalities, spec.readout.needs_lm_head, device, adapter)
    student = student_of(thinker, spec, target)
    if saved:
        checkpoint.load_head(saved, student)
    student.train_mode(False)
    return student


def student_of(thinker: Thinker, spec: Any, target: Target) -> Student:
    """A loaded Thinker with a new head of the spec's readout; its passes are packed where the spec says so."""
    if spec.train.packing and spec.readout.packs():
        thinker.pack()
    head = spec.readout.head(thinker.width, target)
    on_device = head.to(thinker.device) if head is not None else None
    return Student(thinker, spec.readout, on_device, target, spec.model)


def collate_for(student: Student, spec: Any) -> Collate:
    """How this student's clips become tensors."""
    folder = student.thinker.folder
    words = (spec.inputs, prompt_of(spec), student.target, spec.dataset.language)
    encoder = Encoder(folder.tokenizer, folder.extractor, folder.config, *words)
    return Collate(encoder, student.readout, for_gpu=student.thinker.device.type == "cuda")


def training_steps(
    spec: Any, student: Student, collate: Collate, clips: Iterable[Clip], epoch: int, skip: int
) -> Iterator[list[Batch]]:
    """The optimizer steps of an epoch, each a list of batches."""
    seed, packed = spec.seeds[0] * 10_007 + epoch, student.thinker.packing
    steps = steps_of_epoch(clips, collate.measure, spec.train, seed, skip, packed)
    return collate.ahead([collate(some, answers=True) for some in passes] for passes in steps)


def _feed(work: Work, student: Student, collate: Collate, clips: Clips, plan: Planned, watch: _Watch) -> Feed:
    """The training loop's view of the plan: for every epoch a train pass and a valid pass."""
    train = work.spec.train
    per_epoch = steps_in(plan.train_clips, train.window_clips, train.batch_clips)
    valid = iter(range(1, plan.scoring, 2))

    def epoch_steps(epoch: int, skip: int) -> Iterator[list[Batch]]:
        return training_steps(work.spec, student, collate, clips.of(2 * (epoch - plan.epoch)), epoch, skip)

    def valid_error() -> float:
        found = list(_scored(work, student, collate, clips.of(next(valid))))
        watch.valid = measure(
            student.target.profile, [one.reading.score for one in found], [one.label for one in found]
        )
        return student.rule.turned(watch.valid[student.rule.metric])

    return Feed(epoch_steps, per_epoch, valid_error)


def _groups(work: Work, split: str) -> list[RowGroup]:
    return row_groups(work.shards, [file.name for file in work.manifest.of(split)])


def _score(work: Work, student: Student, collate: Collate, clips: Clips, plan: Planned, watch: _Watch) -> None:
    rows: list[dict[str, Any]] = []
    for number, split in enumerate(work.spec.evaluate.splits, plan.scoring):
        begun = time.monotonic()
        found = list(_scored(work, student, collate, clips.of(number)))
        took = time.monotonic() - begun
        rows += [p.row(split) for p in found]
        result = _shown(student, error_of(student, found))
        watch.log(f"scored {split}: {len(found)} clips in {duration(took)}, {result}")
    write_predictions(work.folder, rows)


def _scored(work: Work, student: Student, collate: Collate, clips: Iterable[Clip]) -> Iterator[Prediction]:
    try:
        yield from score(student, collate, clips, work.spec.train, work.stopping)
    except RuntimeError as error:
        if not any(words in str(error) for words in NO_MEMORY):
            raise
        advice = f"lower train.batch_tokens (now {work.spec.train.batch_tokens})"
        raise OutOfMemory(f"out of memory while scoring; {advice} ({str(error).splitlines()[0]})") from None


def _shown(student: Student, error: float) -> str:
    return f"{student.rule.words} {student.rule.turned(error):.4f}"


class _Watch:
    """The loop's listener: log lines, reports, checkpoints."""

    def __init__(self, work: Work, student: Student, report: Report, start: Position) -> None:
        self._folder, self._train, self._student, self._report = work.folder, work.spec.train, student, report
        self.stopping = work.stopping
        self.valid: dict[str, float] = {}  # all metrics of the latest epoch
        self._device = student.thinker.device
        self._file = work.folder / "steps.jsonl"
        # What was done before the checkpoint is told again: the report of it may have died with the worker.
        self._pending = [entry for entry in self._kept() if entry["step"] <= start.step]
        write_at_once(self._file, "".join(json.dumps(entry) + "\n" for entry in self._pending))
        self._told = time.monotonic()

    def log(self, line: str) -> None:
        log_to(self._folder / "log.txt", line)

    def step(self, progress: Progress) -> None:
        p = progress.position
        values = {k: getattr(progress, k) for k in ("loss", "grad_norm", "clips_per_s", "tokens_per_s", "data_wait")}
        self._keep({"step": p.step, "epoch": p.epoch + 1, "values": values})
        if time.monotonic() - self._told >= REPORT_EVERY_S or p.step == progress.steps:
            self._tell(progress.line(), left_s=progress.left_s)

    def epoch(self, position: Position, optimizer: torch.optim.Optimizer, valid_error: float, best: bool) -> None:
        rule = self._student.rule
        values = {f"valid_{name}": value for name, value in self.valid.items()}
        self._keep({"step": position.step, "epoch": position.epoch, "values": values})
        if best:
            checkpoint.save(self._folder, "best", self._student, position, None)
        checkpoint.save(self._folder, "last", self._student, position, optimizer)
        line = f"epoch {position.epoch} done: valid {_shown(self._student, valid_error)}"
        best_value = rule.turned(position.best_valid_error)
        line += " (best so far)" if best else f" (best {best_value:.4f}, epoch {position.best_epoch})"
        best_so_far = {"best_epoch": position.best_epoch, "best_valid_error": position.best_valid_error}
        last = position.epoch == self._train.epochs or position.stale() >= self._train.patience
        self._tell(line, valid_error=valid_error, epoch=position.epoch, last=last, **values, **best_so_far)

    def pause(self, position: Position, optimizer: torch.optim.Optimizer) -> None:
        checkpoint.save(self._folder, "last", self._student, position, optimizer)
        self.log(f"resume point at step {position.step}")

    def _keep(self, entry: dict[str, Any]) -> None:
        self._pending.append(entry)
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def _kept(self) -> list[dict[str, Any]]:
        """Entries on file; the last line may be half of one."""
        lines = self._file.read_text(encoding="utf-8").splitlines() if self._file.exists() else []
        return [json.loads(line) for line in lines if line.endswith("}}")]

    def _tell(self, line: str, **more: Any) -> None:
        self.log(line)
        self._report({"steps": self._pending, "line": line, "memory_bytes": memory_bytes(self._device), **more})
        self._pending, self._told = [], time.monotonic()
