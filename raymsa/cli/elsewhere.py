"""Commands that carry results elsewhere: export, push, import."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from raymsa.cli.base import json_option, main, open_store, print_json, say, store_option
from raymsa.errors import UsageError

if TYPE_CHECKING:
    from raymsa.exporters.base import Exporter


def _targets() -> dict[str, type[Exporter]]:
    from raymsa.exporters.base import Exporter
    from raymsa.plugins import kinds

    return kinds("raymsa.exporters", Exporter)  # type: ignore[type-abstract]


class _Target(click.ParamType):  # type: ignore[type-arg]
    """A word after `--to`; the targets are looked up when they are needed: `raymsa --help` is quick."""

    name = "target"

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        return f"[{'|'.join(_targets())}]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> type[Exporter]:
        targets = _targets()
        if value not in targets:
            self.fail(f"{value!r} is none of {', '.join(targets)}.", param, ctx)
        return targets[value]


@main.command("export", short_help="Runs for MLflow, W&B, TensorBoard, CSV, or another raymsa.")
@click.argument("names", nargs=-1, required=True, metavar="JOB_OR_RUN...")
@click.option("--to", "target", type=_Target(), default="raymsa", show_default=True, help="What will read it.")
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="FOLDER", help="Where to write it.")
@click.option("--with-checkpoints", is_flag=True, help="For another raymsa: what the runs left on this disk, too.")
@store_option
@json_option
def export_command(
    names: tuple[str, ...], target: type[Exporter], out: Path, with_checkpoints: bool, url: str | None, as_json: bool
) -> None:
    """Write the runs of each job, or single runs, into FOLDER in another tool's form; nothing is sent anywhere.

    Of mlflow, wandb and tensorboard, a run that is in FOLDER already is left alone, or replaced when it has changed
    since; csv and raymsa want a new or empty FOLDER.
    """
    from raymsa.exporters.base import chosen

    if with_checkpoints and "with_checkpoints" not in target.model_fields:
        raise UsageError("--with-checkpoints goes with --to raymsa: other tools cannot use them")
    exporter = target(**({"with_checkpoints": True} if with_checkpoints else {}))
    done = exporter.write(chosen(open_store(url), names), out)
    if as_json:
        print_json({"path": str(out), "written": done.written, "there": done.there})
    else:
        click.echo(str(out))
    there = f", {_runs(done.there)} there already" if done.there else ""
    say(f"{_runs(done.written)} written{there}; {done.look}")


def _runs(ids: list[str]) -> str:
    return "1 run" if len(ids) == 1 else f"{len(ids)} runs"


@main.command("push", short_help="A run as a folder for the Hugging Face Hub; uploads when asked.")
@click.argument("run")
@click.option("--out", type=click.Path(path_type=Path), metavar="FOLDER", help="Where to write it [default: hub-RUN].")
@click.option("--to", metavar="OWNER/NAME", help="Upload it to this repository, which is made private.")
@click.option("--public", is_flag=True, help="With --to: the repository may be seen by everybody.")
@click.option("--base-model", metavar="OWNER/NAME", help="The base model on the Hub, where the job named a folder.")
@click.option("--dry-run", is_flag=True, help="Say which files it would be; write and upload nothing.")
@store_option
@json_option
def push_command(run: str, out: Path | None, to: str | None, dry_run: bool, url: str | None, **more: Any) -> None:
    """Write a finished run as a folder: adapters that PEFT loads, head, spec, model card. Paths and names of this
    machine and its people stay out of it, and so do clips, labels and predictions.

    Nothing is uploaded without --to. A folder that is there already, of this run, is uploaded as it is: its README.md
    may have been added to.
    """
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"  # read when the Hub's client is imported
    from raymsa import push
    from raymsa.store import queries

    if more["public"] and not to:
        raise UsageError("--public goes with --to")
    store = open_store(url)
    found = queries.run(store, run)
    folder, order = out or Path(f"hub-{found.id}"), push.Order(found, more["base_model"])
    if dry_run:
        files, made = push.would_be(store, order, folder)
    else:
        made = push.prepare(store, order, folder)
        files = push.listing(folder)
    for file in files:
        say(f"{file.bytes:>15,}  {file.name}")
    say(
        f"{sum(file.bytes for file in files):>15,}  bytes in {len(files)} files{'' if made else ', as they were there'}"
    )
    address = _uploaded(folder, [file.name for file in files], to, more["public"], dry_run)
    if more["as_json"]:
        print_json({"path": str(folder), "files": {file.name: file.bytes for file in files}, "uploaded": address})
    else:
        click.echo(address or str(folder))


def _uploaded(folder: Path, names: list[str], to: str | None, public: bool, dry_run: bool) -> str | None:
    seen = "public" if public else "private"
    if dry_run:
        say(f"nothing was written{f'; it would be uploaded to {to}, {seen}' if to else ''}")
    if not to or dry_run:
        return None
    from raymsa.hub import upload

    say(f"uploading to {to}, {seen}")
    return upload(folder, names, to, public)


@main.command("import", short_help="Take in runs from another machine.")
@click.argument("source", type=click.Path(path_type=Path), metavar="FOLDER")
@click.option(
    "--max-gb",
    type=click.FloatRange(min=0, min_open=True),
    default=32,
    show_default=True,
    help="Refuse a folder that holds more than this; it may be a stranger's.",
)
@store_option
@json_option
def import_command(source: Path, max_gb: float, url: str | None, as_json: bool) -> None:
    """Take in what `raymsa export --to raymsa` or `raymsa push` wrote: rows into the store, files into RAYMSA_HOME.

    All of it or nothing; a run that is there already stays as it is.
    """
    from raymsa.provenance import who
    from raymsa.unpack import take_in

    taken = take_in(open_store(url, create=True), source, who(), max_gb * 1e9)
    if as_json:
        print_json(taken._asdict())
    else:
        for run_id in [*taken.runs, *taken.files]:
            click.echo(run_id)
    files = f", {_runs(taken.files)} given the files they lacked" if taken.files else ""
    there = f", {_runs(taken.there)} there already" if taken.there else ""
    say(f"{_runs(taken.runs)} taken in{files}{there}")
    if taken.paused:
        say(f"{taken.paused} of their tasks are paused; `raymsa resume JOB` lets them go on")
