"""The tables. Times are UNIX seconds; sizes are bytes. Changing a table here needs a file in migrations/versions.

NaN has one representation. A measured number (steps, finals, predictions) is NULL in a row that is there when it is
NaN, and reads give NaN back; what was not measured has no row. SQLite cannot hold NaN at all, so PostgreSQL does not
either. Infinities are kept as they are. A fact of a run (`valid_error`, `wall_s`, ...) is None when there is no number,
for whatever reason: the rows of `finals` tell why.
"""

from __future__ import annotations

import json
import math
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.types import TypeDecorator

# Constraints need names: SQLite can only alter a table by copying it, and PostgreSQL drops by name.
metadata = MetaData(
    naming_convention={
        "ix": "ix_%(column_0_label)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)


class Fact(TypeDecorator[float]):
    """A float that may be missing. NaN is written as NULL and read as None."""

    impl = Double
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> float | None:
        # float() also because sqlite3 stores a numpy scalar as a blob, without a word.
        return None if value is None or math.isnan(value) else float(value)


class Words(TypeDecorator[str]):
    """A text that others wrote: a library's error, a model's answer. What a database cannot hold is written as U+FFFD
    (NUL, which PostgreSQL refuses) or `?` (halves of surrogate pairs, of file names that are not UTF-8)."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> str | None:
        return None if value is None else value.replace("\0", "\ufffd").encode(errors="replace").decode()


class Measured(Fact):
    """A float that was measured. NaN is written as NULL and read as NaN."""

    cache_ok = True

    def process_result_value(self, value: Any, dialect: Any) -> float:
        return math.nan if value is None else float(value)


class Count(TypeDecorator[int]):
    """A whole number; int() because sqlite3 stores a numpy integer as a blob, too."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> int | None:
        return None if value is None else int(value)


class Plain(TypeDecorator[Any]):
    """Plain data, as JSON. NaN and infinity are refused: they are not JSON, and PostgreSQL would not take them."""

    impl = JSON(none_as_null=True)
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        json.dumps(value, allow_nan=False)
        return value


def _parent(name: str, target: str, **options: Any) -> Column[Any]:
    return Column(name, ForeignKey(target, ondelete="CASCADE"), **options)


jobs = Table(
    "jobs",
    metadata,
    Column("id", String(8), primary_key=True),
    Column("name", Text, nullable=False, index=True),
    Column("spec", Plain, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("submitted_by", Text, nullable=False),
    Column("folder", Text, nullable=False),
    Column("git_commit", Text),
)

tasks = Table(
    "tasks",
    metadata,
    Column("id", Integer, primary_key=True),  # grows, so it is the order of submission
    _parent("job_id", "jobs.id", nullable=False),
    Column("seq", Integer, nullable=False),  # its place among its job's tasks; what it waits for is in `waits`
    Column("kind", Text, nullable=False),
    Column("payload", Plain, nullable=False),
    Column("state", Text, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("max_attempts", Integer, nullable=False),
    Column("driver", Text),  # who holds it, or held it last
    Column("lease_until", Double),
    Column("not_before", Double),  # it failed and is tried again, but not at once
    Column("deadline", Double),  # what is not done by then has failed
    Column("asked", Text),  # the state that somebody wants a running task in: cancelled or paused
    Column("created_at", Double, nullable=False),
    Column("started_at", Double),  # of the latest attempt
    Column("finished_at", Double),
    Column("error", Words),
    Column("cause", Text),  # of the error: see raymsa/causes.py
    Column("said", Words),  # the last line its driver said of it
    UniqueConstraint("job_id", "seq"),
    sqlite_autoincrement=True,  # an id is never given twice, also after a job was removed
)
# A claim reads this in order and stops at the first task that may start.
Index("ix_tasks_claim", tasks.c.state, tasks.c.priority.desc(), tasks.c.id)
# Each claim looks for what is too late: it must not read all that is queued.
Index("ix_tasks_late", tasks.c.state, tasks.c.deadline)

# A task starts when every task it waits for is done; those of its own job and of others alike.
waits = Table(
    "waits",
    metadata,
    _parent("task_id", "tasks.id", primary_key=True),
    _parent("after_id", "tasks.id", primary_key=True, index=True),
)

runs = Table(
    "runs",
    metadata,
    Column("id", Text, primary_key=True),
    _parent("job_id", "jobs.id", nullable=False, index=True),
    _parent("task_id", "tasks.id", index=True),
    Column("variant", Text, nullable=False),
    Column("seed", Count, nullable=False),
    Column("group_key", Text, nullable=False, index=True),  # equal for runs that differ by seed only
    Column("spec", Plain, nullable=False),
    Column("spec_digest", Text, nullable=False),
    Column("data_digest", Text),
    Column("state", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("started_at", Double),  # of the latest attempt
    Column("finished_at", Double),
    Column("error", Words),
    Column("versions", Plain),
    Column("git_commit", Text),
    Column("wall_s", Fact, nullable=False),  # over all attempts
    Column("device_s", Fact, nullable=False),  # over all attempts
    Column("peak_memory_bytes", Count),
    Column("trainable_parameters", Count),
    Column("steps_total", Count),
    Column("step", Count),
    Column("epoch", Count),
    Column("best_epoch", Count),
    Column("valid_error", Fact),  # MAE, or 1 - weighted F1 of classes: lower is better
    Column("data_wait", Fact),  # share of the training time spent waiting for clips
    Column("failures", Integer, nullable=False, server_default=text("0")),  # since somebody last said retry
    Column("cause", Text),  # of the last error: see raymsa/causes.py
    Column("not_before", Double),  # it failed and is tried again, but not at once
    Column("place", Text),  # host and device of the latest attempt
    Column("left_s", Fact),  # seconds of training left, as the run said at `heard_at`
    Column("heard_at", Double),
)

steps = Table(
    "steps",
    metadata,
    _parent("run_id", "runs.id", primary_key=True),
    Column("step", Count, primary_key=True, autoincrement=False),
    Column("name", Text, primary_key=True),
    Column("value", Measured),
    Column("epoch", Count),
    Column("at", Double, nullable=False),
)

finals = Table(
    "finals",
    metadata,
    _parent("run_id", "runs.id", primary_key=True),
    Column("split", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("value", Measured),
)

predictions = Table(
    "predictions",
    metadata,
    _parent("run_id", "runs.id", primary_key=True),
    Column("split", Text, primary_key=True),
    Column("clip_id", Text, primary_key=True),
    Column("label", Measured),
    Column("score", Measured),  # unparsable answer: the middle of the range, or -1 for classes; `parsed` is false
    Column("text", Words),  # the answer, of a readout that answers in words
    Column("parsed", Boolean, nullable=False),
    Column("in_range", Boolean, nullable=False),
)

artifacts = Table(
    "artifacts",
    metadata,
    _parent("run_id", "runs.id", primary_key=True),
    Column("name", Text, primary_key=True),
    Column("path", Text, nullable=False),
    Column("bytes", Count),
)

# No foreign keys: what happened stays true when a job is removed.
events = Table(
    "events",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("at", Double, nullable=False),
    Column("job_id", Text, index=True),
    Column("task_id", Integer),
    Column("run_id", Text),
    Column("what", Text, nullable=False),
    Column("detail", Words, nullable=False),
    Column("who", Text, nullable=False),
)
