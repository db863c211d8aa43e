"""A job's report: one page that needs nothing else, and its tables as Markdown and LaTeX beside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from raymsa.errors import RaymsaError, UsageError
from raymsa.place import replaced_folder
from raymsa.report import page_tables as sheets
from raymsa.report import page_words as words
from raymsa.report import plots_clips, plots_pairs, plots_runs
from raymsa.report.evidence import Evidence, Group, evidence
from raymsa.report.formats import Sheet, latex, markdown, marked, on_the_left
from raymsa.report.groups import group_tables
from raymsa.report.plots import MOST, Plot
from raymsa.report.search_tables import verdict
from raymsa.report.worst import Words, Worst, words_of, worst
from raymsa.store import Store, migrations
from raymsa.target import Classification
from raymsa.words import visible

MARK = "raymsa-report.json"  # written last: what it names is all there
PAGE = "index.html"
TABLES = "tables"


@dataclass(frozen=True)
class Report:
    """A report before it is a page. `sheets` are by the names of their files, `plots` by what they show."""

    about: Evidence
    sheets: dict[str, Sheet]
    plots: dict[str, list[Plot]]
    worst: list[Worst]
    words: Words


def gather(store: Store, job_id: str, shards: str | None = None) -> Report:
    """All that a job's report shows; `shards` is where a person says its clips are. Raises NotFound, UsageError."""
    about = evidence(store, job_id)
    known = words_of(about, shards)
    clips = worst(about, known)
    made = {
        "losses": plots_runs.losses(about),
        "valid": plots_runs.valid(about),
        "seeds": plots_runs.seeds(about),
        **plots_clips.of_clips(about),
        "pairs": plots_pairs.pairs(about),
    }
    return Report(about, _sheets(store, about, clips), made, clips, known)


def page(report: Report) -> str:
    """The page in HTML: figures, frames and sound are inside it, and it loads nothing."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    templates = Environment(
        loader=PackageLoader("raymsa", "report/templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_text,
    )
    about = report.about
    return templates.get_template("report.html").render(
        about=about,
        question=words.question(about),
        summary=list(words.summary(about)),
        findings=list(words.findings(about)),
        commands=words.commands(about),
        tables={name: _cells(sheet) for name, sheet in report.sheets.items()},
        plots=report.plots,
        verdict=_sentence(verdict(about.found.search)) if about.found.search else "",
        groups_left_out=max(0, len(about.groups) - MOST),
        pairs_left_out=plots_pairs.left_out(about),
        worst=[_shown(about, clip) for clip in report.worst],
        words=report.words,
        language=about.job.spec["dataset"].get("language", "en"),
    )


def write(report: Report, out: Path) -> list[str]:
    """Write the folder, at once; a report that was there is replaced. Returns the names of its files.

    Raises UsageError when something else is there, RaymsaError when it cannot be written.
    """
    check(out)
    files = _files(report)
    try:
        with replaced_folder(out) as part:
            for name, text in files.items():
                (part / name).parent.mkdir(exist_ok=True)
                (part / name).write_text(text, encoding="utf-8", newline="")
    except OSError as error:
        raise RaymsaError(f"--out: {out}: cannot be written: {error.strerror or error}") from None
    return list(files)


def check(out: Path) -> None:
    """Raises UsageError unless nothing is there, or a report with no file that is not its own."""
    if not out.exists() and not out.is_symlink():
        return
    try:
        own = set(json.loads((out / MARK).read_text(encoding="utf-8"))["files"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UsageError(f"--out: {out} is there and is no report; name a new folder") from None
    strange = sorted(
        str(p.relative_to(out)) for p in out.rglob("*") if not p.is_dir() and str(p.relative_to(out)) not in own
    )
    if strange:
        raise UsageError(
            f"--out: {out} holds {strange[0]}, which is no part of the report; move it, or name a new folder"
        )


def _files(report: Report) -> dict[str, str]:
    """Name -> content; the mark is the last."""
    job = report.about.job
    files = {PAGE: page(report)}
    for name, sheet in report.sheets.items():
        files |= {f"{TABLES}/{name}.md": markdown(sheet), f"{TABLES}/{name}.tex": latex(sheet)}
    text = json.dumps(job.spec, ensure_ascii=False)
    harmless = visible(text) == text  # else all that is not ASCII is escaped: people print such a file
    files[words.JOB_FILE] = yaml.safe_dump(job.spec, sort_keys=False, allow_unicode=harmless)
    mark = {"raymsa": "report", "job": job.id, "files": sorted([*files, MARK])}
    return {**files, MARK: json.dumps(mark, indent=1) + "\n"}


def _sheets(store: Store, about: Evidence, clips: list[Worst]) -> dict[str, Sheet]:
    facts = {
        "job": f"{about.job.id} ({about.job.name})",
        "submitted by": about.job.submitted_by,
        "store": f"{store.engine.dialect.name}, schema {migrations.HEAD}",
    }
    made: dict[str, Sheet | None] = {
        **sheets.scores(group_tables(store, [about.job.id])),
        "intervals": sheets.intervals(about),
        "runs": sheets.by_seed(about),
        "metrics": sheets.metrics(about),
        "signs": sheets.sign_table(about),
        "health": sheets.health(about),
        "cost": sheets.cost(about),
        "unfinished": sheets.unfinished(about),
        "worst": sheets.worst_clips(about, clips),
        "environment": sheets.environment(about, facts),
        "settings": sheets.settings(about),
    }
    found = about.found.search
    trials: Sequence[Sheet] = list(sheets.trials(found)) if found else []
    made |= dict(zip(["confirmed", "trials"][-len(trials) :], trials, strict=True)) if trials else {}
    return {name: sheet for name, sheet in made.items() if sheet is not None and sheet.rows}


def _cells(sheet: Sheet) -> dict[str, Any]:
    """A sheet for the template: which columns are words, and the cells as text with their footnotes' marks."""
    rows, notes = marked(sheet)
    heads = [column.heading for column in sheet.columns]
    return {"title": sheet.title, "heads": heads, "left": on_the_left(sheet), "rows": rows, "notes": notes}


def _text(value: Any) -> Any:
    """Whatever stands in the page as text hides nothing and acts on nothing; escaping it is the template's."""
    return visible(value) if type(value) is str else value  # Markup is a str, too: figures and pictures


def _sentence(words: str) -> str:
    return words[:1].upper() + words[1:] + "."


def _shown(about: Evidence, clip: Worst) -> tuple[Any, ...]:
    """A bad clip, its label and error in words, and what every variant said of it."""
    said = [_said(about, group, clip) for group in about.groups if group.name in clip.scores]
    return clip, sheets.value(about, clip.label), _wrong(about, clip), said


def _wrong(about: Evidence, clip: Worst) -> str:
    if isinstance(about.task, Classification):
        return f"{100 * clip.error:.0f} % of the runs are wrong"
    return f"mean |error| {clip.error:.2f}"


def _said(about: Evidence, group: Group, clip: Worst) -> dict[str, Any]:
    """What a variant's seeds said of a clip: (seed, score, answer in words if it answers so)."""
    seeds = [run.run.seed for run in group.tested]
    shown = [sheets.value(about, score) for score in clip.scores[group.name]]
    said = clip.said.get(group.name)
    return {"variant": group.name, "seeds": list(zip(seeds, shown, said or shown, strict=True)), "words": bool(said)}
