"""Commands about clips: prepare a dataset, score clips with a trained run."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import click

from raymsa.cli.base import json_option, main, open_store, print_json, say, store_option


@main.command("prepare", short_help="Decode a dataset into shards.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--raw", help="Folder with the raw clips, or an address (s3://...) [default: the file's `raw`].")
@click.option("--out", help="Folder for the shards, or an address [default: under RAYMSA_HOME].")
@click.option(
    "--set", "overrides", multiple=True, metavar="FIELD=VALUE", help="Change a field, e.g. media.max_frames=8."
)
@click.option("--check-only", is_flag=True, help="Hold labels and files against each other; decode and write nothing.")
@json_option
def prepare_command(
    file: Path, raw: str | None, out: str | None, overrides: tuple[str, ...], check_only: bool, as_json: bool
) -> None:
    """Decode a dataset's clips into shards; goes on where it was interrupted, does nothing when all is there."""
    from raymsa.jobfile import load_dataset
    from raymsa.place import absolute, place
    from raymsa.plan import raw_of, shards_of

    dataset = load_dataset(file, list(overrides))
    if raw is not None:
        dataset = dataset.model_copy(update={"raw": absolute(raw)})
    if check_only:
        from raymsa.cli.look import show_check

        show_check(dataset, raw_of(dataset), as_json)
        return
    from raymsa.cluster import session
    from raymsa.data.prepare import prepare
    from raymsa.data.progress import shown
    from raymsa.signals import on_ctrl_c

    folder = place(out) if out else shards_of(dataset)
    stopped = threading.Event()
    with session(None), on_ctrl_c(stopped.set), shown(say) as (line, progress):
        made = prepare(dataset, raw_of(dataset), folder, line, stopped.is_set, progress)
    if as_json:
        print_json({"folder": str(folder), **made.model_dump(mode="json")})
    else:
        click.echo(str(folder))


@main.command("predict", short_help="Score clips with a trained run.")
@click.argument("run")
@click.argument("clips", nargs=-1, required=True, metavar="CLIP...")
@click.option("--text", "texts", multiple=True, help="Transcript; once for all clips, or once for each in their order.")
@click.option("--context", multiple=True, metavar="WORDS", help="Said before the clips; repeat it, oldest first.")
@store_option
@json_option
def predict_command(
    run: str, clips: tuple[str, ...], texts: tuple[str, ...], context: tuple[str, ...], url: str | None, as_json: bool
) -> None:
    """Score media files with a trained run; `-` is a clip of words alone."""
    from raymsa.predict import predict

    if len(texts) > 1 and len(texts) != len(clips):
        raise click.UsageError(f"{len(texts)} --text for {len(clips)} clips; give one for all, or one for each")
    rows = predict(open_store(url), run, list(clips), list(texts) or [""], context)
    if as_json:
        print_json(rows)
        return
    for row in rows:
        said = f"  said {row['text']!r}" if row["text"] is not None else ""
        click.echo(f"{row['clip']}\t{_answer(row)}{said}")


def _answer(row: dict[str, Any]) -> str:
    if "class" in row:
        return row["class"] or "no class"
    return f"{row['score']:+.4f}{'' if row['parsed'] else ' (unparsable)'}"
