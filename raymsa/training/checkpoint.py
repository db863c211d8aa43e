"""Checkpoints: folders of safetensors, written under a temporary name and renamed.

    <run>/last-000123/   adapter/ (plain peft loads it)  head.safetensors  optimizer.safetensors  state.json
    <run>/best-000082/   the same without the optimizer

A folder with a final name is whole; of several, the one with the most steps counts.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file, save_file

from raymsa.errors import DataError
from raymsa.target import Target, from_plain, plain
from raymsa.training.loop import Position, Start
from raymsa.training.student import Student

T = TypeVar("T")


def save(run: Path, name: str, student: Student, position: Position, optimizer: torch.optim.Optimizer | None) -> Path:
    """Write `<run>/<name>-<step>` and remove older ones of that name; returns the folder.

    Raises OSError where it cannot be written: the older ones are as they were then.
    """
    final = run / f"{name}-{position.step:06d}"
    for left in run.glob(f".{name}-*.part"):  # of a process that was killed
        shutil.rmtree(left)
    part = run / f".{final.name}.part"
    part.mkdir(parents=True)
    try:
        _write(part, student, position, optimizer)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)  # it may be what fills the disk
        raise
    if final.exists():  # a run that goes on from an older point comes by again
        shutil.rmtree(final)
    part.rename(final)
    for old in _all(run, name):
        if old != final:
            shutil.rmtree(old)
    return final


def find(run: Path, name: str) -> Path | None:
    """The newest whole checkpoint of that name, or None."""
    return max(_all(run, name), default=None)


def position_of(folder: Path) -> Position:
    """The position a checkpoint was written at. Raises DataError when an older raymsa wrote it."""
    return _state(folder, "position", lambda raw: Position(**raw))


def adapter(folder: Path) -> Path | None:
    """The peft adapter in a checkpoint, if the run trained one."""
    path = folder / "adapter"
    return path if path.exists() else None


def target_of(folder: Path) -> Target:
    """What a checkpoint's model predicts. Raises DataError when an older raymsa wrote it."""
    return _state(folder, "target", from_plain)


def load_head(folder: Path, student: Student) -> None:
    """Put a checkpoint's head into the student."""
    if student.head is not None:
        student.head.load_state_dict(load_file(folder / "head.safetensors"))


def load_weights(folder: Path, student: Student) -> None:
    """Put a checkpoint's adapter and head into a student that is already built."""
    from peft import load_peft_weights, set_peft_model_state_dict

    load_head(folder, student)
    if (path := adapter(folder)) is not None:
        weights = load_peft_weights(str(path), device=str(student.thinker.device))
        set_peft_model_state_dict(student.thinker.model, weights)


def start(folder: Path) -> Start:
    """Where to go on, and how to put the optimizer back."""
    state = load_file(folder / "optimizer.safetensors")
    return Start(position_of(folder), lambda optimizer: _restore(optimizer, state))


def _state(folder: Path, key: str, made: Callable[[dict[str, Any]], T]) -> T:
    try:
        return made(json.loads((folder / "state.json").read_text())[key])
    except (KeyError, TypeError):  # a field that was not there yet, or had another name
        raise DataError(f"{folder}: was written by an older raymsa; train again") from None


def _all(run: Path, name: str) -> list[Path]:
    return [path for path in run.glob(f"{name}-*") if (path / "state.json").exists()]


def _write(part: Path, student: Student, position: Position, optimizer: torch.optim.Optimizer | None) -> None:
    if hasattr(student.thinker.model, "peft_config"):
        student.thinker.model.save_pretrained(part / "adapter", save_embedding_layers=False)
    if student.head is not None:
        save_file({k: v.cpu().contiguous() for k, v in student.head.state_dict().items()}, part / "head.safetensors")
    if optimizer is not None:
        save_file(_tensors(optimizer), part / "optimizer.safetensors")
    state = {"position": asdict(position), "target": plain(student.target), "readout": student.readout.model_dump()}
    (part / "state.json").write_text(json.dumps(state, indent=2))
    for path in part.rglob("*"):
        if path.is_file():
            _sync(path)


def _sync(path: Path) -> None:
    """To the disk, so that a machine that loses power never keeps a final name on half a file."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    state = optimizer.state_dict()["state"]
    return {
        # a copy of each: bitsandbytes' parameters share tables, and safetensors refuses what is shared
        f"{index}.{name}": torch.as_tensor(value).to("cpu", copy=True).contiguous()
        for index, item in state.items()
        for name, value in _flat(item)
    }


def _flat(item: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """One parameter's state; bitsandbytes puts most of its own into a mapping of its own."""
    for name, value in item.items():
        yield from value.items() if isinstance(value, dict) else [(name, value)]


def _restore(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    state: dict[int, dict[str, Any]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        # torch counts steps in a float32 tensor, bitsandbytes in a plain number
        state.setdefault(int(index), {})[name] = value.item() if value.dtype == torch.int64 else value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
