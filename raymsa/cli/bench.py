"""`raymsa bench`: how fast a job is on this machine, and what memory it takes."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click

from raymsa.cli.base import WORDS, json_option, main, print_json, say
from raymsa.cli.show import console
from raymsa.errors import UsageError

ROUNDS = 2  # of each side, when two are compared


@main.command("bench", short_help="Measure speed and memory of a job.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--steps", default=10, show_default=True, type=click.IntRange(0), help="Optimizer steps that are timed.")
@click.option(
    "--warm-up", default=1, show_default=True, type=click.IntRange(0), help="Steps before them that are not timed."
)
@click.option("--clips", default=32, show_default=True, type=click.IntRange(1), help="Clips that are scored.")
@click.option(
    "--made-up",
    multiple=True,
    metavar="LENGTHS",
    help="Clips of these lengths instead of the job's: 16x100k,5s,25w (frames x pixels, sound, words); repeat to mix.",
)
@click.option(
    "--weights",
    type=click.Choice(["real", "random"]),
    help="random: of the model's geometry, 4-bit from the start [default: real where they are at hand].",
)
@click.option("--against", type=click.Choice(["plain"]), help="Run a plain recipe in turn with raymsa, and compare.")
@click.option("--plain-batch", type=click.IntRange(1), help="Clips in its passes [default: what fits batch_tokens].")
@click.option("--rounds", type=click.IntRange(1), help="Times that each side is run [default: 1; 2 with --against].")
@click.option("--variant", metavar="NAME", help="Which of the job's variants [default: the first].")
@click.option("--set", "overrides", multiple=True, metavar="FIELD=VALUE", help="Change a field, as for submit.")
@json_option
def bench_command(file: Path, overrides: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Train and score a few steps of a job FILE, print where time and memory went, and keep it under RAYMSA_HOME.

    The clips are those that `raymsa prepare` made for the job, or made up. As a run does, it keeps a large model's
    4-bit weights there, too (`model.keep_quantized`), and what the towers make of clips (`inputs.cache: towers`).
    """
    from raymsa.bench.run import bench
    from raymsa.jobfile import load_job

    requests = _requests(load_job(file, list(overrides)), file, **options)
    rounds = options["rounds"] or (ROUNDS if options["against"] else 1)
    words = click.get_current_context().meta[WORDS]
    found = bench(requests, rounds, shlex.join(["raymsa", *words]), say)
    if as_json:
        print_json(found)
    else:
        from raymsa.report.bench import render

        render(found, console())
    say(f"kept as {found['file']}")


def _requests(job: Any, file: Path, **options: Any) -> list[Any]:
    """What is measured: raymsa, and the plain recipe where it is asked for."""
    from raymsa.bench.clips import form
    from raymsa.bench.request import Request, checked, recipe
    from raymsa.plan import anchored, shards_of

    made_up = list(options["made_up"])
    for text in made_up:
        form(text)  # what is wrong is said before anything is loaded
    if options["against"] is None and options["plain_batch"]:
        raise UsageError("--plain-batch is for --against plain")
    spec = _run(anchored(job), options["variant"], file)
    weights = options["weights"] or _weights(spec.model.path)
    if spec.inputs.cache == "towers" and (made_up or weights == "random"):
        raise UsageError("inputs.cache: towers is measured on prepared clips with real weights; set it to none here")
    shared = {
        "spec": spec.model_dump(mode="json"),
        "shards": None if made_up else str(shards_of(spec.dataset)),
        "made_up": made_up,
        "weights": weights,
        "steps": options["steps"],
        "warm_up": options["warm_up"],
        "clips": options["clips"],
    }
    ours = Request(side="raymsa", **shared)
    if options["against"] is None:
        return [ours]
    checked(str(recipe()), spec)
    return [ours, Request(side="plain", recipe=str(recipe()), plain_batch=options["plain_batch"], **shared)]


def _run(job: Any, variant: str | None, file: Path) -> Any:
    """The spec that is measured: of one variant, with the job's first seed. Raises UsageError."""
    from raymsa.spec import runs

    found = {run.variant: run.spec for run in reversed(runs(job))}  # the first seed of each
    if variant is not None and variant not in found:
        raise UsageError(f"--variant {variant}: {file} has {', '.join(reversed(found))}")
    first = list(found)[-1]
    if variant is None and len(found) > 1:
        say(f"{len(found)} variants; measuring {first}; --variant names another")
    return found[variant or first]


def _weights(path: str) -> str:
    from raymsa.bench.request import at_hand

    if at_hand(path):
        return "real"
    say(f"the weights of {path} are not on this machine: random ones of its geometry are used")
    return "random"
