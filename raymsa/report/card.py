"""The model card of a run: README.md with front matter, the table, and how to use what lies beside it.

The front matter has this run's own numbers, because they are this model's; the table puts the mean over its seeds
beside them and says which is which.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from raymsa.evaluation.criteria import CRITERIA
from raymsa.evaluation.metrics import PROFILES
from raymsa.report.cells import GIB, HOUR_S, metric_column, number
from raymsa.report.collapse import Collapse, collapse, one_values
from raymsa.report.finals import CONSTANT, HEALTH, finals_of, in_order
from raymsa.report.formats import Column, Sheet, markdown
from raymsa.report.members import beside, is_trial, tried_words
from raymsa.report.spread import Spread, spread
from raymsa.store import Store, queries
from raymsa.target import Classification, task_of
from raymsa.words import visible

LICENCE = (
    "None is stated here. The base model and the dataset have licences and terms of their own, and what they ask of "
    "adapters trained on them is for whoever publishes this to check; add `license:` to the lines at the top then."
)
FRESH = "What these settings give with a fresh seed is another number."


@dataclass(frozen=True)
class Card:
    """What the card tells. `seeds` are the finished runs whose mean is told, `counts` is whether this run is one of
    them; `trial`: they are trials of a search; `chose`: this run is one. `collapse` judges this run, `all_collapse`
    those. `tried` are the seeds of the mean with which a search tried the settings. `spec` holds no paths.
    """

    run: queries.RunRow
    job_name: str
    spec: Mapping[str, Any]
    base_model: str | None
    finals: Mapping[str, Mapping[str, float]]
    seeds: Mapping[int, Mapping[str, Mapping[str, float]]]
    has_head: bool
    collapse: Collapse
    all_collapse: Collapse
    counts: bool = True
    trial: bool = False
    chose: bool = False
    tried: tuple[int, ...] = ()

    @property
    def profile(self) -> str:
        """The metrics' rules."""
        return task_of(self.spec).profile

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics on test, the best known first."""
        return [name for name in in_order(self.profile) if name in self.finals.get("test", {})]


def card_of(store: Store, run: queries.RunRow, spec: Mapping[str, Any], base_model: str | None, has_head: bool) -> Card:
    """Gather what the card of a finished run tells, unrounded."""
    profile, group, job = task_of(spec).profile, beside(store, run), queries.job(store, run.job_id)
    finals = {one.id: finals_of(store, one, profile) for one in (run, *group.runs)}
    tests = {run_id: splits.get("test", {}) for run_id, splits in finals.items()}
    said = one_values(store, tests, dict.fromkeys(tests, profile))
    return Card(
        run=run,
        job_name=job.name,
        spec=spec,
        base_model=base_model,
        finals=finals[run.id],
        seeds={one.seed: finals[one.id] for one in group.runs},
        has_head=has_head,
        collapse=_judged([run], tests, profile, said),
        all_collapse=_judged(group.runs, tests, profile, said),
        counts=run.id in {one.id for one in group.runs},
        trial=group.trial,
        chose=is_trial(run, job),
        tried=group.tried,
    )


def text(card: Card) -> str:
    """The whole README.md."""
    head = yaml.safe_dump(_front(card), allow_unicode=True, sort_keys=False, width=1000)
    parts = [_title(card), _results(card), _use(card), _training(card), f"## Licence\n\n{LICENCE}\n"]
    return f"---\n{head}---\n\n" + "\n".join(parts)


def _judged(
    runs: Iterable[queries.RunRow],
    tests: Mapping[str, Mapping[str, float]],
    profile: str,
    said: Mapping[str, float],
) -> Collapse:
    mine = list(runs)
    one_value = {run.seed: said[run.id] for run in mine if run.id in said}
    return collapse({run.seed: tests[run.id] for run in mine}, profile, one_value)


def _front(card: Card) -> dict[str, Any]:
    dataset = card.spec["dataset"]
    tags = ["raymsa", "lora", "multimodal", "sentiment-analysis", card.spec["readout"]["kind"]]
    base = {"base_model": card.base_model, "base_model_relation": "adapter"} if card.base_model else {}
    values = {name: card.finals.get("test", {}).get(name, math.nan) for name in card.metrics}
    told = [{"type": n, "name": f"{n} (test)", "value": v} for n, v in values.items() if math.isfinite(v)]
    result = {
        "task": {"type": "other", "name": "Multimodal sentiment analysis"},
        "dataset": {"type": visible(dataset["name"]), "name": visible(dataset["name"]), "split": "test"},
        "metrics": told,
    }
    index = {"model-index": [{"name": visible(card.run.id), "results": [result]}]} if told else {}
    return {**base, "library_name": "peft", "language": dataset.get("language", "en"), "tags": tags, **index}


def _title(card: Card) -> str:
    base = f"`{card.base_model}`" if card.base_model else "a base model that is not on the Hub (see spec.yaml)"
    reads = ", ".join(card.spec["inputs"]["modalities"])
    return (
        f"# {_line(card.run.id)}\n\n"
        f"LoRA adapters {'and a head ' if card.has_head else ''}for the Thinker of {base}, trained by raymsa on "
        f"{_line(card.spec['dataset']['name'])} with the readout `{_line(card.spec['readout']['kind'])}`. "
        f"It reads {reads}.\n"
    )


def _results(card: Card) -> str:
    if not card.metrics:
        return "## Results\n\nThis run was not scored on test.\n"
    test = card.finals["test"]
    seeds = ", ".join(map(str, card.seeds))
    means = {
        name: spread(by["test"][name] for by in card.seeds.values() if name in by.get("test", {}))
        for name in card.metrics
    }
    rows: list[tuple[str, Mapping[str, float | Spread | None]]] = [
        (_marked(f"this run (seed {card.run.seed}): what lies here", card.collapse), test),
        (_marked(f"mean ± sd of {len(card.seeds)} seeds ({seeds})", card.all_collapse), means),
    ]
    constant = {name: test[CONSTANT + name] for name in card.metrics if CONSTANT + name in test}
    what = "most frequent class" if isinstance(task_of(card.spec), Classification) else "train median"
    if constant:
        rows.append((f"constant predictor ({what})", constant))
    columns = (Column("what", "on test"), *(metric_column(name, name) for name in card.metrics))
    sheet = Sheet("", columns, tuple((label, *map(values.get, card.metrics)) for label, values in rows))
    rules = "\n".join(f"- `{name}`: {_rule(card.profile, name)}" for name in card.metrics)
    return f"## Results\n\n{markdown(sheet)}\n{_collapsed(card)}{_which(card)}{_tried(card)}\n\n{rules}\n"


def _marked(label: str, found: Collapse) -> str:
    return f"{label} ({found.words})" if found.words else label


def _collapsed(card: Card) -> str:
    task = task_of(card.spec)
    classes = task.classes if isinstance(task, Classification) else ()
    reasons = dict.fromkeys((*card.collapse.reasons(classes), *card.all_collapse.reasons(classes)))
    return "".join(f"- {_line(reason)}\n" for reason in reasons) + ("\n" if reasons else "")


def _which(card: Card) -> str:
    """How this run stands among its seeds, on valid: whether it is the luckiest is seen there."""
    if card.trial:
        return "It is a trial of a search: the best of many on one seed is also the luckiest. " + FRESH
    if not card.counts and not card.chose:
        return "A newer run has the same seed, and that one is in the mean."
    if not card.counts:
        return "This run is the trial by which a search chose these settings, so it is not in the mean. " + FRESH
    if len(card.seeds) == 1:
        return "One seed is known here: how much the numbers would move with another is not known."
    rule = CRITERIA[card.profile]
    errors = {seed: rule.turned(by.get("valid", {}).get(rule.metric, math.nan)) for seed, by in card.seeds.items()}
    if any(map(math.isnan, errors.values())):
        return "To compare with others' means, take the mean: this run is one of its seeds."
    place = 1 + sum(error < errors[card.run.seed] for error in errors.values())
    return (
        f"By {rule.words} on valid, this run is number {place} of {len(errors)} seeds. "
        "To compare with others' means, take the mean: a single seed may be lucky."
    )


def _tried(card: Card) -> str:
    words = tried_words(card.tried)
    return f" {words[0].upper()}{words[1:]}." if card.tried else ""


def _use(card: Card) -> str:
    commands = [
        "hf download OWNER/NAME --local-dir FOLDER    # where it comes from the Hub; else FOLDER is this one",
        "raymsa import FOLDER",
        f"raymsa predict {shlex.quote(visible(card.run.id))} clip.mp4 --text 'the words that are said in it'",
    ]
    code = [
        "from peft import PeftModel",
        "from transformers import Qwen2_5OmniThinkerForConditionalGeneration",
        "",
        f"thinker = Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained({card.base_model or 'BASE'!r})",
        'model = PeftModel.from_pretrained(thinker, "FOLDER")',
    ]
    head = (
        "\nThe score is read by the head in head.safetensors from the last token's hidden state, with the prompt and "
        "inputs of spec.yaml; `raymsa predict` does all of it.\n"
        if card.has_head
        else "\nThe score is what the model says to the prompt in spec.yaml; `raymsa predict` asks and parses.\n"
    )
    return f"## Use\n\n{_block(commands)}\nThe adapters alone, with plain PEFT:\n\n{_block(code)}{head}"


def _training(card: Card) -> str:
    run, spec, test = card.run, card.spec, card.finals.get("test", {})
    facts = {
        "job": card.job_name,
        "data digest": run.data_digest,
        "spec digest": run.spec_digest,
        "commit": run.git_commit,
        "weights of the base while training": spec["model"].get("quantization"),
        "trainable parameters": None if run.trainable_parameters is None else f"{run.trainable_parameters:,}",
        "device hours": f"{run.device_s / HOUR_S:.3f}",
        "peak memory": None if run.peak_memory_bytes is None else f"{run.peak_memory_bytes / GIB:.2f} GiB",
        **{f"{name} answers on test": f"{number(name, test[name])} %" for name in HEALTH if name in test},
        "versions": ", ".join(f"{name} {version}" for name, version in (run.versions or {}).items()),
    }
    lines = "\n".join(f"- {name}: {_line(str(value))}" for name, value in facts.items() if value)
    return (
        f"## Training\n\nEvery setting is in spec.yaml: `raymsa submit spec.yaml` repeats this run where the clips are "
        f"at hand.\n\n{lines}\n\nNo clip, label or prediction is in this folder.\n"
    )


def _rule(profile: str, name: str) -> str:
    return (PROFILES[profile][name].__doc__ or name).split("\n")[0]


def _line(words: str) -> str:
    """Words of anybody in a line of Markdown."""
    return markdown(Sheet("", (Column("x", words),), ())).split("\n")[0].strip("| ")


def _block(lines: Sequence[str]) -> str:
    """Lines as they are: an indented block cannot be ended by what stands in it."""
    return "".join(f"    {line}".rstrip() + "\n" for line in lines)
