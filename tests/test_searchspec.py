"""The search block of a job: what is refused, in one line, and what it stands for."""

from typing import Any

import pytest

from raymsa.errors import SpecError
from raymsa.plan import plan, tasks_of
from raymsa.ranges import size
from raymsa.searchspec import aim_of
from raymsa.spec import check
from tests.searches import SPACE

CHOICES = {"lora.rank": {"choice": [2, 4]}}


def job_of(search: dict[str, Any], **sections: Any) -> Any:
    raw = {"name": "x", "model": {"path": "tiny"}, "dataset": {"kind": "synthetic", "name": "s"}}
    return check({**raw, "readout": {"kind": "disc"}, "search": search, **sections}, "job")


@pytest.mark.parametrize(
    ("search", "sections", "line"),
    [
        ({}, {}, "search.trials: missing; it is how many settings to try"),
        ({"trials": 3}, {"space": CHOICES}, "search.trials: given 3, but the space has only 2 settings"),
        ({"algorithm": "grid"}, {}, "search.space.train.lora_lr: given loguniform; a grid has points"),
        (
            {"algorithm": "grid"},
            {"space": {"train.batch_clips": {"int": [1, 10**9]}}},
            "search.space: a grid of 1,000,000,000 points; give at most",
        ),
        (
            {"trials": 2, "algorithm": "cma-es"},
            {"space": CHOICES},
            "search.algorithm: given cma-es, which needs a field",
        ),
        (
            {"trials": 2, "metric": "test_mae"},
            {},
            "search.metric: given 'test_mae': test cannot be chosen by; give one of",
        ),
        ({"trials": 2, "metric": "mae"}, {}, "search.metric: given 'mae'; give one of valid_"),
        ({"trials": 2, "metric": "valid_uar"}, {}, "search.metric: given 'valid_uar'; give one of valid_"),
        (
            {"trials": 2},
            {"seeds": [1, 2]},
            "seeds: given [1, 2]; trials of a search have one: give one, and the others",
        ),
        (
            {"trials": 2, "confirm": {"seeds": [1]}},
            {"seeds": [1]},
            "search.confirm.seeds: given [1]; 1 is the search's",
        ),
        ({"trials": 2, "confirm": {"seeds": [7, 7]}}, {}, "search.confirm.seeds: given [7, 7]; name each seed once"),
        ({"trials": 2}, {"evaluate": {"splits": ["test"]}}, "evaluate.splits: given ['test']; a search needs valid"),
        (
            {"trials": 2, "scheduler": "asha"},
            {"train": {"epochs": 1}},
            "search.scheduler: given asha, but every trial is",
        ),
        (
            {"trials": 2},
            {"space": {"resources.cpus": {"choice": [1, 2]}}},
            "search.space.resources.cpus: a search cannot",
        ),
        (
            {"trials": 1},
            {"space": {"lora.rank": {"choice": [4, 4]}}},
            "search.space: lora.rank.choice: given [4, 4]; name",
        ),
        (
            {"trials": 2},
            {"space": {"lora": {"choice": [{"rank": 2}, {"rank": 4}]}, "lora.rank": {"choice": [2, 4]}}},
            "search.space.lora.rank: it lies inside 'lora'",
        ),
        (
            {"trials": 2},
            {"space": {"readout.kind": {"choice": ["disc", "gen"]}, "readout.head_width": {"choice": [8, 16]}}},
            "search.space: with readout.kind=gen, readout.head_width=8: readout.head_width: unknown key",
        ),
    ],
)
def test_what_cannot_be_together_is_one_line(search, sections, line):
    block = {"space": sections.pop("space", SPACE), **search}
    with pytest.raises(SpecError) as caught:
        job_of(block, **sections)
    lines = [text.removeprefix("job: ") for text in str(caught.value).splitlines()]
    assert len(lines) == 1 and lines[0].startswith(line)


@pytest.mark.parametrize(
    ("search", "aim"),
    [
        ({}, ("mae", False)),
        ({"metric": "valid_corr"}, ("corr", True)),
        ({"metric": "valid_acc7", "direction": "low"}, ("acc7", False)),
    ],
)
def test_the_metric_says_which_way_is_good(search, aim):
    job = job_of({"space": SPACE, "trials": 1, **search})
    assert aim_of(job.model_dump(mode="json")) == aim


def test_classes_are_searched_by_weighted_f1():
    classes = {
        "kind": "synthetic",
        "name": "s",
        "task": {"kind": "classification", "target": "emotion", "classes": ["a", "b"]},
    }
    job = job_of({"space": SPACE, "trials": 1}, dataset=classes)
    assert aim_of(job.model_dump(mode="json")) == ("f1", True)


def test_a_job_with_a_search_says_how_much_it_is():
    job = job_of({"space": SPACE, "trials": 5, "confirm": {"top": 2, "seeds": [7, 8]}}, seeds=[1])
    assert (plan(job)["runs"], tasks_of(job)) == (11, ("prepare", "train", "confirm"))
    assert tasks_of(job_of({"space": SPACE, "trials": 5})) == ("prepare", "train")


def test_a_range_too_wide_to_list_is_counted():
    assert size({"lora.rank": {"int": [1, 10**12]}, "lora.alpha": {"choice": [1, 2]}}) == 2 * 10**12
    assert size({"lora.rank": {"int": [1, 10**12]}, "train.lora_lr": {"uniform": [0, 1]}}) is None
