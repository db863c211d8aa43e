"""raymsa compare: which runs are meant, what is refused and why, what is said, from a real store."""

import csv
import io
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from raymsa.cli import main
from raymsa.clip import SHARD_SCHEMA, Clip, to_row
from raymsa.data import manifest
from raymsa.data.manifest import Manifest
from raymsa.evaluation.metrics import measure
from raymsa.jobfile import load_dataset
from raymsa.queue import NewTask, put
from raymsa.report.compare import comparison
from raymsa.spec import check
from raymsa.store import Store, queries, records, tables
from tests import made_up_runs
from tests.made_up_runs import confirmed_search

ROOT = Path(__file__).parent.parent
CLIPS, VIDEOS = 120, 12
LABEL = np.round(np.random.default_rng(0).uniform(-3, 3, CLIPS), 1)
IDS = [f"video{n % VIDEOS}$_${n:04d}" for n in range(CLIPS)]
CLASSES = {"kind": "classification", "classes": ["sad", "happy"]}
HOSTILE = "<script>alert(1)</script>\x1b[31m=cmd|' /C calc'!A0\u202e"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    url = f"sqlite:///{tmp_path / 'store.db'}"
    monkeypatch.setenv("RAYMSA_STORE", url)
    with Store.open(url) as opened:
        yield opened


def job_of(store: Store, *variants: str, name: str = "mosi", **sections: Any) -> str:
    spec = spec_of(variants={each: {} for each in variants}, **sections)
    return put(store, name, spec, [NewTask("run", {})], submitted_by="me", folder="/", git_commit=None)


def spec_of(kind: str = "cmu", task: Any = None, **sections: Any) -> dict[str, Any]:
    data = {"kind": kind, "name": "s", **({"task": task} if task else {})}
    whole = {"name": "m", "model": {"path": "tiny"}, "dataset": data, "readout": {"kind": "disc"}, **sections}
    return check(whole, "test").model_dump(mode="json")


def done(
    store: Store,
    job: str,
    variant: str,
    seed: int,
    score: Any,
    *,
    key: str = "",
    digest: str = "data",
    clips: Any = IDS,
    label: Any = LABEL,
    unparsed: int = 0,
    split: str = "test",
    **sections: Any,
) -> str:
    """A finished run with these scores."""
    run_id = f"{job}-{variant}-{seed}"
    row = {"id": run_id, "job_id": job, "task_id": None, "variant": variant, "seed": seed}
    key = key or f"{variant}{'0' * 16}"[:16]
    records.create_runs(store, [{**row, "group_key": key, "spec": spec_of(**sections), "spec_digest": "d"}])
    records.update_run(store, run_id, data_digest=digest)
    rows = [
        {"split": split, "clip_id": c, "label": t, "score": s, "parsed": n >= unparsed, "in_range": True}
        for n, (c, t, s) in enumerate(zip(clips, label, score, strict=True))
    ]
    records.finish_run(store, run_id, {}, {}, rows)
    return run_id


def two(store: Store, seeds: tuple[int, ...] = (1, 2), other_seeds: tuple[int, ...] = (1, 2), **other: Any) -> str:
    """A job whose `disc` misses each label by about 0.3 and `gen` by about 0.5."""
    job = job_of(store, "disc", "gen")
    for variant, miss, its_seeds in (("disc", 0.3, seeds), ("gen", 0.5, other_seeds)):
        for seed in its_seeds:
            noise = np.random.default_rng([seed, int(10 * miss)]).normal(0, 0.1, CLIPS)
            done(store, job, variant, seed, LABEL + miss + noise, **(other if variant == "gen" else {}))
    return job


def call(*words: str) -> Result:
    return CliRunner().invoke(main, ["compare", *words, "--resamples", "500"])


def data(*words: str) -> dict[str, Any]:
    result = call(*words, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)  # type: ignore[no-any-return]


def flat(text: str) -> str:
    return " ".join(text.split())


# What comes out


def test_a_known_difference_is_found_exactly(store: Store) -> None:
    job = job_of(store, "disc", "gen")
    for seed in (1, 2):
        done(store, job, "disc", seed, LABEL + 0.25)
        done(store, job, "gen", seed, LABEL - 0.5)
    (found,) = data("mosi/disc", "mosi/gen")["differences"]
    assert (found["metric"], found["high_is_good"], found["by_seed"]) == ("mae", False, True)
    numbers = found["found"]
    assert numbers["a"] == pytest.approx(0.25, abs=1e-6)
    assert [numbers[name] for name in ("difference", "low", "high")] == pytest.approx([-0.25] * 3, abs=1e-6)
    assert numbers["p"] == pytest.approx(1 / 501, abs=2 / 501)  # all videos swapped, or none: 2 of 4,096


def test_the_difference_is_that_of_the_results_table(store: Store) -> None:
    job = two(store)
    found = data("mosi/disc", "mosi/gen", "--metric", "corr", "--metric", "acc7")
    for each in found["differences"]:
        means = {}
        for variant in ("disc", "gen"):
            runs = [queries.predictions(store, f"{job}-{variant}-{seed}", "test") for seed in (1, 2)]
            values = [measure("mosi", [c.score for c in run], [c.label for c in run])[each["metric"]] for run in runs]
            means[f"mosi/{variant}"] = np.mean(values)
        assert each["found"]["difference"] == pytest.approx(means[each["a"]] - means[each["b"]], abs=1e-6)


def test_clips_are_paired_by_id_and_not_by_their_order(store: Store) -> None:
    job = job_of(store, "disc", "gen")
    mixed = np.random.default_rng(1).permutation(CLIPS)
    done(store, job, "disc", 1, LABEL + 0.5)
    done(store, job, "gen", 1, (LABEL + 0.5)[mixed], clips=[IDS[n] for n in mixed], label=LABEL[mixed])
    numbers = data("mosi/disc", "mosi/gen")["differences"][0]["found"]
    assert (numbers["difference"], numbers["p"]) == (0, 1)


def test_the_screen_has_the_table_and_the_sentence(store: Store) -> None:
    two(store)
    text = flat(call("mosi/disc", "mosi/gen").stdout)
    row = r"mosi/disc against mosi/gen 0\.\d{3} 0\.\d{3} -0\.\d{3} -0\.\d{3} -0\.\d{3} 0\.00\d 120 12 2 2"
    assert re.search(row, text), text
    assert re.search(r"mosi/disc is ahead of mosi/gen by 0\.\d+ of mae; the 95 % interval leaves 0 out, and p is", text)
    assert "videos and seeds drawn with replacement (500 resamples, random seed 0)" in text
    assert "significant" not in text


def test_the_interval_has_the_level_that_was_asked_for(store: Store) -> None:
    two(store)
    wide, narrow = (data("mosi/disc", "mosi/gen", "--confidence", level) for level in ("0.99", "0.5"))
    lengths = [d["differences"][0]["found"]["high"] - d["differences"][0]["found"]["low"] for d in (wide, narrow)]
    assert lengths[0] > 4 * lengths[1]
    assert "50 % interval" in call("mosi/disc", "mosi/gen", "--confidence", "0.5").stdout


def test_which_is_ahead_follows_from_what_is_good_of_the_metric(store: Store) -> None:
    job = job_of(store, "near", "far")
    rng = np.random.default_rng(2)
    done(store, job, "near", 1, LABEL + rng.normal(0, 0.2, CLIPS))
    done(store, job, "far", 1, LABEL + rng.normal(0, 2, CLIPS))
    said = flat(call("mosi/far", "mosi/near", "--metric", "mae", "--metric", "corr").stdout)
    assert len(re.findall("mosi/near seed 1 is ahead of mosi/far seed 1 by", said)) == 2


def test_an_interval_that_holds_0_is_not_settled(store: Store) -> None:
    job = job_of(store, "disc", "gen")
    for seed in (1, 2):
        for number, variant in enumerate(("disc", "gen")):
            done(store, job, variant, seed, LABEL + np.random.default_rng([seed, number]).normal(0, 1, CLIPS))
    assert "the 95 % interval holds 0: which one is better is not settled." in flat(
        call("mosi/disc", "mosi/gen").stdout
    )


def test_all_pairs_and_metrics_are_corrected_together(store: Store) -> None:
    job = job_of(store, "a", "b", "c")
    for number, variant in enumerate("abc"):
        noise = np.random.default_rng(number).normal(0, 1, CLIPS)
        done(store, job, variant, 1, LABEL + noise * (1 + 0.1 * number))
    found = data("mosi/a", "mosi/b", "mosi/c", "--metric", "mae", "--metric", "corr")["differences"]
    assert [(d["a"][5], d["b"][5], d["metric"]) for d in found] == [
        (*pair, metric) for metric in ("mae", "corr") for pair in ("ab", "ac", "bc")
    ]
    p = sorted((d["found"]["p"], d["p_holm"]) for d in found)
    assert p[0][1] == pytest.approx(min(1, 6 * p[0][0]))
    text = flat(call("mosi/a", "mosi/b", "mosi/c").stdout)
    assert "(Holm)" in text and "corrected for the 3 tests here" in text
    assert "with simultaneous 95 % intervals" in text
    assert "the 3 intervals are Bonferroni's: each is of 98.3333 %" in text


def test_the_intervals_of_a_table_agree_with_their_number(store: Store) -> None:
    job = job_of(store, "a", "b", "c")
    for number, variant in enumerate("abc"):
        for seed in (1, 2):
            noise = np.random.default_rng([number, seed]).normal(0, 1, CLIPS)
            done(store, job, variant, seed, LABEL + noise)
    three, alone = data("mosi/a", "mosi/b", "mosi/c"), data("mosi/a", "mosi/b")
    same = data("mosi/a", "mosi/b", "--confidence", str(1 - 0.05 / 3))
    assert (three["each"], alone["each"]) == pytest.approx((1 - 0.05 / 3, 0.95))
    first, only, wide = (found["differences"][0]["found"] for found in (three, alone, same))
    assert first["p"] == only["p"] and first["low"] < only["low"] and first["high"] > only["high"]
    assert (first["low"], first["high"]) == pytest.approx((wide["low"], wide["high"]))


def test_a_metric_that_is_not_defined_is_said_in_words(store: Store) -> None:
    job = job_of(store, "disc", "flat")
    done(store, job, "disc", 1, LABEL * 0.9)
    done(store, job, "flat", 1, np.full(CLIPS, 0.2))
    result = call("mosi/disc", "mosi/flat", "--metric", "corr")
    assert result.exit_code == 0
    assert "mosi/flat seed 1: corr is not defined" in flat(result.stdout)
    numbers = data("mosi/disc", "mosi/flat", "--metric", "corr")["differences"][0]
    assert (numbers["found"]["p"], numbers["p_holm"], numbers["found"]["b"]) == (None, None, None)


def test_classes_are_compared_by_weighted_f1(store: Store) -> None:
    job = job_of(store, "disc", "gen", task=CLASSES)
    label = np.arange(CLIPS) % 2.0
    done(store, job, "disc", 1, label, label=label, task=CLASSES)
    done(store, job, "gen", 1, np.where(np.arange(CLIPS) < 12, -1, label), label=label, task=CLASSES, unparsed=12)
    found = data("mosi/disc", "mosi/gen")["differences"][0]
    assert (found["metric"], found["found"]["a"]) == ("f1", 1)
    assert "10.00 % of the answers could not be parsed and count as wrong" in flat(call("mosi/disc", "mosi/gen").stdout)


# Seeds and videos


@pytest.mark.parametrize("others", [(2, 3, 4), (2, 3)])
def test_other_seeds_are_not_paired_and_that_is_said(store: Store, others: tuple[int, ...]) -> None:
    two(store, (1, 2), others)
    (found,) = data("mosi/disc", "mosi/gen")["differences"]
    assert not found["by_seed"]
    text = flat(call("mosi/disc", "mosi/gen").stdout)
    assert "mosi/disc and mosi/gen have other seeds (1, 2; 2, 3" in text
    assert "they are not paired in seeds" in text


def test_one_seed_says_nothing_of_others(store: Store) -> None:
    two(store, (1,), (1,))
    assert "one seed of mosi/disc seed 1, mosi/gen seed 1" in flat(call("mosi/disc", "mosi/gen").stdout)


def test_what_is_not_finished_is_said(store: Store) -> None:
    job = two(store)
    row = {"id": "late", "job_id": job, "task_id": None, "variant": "gen", "seed": 9, "spec": {}}
    records.create_runs(store, [{**row, "group_key": "gen" + "0" * 13, "spec_digest": "d"}])
    for words in ("mosi/gen", "gen0"):
        assert "mosi/gen: runs that are not done yet: 1" in flat(call("mosi/disc", words).stdout)
    records.set_run_state(store, "late", "pruned", detail="")
    assert "not done" not in call("mosi/disc", "gen0").stdout


def test_clips_without_videos_count_as_independent_and_that_is_said(store: Store) -> None:
    two(store, clips=IDS)
    with_videos = data("mosi/disc", "mosi/gen")
    assert (with_videos["videos"], with_videos["clips"]) == (VIDEOS, CLIPS)
    job = job_of(store, "disc", "gen", name="own", kind="table")
    for variant, miss in (("disc", 0.3), ("gen", 0.5)):
        done(store, job, variant, 1, LABEL + miss, clips=[f"c{n:03d}" for n in range(CLIPS)], kind="table")
    assert data("own/disc", "own/gen")["videos"] is None
    assert "clips were taken as independent" in flat(call("own/disc", "own/gen").stdout)


def test_the_videos_of_ids_that_do_not_name_them_are_those_of_the_shards(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYMSA_HOME", str(tmp_path))
    raw = tmp_path / "raw"
    raw.mkdir()
    lines = ["id,text,score,split,film", *(f"c{n},word {n},{n % 5 - 2},test,film{n // 3}" for n in range(12))]
    (raw / "clips.csv").write_text("\n".join([*lines, "t,a word,1,train,other"]) + "\n")
    columns = {"video": "film"}
    config = tmp_path / "own.yaml"
    config.write_text(json.dumps({"kind": "table", "name": "own", "raw": str(raw), "columns": columns}))
    dataset = load_dataset(config)
    shards = tmp_path / "shards" / "own-0123"
    digest = made_shards(dataset, raw, shards)
    job = job_of(store, "disc", "gen")
    told = {"clips": [f"c{n}" for n in range(12)], "label": [n % 5 - 2 for n in range(12)], "digest": digest}
    for variant, miss in (("disc", 0.3), ("gen", 0.5)):
        run_id = done(store, job, variant, 1, np.asarray(told["label"]) + miss, **told)
        spec = queries.run(store, run_id).spec
        own = dataset.model_dump(mode="json")
        records.update_run(store, run_id, spec={**spec, "dataset": own})
    assert comparison(store, ["mosi/disc", "mosi/gen"], []).videos == 4
    records.update_run(store, f"{job}-disc-1", data_digest=None)  # perhaps of other clips
    assert comparison(store, ["mosi/disc", "mosi/gen"], []).videos is None


def made_shards(dataset: Any, raw: Path, folder: Path) -> str:
    """A folder of shards of clips of words alone, without Ray."""
    folder.mkdir(parents=True)
    rows = [to_row(Clip(c.id, c.video_id, c.text, c.label, c.split)) for c in dataset.clips(raw)]
    pq.write_table(pa.Table.from_pylist(rows, SHARD_SCHEMA), folder / "test-0.parquet")
    counts = {"train": 0, "valid": 0, "test": len(rows)}
    file = {"name": "test-0.parquet", "split": "test", "rows": len(rows), "sha256": ""}
    file |= {"bytes": (folder / "test-0.parquet").stat().st_size}
    about = {"name": "own", "digest": "shards", "counts": counts, "without_sound": {}, "without_picture": {}}
    about |= {"cut_sound": 0, "damaged": 0, "rejects": 0, "labels": None, "settings": {}, "versions": {}}
    manifest.write(folder, Manifest.model_validate({**about, "files": (file,)}))
    return "shards"


def test_clips_of_a_single_video_have_no_interval(store: Store) -> None:
    job = job_of(store, "disc", "gen")
    for variant, miss in (("disc", 0.3), ("gen", 0.5)):
        done(store, job, variant, 1, LABEL + miss, clips=[f"v$_${n}" for n in range(CLIPS)])
    assert "there is no interval (one video, or" in flat(call("mosi/disc", "mosi/gen").stdout)
    assert data("mosi/disc", "mosi/gen")["differences"][0]["found"]["low"] is None


def test_few_videos_say_how_small_p_can_be(store: Store) -> None:
    job = job_of(store, "disc", "gen")
    for variant, miss in (("disc", 0.3), ("gen", 0.5)):
        done(store, job, variant, 1, LABEL + miss, clips=[f"v{n % 3}$_${n}" for n in range(CLIPS)])
    assert "with 3 videos, p cannot be below 0.25" in flat(call("mosi/disc", "mosi/gen").stdout)


# What is meant


def test_a_group_has_many_names(store: Store) -> None:
    job = two(store)
    single = job_of(store, name="single")
    for seed in (1, 2):
        done(store, single, "disc", seed, LABEL + 0.4, key="f" * 16)
    gen = data("mosi/gen", "mosi/disc")["sides"][0]
    for words in (f"{job}/gen", f"{job[:6]}:gen", "gen00"):
        assert data(words, "mosi/disc")["sides"][0]["runs"] == gen["runs"]
    assert data("single", "mosi/disc")["sides"][0]["runs"] == [f"{single}-disc-1", f"{single}-disc-2"]
    assert data("ffff", "mosi/disc")["sides"][0]["runs"] == [f"{single}-disc-1", f"{single}-disc-2"]
    assert data(f"{job}-gen-2", f"{job}-disc-2")["sides"][0]["seeds"] == [2]


def test_of_a_group_over_several_jobs_the_newest_run_of_a_seed_counts(store: Store) -> None:
    two(store)
    again = job_of(store, "gen", name="again")
    newest = done(store, again, "gen", 2, LABEL + 0.9)
    side = data("gen0000000000000", "mosi/disc")["sides"][0]
    assert newest in side["runs"] and side["repeated"] == [2]
    assert "seeds 2 were run more than once" in flat(call("gen0000000000000", "mosi/disc").stdout)


def test_groups_of_the_same_name_are_told_apart(store: Store) -> None:
    jobs = [job_of(store, "disc"), job_of(store, "disc")]
    for job, miss in zip(jobs, (0.3, 0.5), strict=True):
        done(store, job, "disc", 1, LABEL + miss, key=f"{miss}")
    names = [side["name"] for side in data(*(f"{job}/disc" for job in jobs))["sides"]]
    assert names == [f"{job}/disc" for job in jobs]


def test_of_a_search_the_runs_that_confirm_a_setting_count(store: Store) -> None:
    search = {"trials": 2, "space": {"lora.rank": {"choice": [4, 8]}}, "metric": "valid_corr"}
    spec = check({**spec_of(), "variants": {}, "search": search, "seeds": [1]}, "test").model_dump(mode="json")
    job = put(store, "s", spec, [NewTask("run", {})], submitted_by="me", folder="/", git_commit=None)
    for variant in ("t1", "t2"):
        for seed in (1, 7, 8):
            noise = np.random.default_rng([seed, int(variant[1])]).normal(0, 1, CLIPS)
            done(store, job, variant, seed, LABEL + noise, key=f"{variant}x")
    found = data("s/t1", "s/t2")
    assert [side["seeds"] for side in found["sides"]] == [[7, 8], [7, 8]]
    assert found["differences"][0]["metric"] == "corr"


def test_the_lucky_trial_of_a_search_is_never_counted_with_the_runs_that_confirm_it(store: Store) -> None:
    job_id, trial, *fresh = confirmed_search(store)
    plain = made_up_runs.job_spec(seeds=(4, 5), name="plain", variants={"gen": {"readout.kind": "gen"}})
    made_up_runs.finish(store, made_up_runs.submit(store, plain), plain, made_up_runs.small())
    key = queries.run(store, trial).group_key
    for words in (key, key[:6], job_id, f"{job_id}/t1"):
        mine = data(words, "plain")["sides"][0]
        assert (mine["runs"], mine["trial"]) == (fresh, False), words
    alone = data(trial, "plain")["sides"][0]
    assert (alone["runs"], alone["trial"]) == ([trial], True)
    said = flat(call(trial, "plain").stdout)
    assert "search/t1 seed 1: the trial of a search, chosen because it did well; runs of its settings" in said
    assert f"fresh seeds (2, 3) are done: raymsa compare {key} takes those" in said


def test_a_trial_without_fresh_seeds_is_said_to_have_none(store: Store) -> None:
    _, trial, *fresh = confirmed_search(store)
    for name in fresh:
        records.set_run_state(store, name, "failed", detail="")
    plain = made_up_runs.job_spec(seeds=(4, 5), name="plain", variants={"gen": {"readout.kind": "gen"}})
    made_up_runs.finish(store, made_up_runs.submit(store, plain), plain, made_up_runs.small())
    assert "chosen because it did well; no run with a fresh seed is done" in flat(call(trial, "plain").stdout)


def test_a_seed_with_which_a_search_tried_the_settings_is_said_to_be_lucky(store: Store) -> None:
    confirmed_search(store)
    for name, variants in (("plain", {"disc": {}}), ("other", {"gen": {"readout.kind": "gen"}})):
        spec = made_up_runs.job_spec(seeds=(1, 2), name=name, variants=variants)
        made_up_runs.finish(store, made_up_runs.submit(store, spec), spec, made_up_runs.small())
    said = flat(call("plain", "other").stdout)
    assert "plain/disc: a search tried these settings with seed 1, too: if it chose them for that," in said
    assert "other/gen: a search tried" not in said


# What is refused


def refused(code: int, *words: str) -> str:
    result = call(*words)
    assert result.exit_code == code, result.output
    lines = result.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ")
    return lines[0]


def test_other_data_is_refused(store: Store) -> None:
    two(store, digest="other")
    line = refused(2, "mosi/disc", "mosi/gen")
    assert "mosi/disc and mosi/gen cannot be compared: their clips were prepared differently" in line
    assert "data, other" in line


def test_any_two_groups_on_other_data_are_refused(store: Store) -> None:
    job = job_of(store, "a", "b", "c")
    for variant, digest in (("a", None), ("b", "one"), ("c", "other")):
        done(store, job, variant, 1, LABEL + 0.5, digest=digest)
    assert "mosi/b seed 1 and mosi/c seed 1 cannot be compared" in refused(2, "mosi/a", "mosi/b", "mosi/c")
    assert "mosi/a seed 1: which data it was trained on is not recorded" in flat(call("mosi/a", "mosi/b").stdout)


def test_other_clips_are_refused(store: Store) -> None:
    two(store, clips=[*IDS[:-1], "video0$_$9999"])
    assert "their clips differ: 1 ('video11$_$0119') only in the first" in refused(2, "mosi/disc", "mosi/gen")


def test_other_labels_are_refused(store: Store) -> None:
    two(store, label=[LABEL[0] + 1, *LABEL[1:]])
    assert "labels of 1 clips differ" in refused(2, "mosi/disc", "mosi/gen")


def test_other_metrics_are_refused(store: Store) -> None:
    two(store, task={"kind": "regression", "metrics": "sims"})
    assert "their metrics differ in kind (mosi, sims)" in refused(2, "mosi/disc", "mosi/gen")


def test_runs_of_one_group_on_other_clips_are_refused(store: Store) -> None:
    two(store)
    done(store, job_of(store, "gen", name="again"), "gen", 3, LABEL, digest="other")
    assert "its runs are on different clips (data digests data, other)" in refused(2, "gen00", "mosi/disc")


def test_what_is_not_there_or_not_done_has_its_own_code(store: Store) -> None:
    job = two(store)
    late = job_of(store, name="late")
    assert "no job, group or run 'nix'" in refused(102, "nix", "mosi/gen")
    assert "has no variant 'nix'; it has disc, gen" in refused(102, "mosi/nix", "mosi/gen")
    assert "no run of it is done (none has begun)" in refused(101, "late", "mosi/gen")
    row = {"id": f"{late}-disc-1", "job_id": late, "task_id": None, "variant": "disc", "seed": 1, "group_key": "k"}
    records.create_runs(store, [{**row, "spec": {}, "spec_digest": "d"}])
    assert "no run of it is done (queued)" in refused(101, f"{late}-disc-1", f"{job}-gen-1")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["mosi/disc"], "name two groups or more"),
        (["mosi", "mosi/gen"], "several variants; name one: mosi/disc, mosi/gen"),
        (["mosi/disc", "mosi:disc"], "have runs in common"),
        (["mosi/disc", "mosi/gen", "--metric", "mea"], "given 'mea'; did you mean mae?"),
        (["mosi/disc", "mosi/gen", "--split", "valid"], "has no predictions of valid"),
        (["mosi/disc", "mosi/gen", "--json", "--format", "csv"], "exclude each other"),
    ],
)
def test_what_a_person_got_wrong_is_one_line(store: Store, words: list[str], said: str) -> None:
    two(store)
    assert said in refused(2, *words)


# Formats


def test_csv_is_one_table_of_unrounded_numbers(store: Store) -> None:
    two(store)
    words = ("mosi/disc", "mosi/gen", "--metric", "mae", "--metric", "acc7")
    rows = list(csv.DictReader(io.StringIO(call(*words, "--format", "csv").stdout)))
    found = data(*words)["differences"]
    assert [row["metric"] for row in rows] == ["mae", "acc7"]
    assert [float(row["difference"]) for row in rows] == [each["found"]["difference"] for each in found]
    assert [float(row["p_holm"]) for row in rows] == [each["p_holm"] for each in found]


@pytest.mark.parametrize("how", ["text", "markdown", "latex", "csv", "json"])
def test_strange_names_are_text_in_every_format(store: Store, how: str) -> None:
    job = job_of(store, name=HOSTILE)
    other = job_of(store, name="x" * 10_000)
    done(store, job, "disc", 1, LABEL + 0.3, key="a" * 16)
    done(store, other, "disc", 1, LABEL + 0.5, key="b" * 16)
    result = call("aaaa", "bbbb", "--format", how)
    assert result.exit_code == 0, result.output
    assert "\x1b" not in result.stdout
    assert how == "json" or "\u202e" not in result.stdout
    if how == "markdown":
        assert "<script" not in result.stdout
    if how == "csv":
        words = [row[name] for row in csv.DictReader(io.StringIO(result.stdout)) for name in ("a", "b")]
        assert not any(cell.startswith(("=", "+", "-", "@")) for cell in words)
    assert "\x1b" not in call("aaaa", "bbbb", "--split", "valid").stderr


def test_the_same_command_gives_the_same_numbers(store: Store) -> None:
    two(store)
    assert data("mosi/disc", "mosi/gen") == data("mosi/disc", "mosi/gen")
    other = data("mosi/disc", "mosi/gen", "--seed", "1")["differences"][0]["found"]
    assert other["low"] != data("mosi/disc", "mosi/gen")["differences"][0]["found"]["low"]
    assert math.isfinite(other["low"])


def test_headings_are_those_of_the_other_tables(store: Store) -> None:
    two(store)
    shown = call("mosi/disc", "mosi/gen", "--metric", "acc7", "--format", "markdown").stdout
    assert "| A (%) | B (%) | A-B (%) | low (%) | high (%) | p |" in shown
    assert "| A | B | A-B | low | high | p |" in call("mosi/disc", "mosi/gen", "--format", "markdown").stdout


def test_a_search_by_a_metric_that_is_unknown_here_is_compared_by_the_tasks_own(store: Store) -> None:
    job_id = two(store)
    with store.write() as connection:
        spec = {**queries.job(store, job_id).spec, "search": {"metric": "valid_later"}, "seeds": [9]}
        connection.execute(tables.jobs.update().values(spec=spec))
    assert data("mosi/disc", "mosi/gen")["differences"][0]["metric"] == "mae"
