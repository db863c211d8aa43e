"""What the tests of faults share: a quick job on shards that are made without Ray, and what must hold after a fault."""

import json
import os
import re
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raymsa import queue
from raymsa.clip import SHARD_SCHEMA, to_row
from raymsa.data import manifest as manifests
from raymsa.data.folder import settings_of
from raymsa.datasets.table import Columns, Table
from raymsa.driver import Driver, submit
from raymsa.home import run_dir
from raymsa.spec import load_job
from raymsa.store import Store, queries
from raymsa.target import Labels
from raymsa.training import checkpoint
from tests.clips import clip
from tests.jobs import job_file, raymsa, wait_for

DATASET = Table(name="words", columns=Columns(media="file"))
COUNTS = {"train": 40, "valid": 8, "test": 8}
SLOW_TO_SCORE = {**COUNTS, "test": 4000}
FOR_EVER = {"epochs": 100_000, "patience": 100_000}


def make_shards(folder: Path, counts: dict[str, int]) -> Path:
    """A prepared dataset of words alone."""
    folder.mkdir(parents=True)
    files = []
    for split, count in counts.items():
        path = folder / f"{split}-00000.parquet"
        made = [clip(f"{split}{i}", "good " * (1 + i % 4), 0, 0.0, label=i % 7 - 3.0) for i in range(count)]
        rows = [to_row(replace(one, split=split)) for one in made]
        pq.write_table(pa.Table.from_pylist(rows, SHARD_SCHEMA), path, row_group_size=256)
        size = path.stat().st_size
        files.append(manifests.ShardFile(name=path.name, split=split, rows=count, bytes=size, sha256=""))
    none = dict.fromkeys(counts, 0)
    made = manifests.Manifest(
        name=DATASET.name,
        digest=f"words{sum(counts.values())}",
        counts=counts,
        without_sound=none,
        without_picture=none,
        cut_sound=0,
        damaged=0,
        rejects=0,
        labels=Labels(mean=0.0, sd=2.0, median=0.0),
        settings=settings_of(DATASET),
        versions={},
        files=tuple(files),
    )
    manifests.write(folder, made)
    return folder


def fault_job(folder: Path, shards: Path, name: str = "fault", **sections: Any) -> Path:
    """A job file of one run: 10 steps an epoch; what is tried again is tried at once."""
    train = {"batch_clips": 4, "lora_lr": 1e-3, "checkpointing": False, **sections.pop("train", {})}
    dataset = {"kind": "table", "name": DATASET.name, "columns": {"media": "file"}, "shards": str(shards)}
    common = {"dataset": dataset, "train": train, "queue": {"backoff_s": 0, **sections.pop("queue", {})}}
    inputs = {"prompt": "{text}", "system": "Score.", "modalities": ["text"]}
    lora = {"rank": 2, "alpha": 4}
    return job_file(folder, name, **{"inputs": inputs, "lora": lora, **common, **sections})
