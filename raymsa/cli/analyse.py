"""`raymsa analyse`: have clips near each other in a run's hidden space like labels?"""

from __future__ import annotations

from pathlib import Path

import click

from raymsa.cli.base import json_option, main, open_store, print_json, say, shards_option, store_option


@main.command("analyse", short_help="Hidden states: neighbours' labels, a picture.")
@click.argument("run")
@click.option("--split", type=click.Choice(["train", "valid", "test"]), default="test", show_default=True)
@click.option(
    "--k", "ks", multiple=True, type=click.IntRange(1), default=[10], show_default=True, help="Neighbours; repeat it."
)
@click.option("--distance", type=click.Choice(["euclidean", "cosine"]), default="euclidean", show_default=True)
@click.option("--permutations", type=click.IntRange(1), default=1000, show_default=True, help="Of the labels.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the permutations.")
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), help="Write a picture and the hidden states there."
)
@shards_option
@store_option
@json_option
def analyse_command(
    run: str,
    split: str,
    ks: tuple[int, ...],
    distance: str,
    permutations: int,
    seed: int,
    out: Path | None,
    shards: str | None,
    url: str | None,
    as_json: bool,
) -> None:
    """How much labels differ between neighbours in the hidden space of RUN's Thinker, after and before tuning.

    The space is the final-layer hidden state that the answer is read from; the baseline are the same clips with
    permuted labels.
    """
    from raymsa.analyse import hidden, latent, save
    from raymsa.report.latent import as_json as plain
    from raymsa.report.latent import draw, render

    states = hidden(open_store(url), run, split, say, shards)
    found = latent(states, list(dict.fromkeys(ks)), distance, permutations, seed)  # type: ignore[arg-type]
    files = [] if out is None else [save(states, out), draw(found, out)]
    if as_json:
        print_json({**plain(found), "files": [str(path) for path in files]})
    else:
        from raymsa.cli.show import console

        render(found, console())
    for path in files:
        say(f"wrote {path}")
