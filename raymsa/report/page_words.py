"""What a report says in sentences: the question, what was done, what is missing, how to repeat it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from raymsa.evaluation.metrics import CRITERIA, LOW_IS_GOOD
from raymsa.merge import flat
from raymsa.report.evidence import Evidence
from raymsa.report.plots import named
from raymsa.target import Classification

JOB_FILE = "job.yaml"
HEALTHY = 0.0
MEDIA = {"text": "words", "audio": "sound", "video": "picture"}


def question(about: Evidence) -> str:
    """What the job asks, in one sentence."""
    spec, metric = about.job.spec, named(about.found.decides)
    data = spec["dataset"].get("name", spec["dataset"].get("kind", "the clips"))
    if spec.get("search"):
        way = "lowest" if about.found.decides in LOW_IS_GOOD else "highest"
        return f"Which values of {_and(list(spec['search']['space']))} give the {way} valid {metric} on {data}?"
    differ = differences(spec)
    if len(spec.get("variants") or {}) > 1 and differ:
        return (
            f"What does it change on {data} whether {_and([_choice(n, v) for n, v in differ.items()])}, all else equal?"
        )
    kind = spec.get("readout", {}).get("kind", "one")
    return f"How well does the {kind} readout do on {data}, and how much of that is the seed?"


def differences(spec: Mapping[str, Any]) -> dict[str, list[str]]:
    """The fields in which the variants differ: dotted name -> each variant's value in words."""
    base = dict(flat(spec))
    overrides = [dict(flat(override)) for override in (spec.get("variants") or {}).values()]
    names = dict.fromkeys(name for override in overrides for name in override)
    found = {name: [_word(override.get(name, base.get(name))) for override in overrides] for name in names}
    return {name: values for name, values in found.items() if len(set(values)) > 1}


def summary(about: Evidence) -> Iterator[str]:
    """What was done, a sentence a line; what the store does not hold is left out."""
    spec = about.job.spec
    yield _data(about)
    yield _model(spec)
    if spec.get("train"):
        yield _training(about)
    rule = CRITERIA[about.task.profile]
    yield f"The weights that are best on valid ({rule.words}) are tested, once. Nothing is chosen by a look at test."
    if spec.get("search"):
        yield "The rows of the table are settings with fresh seeds where there are any, else the trials themselves."


def findings(about: Evidence) -> Iterator[str]:
    """What a reader has to know before the numbers: what is missing, what is no better than a constant."""
    left = about.found.unfinished
    finished = sum(row.finished for row in about.found.rows)
    planned = sum(row.planned for row in about.found.rows)
    others = planned - finished - len(left)
    gone = (
        f"; {others} of them are not in this store"
        if others and about.state == "done" and not about.found.search
        else ""
    )
    yield f"The job is {about.state}: {finished} of {planned} runs have results{gone}."
    if not finished:
        yield "Nothing is finished, so there are no numbers here yet."
    for state in dict.fromkeys(run.state for run in left):
        yield f"{_count(sum(run.state == state for run in left), 'run')} {state}: in no mean."
    for row in about.found.rows:
        yield from (f"{row.variant}, {why}." for why in row.collapse.reasons(about.found.classes))
        for name, found in row.health.items():
            if found.mean > HEALTHY:
                yield f"{row.variant}: {100 * found.mean:.2f} % of the test answers are {name.replace('_', ' ')}."
    lost = sum(int((~np.isfinite(group.score_RB)).sum()) for group in about.groups)
    if lost:
        yield f"{_count(lost, 'score')} of test clips are no numbers; figures by clip leave them out."
    if about.uncommon:
        yield f"{about.uncommon:,} test clips were not scored by every run; figures by clip leave them out."


def commands(about: Evidence) -> list[tuple[str, str]]:
    """(what for, command line) to do it again."""
    job = about.job
    commits = dict.fromkeys(one.run.git_commit or job.git_commit for one in about.trained) or {job.git_commit: None}
    known = [commit for commit in commits if commit]
    lines = [(_code(commit), f"git checkout {shlex.quote(commit.partition('+')[0])}") for commit in known]
    lines.append((f"the job: {JOB_FILE} beside this page is its resolved spec", f"raymsa submit {JOB_FILE}"))
    lines.append(("its tables", f"raymsa results {shlex.quote(job.id)}"))
    if job.spec.get("search"):
        lines.append(("its search", f"raymsa search {shlex.quote(job.id)}"))
    lines.append(("this page", f"raymsa report {shlex.quote(job.id)} --out report/"))
    return lines


def _code(commit: str) -> str:
    return "the code, which had changes that are in no commit" if commit.endswith("+changes") else "the code"


def _data(about: Evidence) -> str:
    dataset = about.job.spec["dataset"]
    name = dataset.get("name", dataset.get("kind", "not named"))
    if isinstance(about.task, Classification):
        what = f"one of {len(about.task.classes)} classes ({', '.join(about.task.classes)})"
    else:
        what = f"a score from {about.task.low:g} to {about.task.high:g}, metrics by the rules of {about.task.metrics}"
    clips = f"; {len(about.ids):,} test clips were scored" if about.ids else ""
    return f"Data: {name}; each clip has {what}{clips}."


def _model(spec: Mapping[str, Any]) -> str:
    model, inputs, lora = (spec.get(name) or {} for name in ("model", "inputs", "lora"))
    media = _and([MEDIA.get(one, one) for one in inputs.get("modalities", ())])
    parts = [f"Model: {model.get('path', 'not named')}"]
    if model.get("quantization") not in (None, "none"):
        parts.append(f"held in {model['quantization']}")
    if lora:
        parts.append(f"LoRA of rank {lora.get('rank')} and alpha {lora.get('alpha'):g} over the {lora.get('scope')}")
    return ", ".join(parts) + (f"; it is given {media}." if media else ".")


def _training(about: Evidence) -> str:
    spec, train = about.job.spec, about.job.spec["train"]
    rates = f"rates {train['lora_lr']:g} (adapters) and {train['head_lr']:g} (head)"
    seeds = ", ".join(map(str, spec.get("seeds", ())))
    return (
        f"Training: at most {_count(train['epochs'], 'epoch')}, {train['batch_clips']} clips a step, {rates}; "
        f"it ends after {_count(train['patience'], 'epoch')} without a better valid number. Seeds: {seeds}."
    )


def _choice(name: str, values: list[str]) -> str:
    return f"{name} is {' or '.join(dict.fromkeys(values))}"


def _word(value: Any) -> str:
    return "+".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _and(words: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
