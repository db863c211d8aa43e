"""Commands that look at data: stats, show and verify of shards, the check of a raw folder, and its export."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

from raymsa.cli.base import json_option, main, print_json, say
from raymsa.cli.show import console
from raymsa.errors import DataError, RaymsaError, UsageError
from raymsa.place import absolute, check, place

if TYPE_CHECKING:
    from raymsa.data.check import Check
    from raymsa.data.stats import Stats
    from raymsa.data.verify import Finding
    from raymsa.datasets.base import Layout

BAR = 30  # characters of the longest bar of a histogram
CLIPS_SHOWN = 40  # ids of damaged clips on the screen; --json has all
# Ids of MOSI begin with a dash: what is no option is an argument, and no short option (-h) may be found in one.
DASHES = {"ignore_unknown_options": True, "help_option_names": ["--help"]}
RAW = click.option("--raw", help="Folder with the raw clips, or an address [default: the file's `raw`].")
SET = click.option(
    "--set", "overrides", multiple=True, metavar="FIELD=VALUE", help="Change a field of the file, as for prepare."
)
MODEL = click.option(
    "--model", metavar="MODEL", help="Folder, hub id or tiny: count the words in the tokens of its tokenizer."
)


@main.group("data", short_help="Look at data: stats, show, verify, export.")
def data_command() -> None:
    """Look at data. SHARDS is a folder of shards, or a dataset or job file whose shards are in their usual place."""


@data_command.command("stats", short_help="What is in it, in numbers.")
@click.argument("shards")
@RAW
@SET
@MODEL
@json_option
def stats_command(shards: str, raw: str | None, overrides: tuple[str, ...], model: str | None, as_json: bool) -> None:
    """Clips, hours, tokens, lengths, labels and rejects of SHARDS, per split. No frame or sound is read."""
    from raymsa.data.stats import stats, tokenizer_of

    folder = shards_folder(shards, raw, overrides)
    found = stats(folder, tokenizer_of(model) if model else None)
    if as_json:
        print_json(asdict(found))
        return
    screen = console()
    screen.print(f"{found.name}: data {found.digest} in {found.folder}", markup=False)
    screen.print(_sizes(found))
    screen.print(_lengths(found))
    screen.print(_labels({name: part.labels for name, part in found.parts.items()}))
    for line in _losses(found):
        screen.print(line, markup=False)
    if not model:
        say("tokens are those of sound and picture; --model FOLDER counts those of the words too")


@data_command.command("show", short_help="One clip as a page.", context_settings=DASHES)
@click.argument("shards")
@click.argument("clip")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path, dir_okay=False), help="The page to write (.html)."
)
@RAW
@SET
@MODEL
@json_option
def show_command(
    shards: str, clip: str, out: Path, raw: str | None, overrides: tuple[str, ...], model: str | None, as_json: bool
) -> None:
    """Write a page with all that SHARDS hold of one CLIP: frames, sound, words, labels and what they cost in tokens.

    CLIP is an id or the beginning of one that only one clip has. The page needs no network.
    """
    from raymsa.data import manifest as manifests
    from raymsa.data.columns import find
    from raymsa.data.stats import counted, tokenizer_of
    from raymsa.report.clip_page import mel, page

    folder = shards_folder(shards, raw, overrides)
    manifest = manifests.read(folder)
    found = find(folder, manifest, clip)
    tokens = counted(tokenizer_of(model), [found.text])[0] if model else None
    language = str(manifest.settings.get("language", "en"))
    text = page(found, _label(manifest.settings, found.label), mel(found), tokens, language, manifest.name)
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise DataError(f"--out: {out}: cannot be written: {error.strerror}") from None
    if as_json:
        costs = {"text_tokens": tokens, "audio_tokens": found.audio_tokens, "video_tokens": found.video_tokens}
        print_json({"clip": found.id, "page": str(out), "bytes": out.stat().st_size, **costs})
    else:
        click.echo(str(out))


@data_command.command("verify", short_help="Is every byte as it was written?")
@click.argument("shards")
@RAW
@SET
@json_option
def verify_command(shards: str, raw: str | None, overrides: tuple[str, ...], as_json: bool) -> None:
    """Hold every file of SHARDS against the digests of its manifest; names what is damaged, and which clips."""
    from raymsa.data.verify import verify

    folder = shards_folder(shards, raw, overrides)
    found = verify(folder)
    size = f"{found.files:,} shards, {found.clips:,} clips, {found.bytes / 1e6:,.1f} MB"
    if as_json:
        print_json({"ok": not found.findings, **asdict(found)})
    for finding in [] if as_json else found.findings:
        for line in _damage(finding):
            click.echo(line)
    if found.findings:
        many = "1 file is" if len(found.findings) == 1 else f"{len(found.findings)} files are"
        raise RaymsaError(f"{folder}: {many} not as written, of {size}; delete the folder and prepare again")
    if not as_json:
        click.echo(f"{folder}: all as written: {size}")


@data_command.command("export", short_help="To ms-swift's JSON lines.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--to", "out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder to write to."
)
@RAW
@SET
@json_option
def export_command(file: Path, out: Path, raw: str | None, overrides: tuple[str, ...], as_json: bool) -> None:
    """Write the clips of a dataset FILE as ms-swift's train.jsonl, val.jsonl and test.jsonl, with their `label`.

    Media stay where they are and are named by their paths. Rows that cannot be used, or whose file is missing or
    empty, are left out.
    """
    from raymsa.data.check import usable
    from raymsa.datasets.swift import export
    from raymsa.jobfile import load_dataset
    from raymsa.plan import raw_of

    folder = raw_of(dataset := _at(load_dataset(file, list(overrides)), raw))
    rows, clips = usable(dataset, folder)
    if not clips:
        raise RaymsaError(f"{folder}: no clip would be left of {rows:,} rows")
    try:
        written = export(clips, dataset.task, folder, out)
    except OSError as error:
        raise DataError(f"--to: {error.filename or out}: cannot be written: {error.strerror}") from None
    if rows > len(clips):
        say(f"{rows - len(clips):,} of {rows:,} rows were left out; `raymsa prepare {file} --check-only` says why")
    print_json({"folder": str(out), "clips": written}) if as_json else click.echo(str(out))


def show_check(dataset: Any, raw: Path, as_json: bool) -> None:
    """`raymsa prepare FILE --check-only`: print what a raw folder holds. Raises RaymsaError when no clip is left."""
    from raymsa.data.check import check

    found = check(dataset, raw)
    if as_json:
        print_json({"usable": found.clips > 0, **asdict(found)})
    else:
        screen = console()
        screen.print(f"{found.name}: {found.rows:,} rows in {found.raw}", markup=False)
        screen.print(_check_table(found))
        screen.print(_labels({name: part.labels for name, part in found.splits.items() if part.rows}))
    for line in found.warnings:
        say(f"warning: {line}")
    if not found.clips:
        raise RaymsaError(f"{found.raw}: no clip would be left of {found.rows:,} rows")
    say(f"{found.clips:,} of {found.rows:,} rows can be prepared; no file was decoded")


def shards_folder(given: str, raw: str | None = None, overrides: tuple[str, ...] = ()) -> Path:
    """The folder that SHARDS stands for: itself, or where the shards of a dataset or job file are.

    Raises DataError when it lies at an address that cannot be reached.
    """
    path = Path(given).expanduser()
    if path.suffix.lower() in (".yaml", ".yml") and not path.is_dir():
        from raymsa.plan import shards_of

        folder = shards_of(_at(_dataset(path, list(overrides)), raw))
    elif raw is not None or overrides:
        raise UsageError(f"--raw and --set are for a dataset or job file; {given} is taken for a folder of shards")
    else:
        folder = place(given)
    check(folder)
    return folder


def _dataset(path: Path, overrides: list[str]) -> Layout:
    """The dataset of a dataset file, or of a job file."""
    from raymsa.jobfile import load_dataset, load_job
    from raymsa.yamlfile import read_mapping

    if {"model", "base"} & read_mapping(path).keys():
        return load_job(path, overrides).dataset  # type: ignore[no-any-return]
    return load_dataset(path, overrides)


def _at(dataset: Layout, raw: str | None) -> Layout:
    """The dataset with its raw clips elsewhere."""
    return dataset if raw is None else dataset.model_copy(update={"raw": absolute(raw)})


def _label(settings: dict[str, Any], label: float) -> str:
    """A label in words: the class, or the score in its range."""
    from raymsa.target import Classification, task_of

    task = task_of({"dataset": settings})
    if isinstance(task, Classification):
        return task.classes[int(label)]
    return f"{label:+g} on a scale from {task.low:+g} to {task.high:+g}"


def _sizes(found: Stats) -> Table:
    names = ("split", "clips", "published", "hours", "words", "characters", "text tokens", "sound tokens")
    table = Table(*names, "picture tokens", "no words", "no sound", "no picture", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, part in found.parts.items():
        published = found.published.get(name)
        text = "?" if part.text_tokens is None else f"{part.text_tokens:,}"
        cells = (part.words, part.characters, text, part.audio_tokens, part.video_tokens)
        absent = (part.without_words, part.without_sound, part.without_picture)
        plain = (*cells, *absent)
        shown = [cell if isinstance(cell, str) else f"{cell:,}" for cell in plain]
        table.add_row(
            name, f"{part.clips:,}", "" if published is None else f"{published:,}", f"{part.hours:.2f}", *shown
        )
    return table


def _lengths(found: Stats) -> Table:
    from raymsa.data.stats import PERCENTILES

    table = Table("split", "a clip's", *PERCENTILES, box=None, pad_edge=False)
    for column in table.columns[2:]:
        column.justify = "right"
    for name, part in found.parts.items():
        for what, values, form in (("seconds", part.seconds, ".2f"), ("tokens", part.tokens, ",.0f")):
            if values:
                table.add_row(name, what, *(format(value, form) for value in values.values()))
    return table


def _check_table(found: Check) -> Table:
    names = ("split", "rows", "missing", "empty", "clips", "published", "no words")
    table = Table(*names, box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, part in found.splits.items():
        published = "" if part.published is None else f"{part.published:,}"
        missing, empty, wordless = (f"{n:,}" if n else "" for n in (part.missing, part.empty, part.without_words))
        table.add_row(name, f"{part.rows:,}", missing, empty, f"{part.clips:,}", published, wordless)
    return table


def _labels(splits: dict[str, dict[str, Any]]) -> Table:
    """Labels per split: how many of each, and bars for the first split."""
    table = Table("label", *splits, next(iter(splits), ""), box=None, pad_edge=False)
    for column in table.columns[1:-1]:
        column.justify = "right"
    rows = {name: _bins(labels) for name, labels in splits.items()}
    lines = list(next(iter(rows.values()), {}))
    most = max((max(counts.values(), default=0) for counts in list(rows.values())[:1]), default=0) or 1
    for line in lines:
        counts = [counts.get(line, 0) for counts in rows.values()]
        table.add_row(line, *(f"{count:,}" for count in counts), "█" * -(-counts[0] * BAR // most))
    for name in ("min", "max", "mean", "sd", "median", "negative", "zero", "positive"):
        values = [labels.get(name) for labels in splits.values()]
        if any(value is not None for value in values):
            form = ",d" if name in ("negative", "zero", "positive") else ".4g" if name == "sd" else "+.4g"
            table.add_row(name, *("" if value is None else format(value, form) for value in values))
    return table


def _bins(labels: dict[str, Any]) -> dict[str, int]:
    """A histogram by the words of its bins: a class, or a range closed at its low end."""
    if "classes" in labels:
        return dict(labels["classes"])
    bins = labels["bins"]
    ends = [")" if at < len(bins) - 1 else "]" for at in range(len(bins))]
    return {f"[{b['low']:g}, {b['high']:g}{end}": b["clips"] for b, end in zip(bins, ends, strict=True)}


def _losses(found: Stats) -> Iterator[str]:
    yield f"left out: {found.rejects:,}" + (" (rejects.csv)" if found.rejects else "")
    yield from (f"  {times:,} x {reason}" for reason, times in found.rejects_by_reason.items())
    yield f"kept with less: {found.damaged:,}" + (" (notes.csv)" if found.damaged else "")
    yield from (f"  {times:,} x {reason}" for reason, times in found.notes_by_reason.items())
    if found.cut_sound:
        yield f"sound cut off at media.max_audio_s: {found.cut_sound:,}"


def _damage(finding: Finding) -> Iterator[str]:
    yield f"{finding.file}: {finding.problem}"
    for group in finding.damage:
        first, last = group["rows"]
        clips = group["clips"]
        names = ", ".join(clips[:CLIPS_SHOWN]) + (", ..." if len(clips) > CLIPS_SHOWN else "")
        yield f"  rows {first} to {last}, {', '.join(group['columns'])}: {names or 'their ids are damaged too'}"
