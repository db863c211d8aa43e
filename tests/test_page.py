"""The report of a job: what is on the page, that it loads nothing, that words stay words, and how it is written."""

import itertools
import json
import math
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from raymsa.cli import main
from raymsa.errors import NotFound, RaymsaError, UsageError
from raymsa.evaluation.metrics import measure
from raymsa.jobfile import load_job
from raymsa.report import page, plots_runs
from raymsa.report.evidence import evidence
from raymsa.report.formats import marked
from raymsa.report.page import MARK, gather, write
from raymsa.report.page_tables import by_seed
from raymsa.report.plots import MOST, plot
from raymsa.store import Store, records
from tests import made_up_runs, searches
from tests.clips import clip
from tests.test_look import write_shards

HOSTILE = "<script>alert('x')</script></title>\" & =cmd|'/c calc'! $\\alpha$ \x1b[31m \u202eabc 😀"
FIRST_TABLES = ("results", "intervals", "runs", "metrics", "signs", "health", "cost")
LAST_TABLES = ("worst", "environment", "settings")
VOID = {"meta", "img", "br", "link", "input", "hr"}


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with Store.open(f"sqlite:///{tmp_path / 'store.db'}") as opened:
        yield opened


class Tree(HTMLParser):
    """The elements of a page with their attributes, its text, and whether every element is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def of(self, *tags: str) -> list[dict[str, str]]:
        return [attributes for tag, attributes in self.found if tag in tags]

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())


def made(store: Store, labels: dict[str, Any] | None = None, skip: tuple[str, ...] = (), **sections: Any) -> str:
    """A job of both readouts and two seeds, finished but for `skip`."""
    spec = made_up_runs.job_spec(**sections)
    job_id = made_up_runs.submit(store, spec)
    made_up_runs.finish(store, job_id, spec, labels or made_up_runs.small(), skip)
    return job_id


def bare(store: Store, name: str = "bare") -> str:
    """A job of which nothing has begun: its report has no figures and is made quickly."""
    return made_up_runs.submit(store, made_up_runs.job_spec(name=name))


def tree_of(store: Store, job_id: str) -> Tree:
    return Tree(page.page(gather(store, job_id)))


# What is there


def test_everything_a_paper_needs_is_on_the_page(store: Store) -> None:
    report = gather(store, made(store))
    assert {name: len(plots) for name, plots in report.plots.items()} == {
        "losses": 2,
        "valid": 1,
        "seeds": 4,
        "predicted": 2,
        "residuals": 1,
        "signs": 1,
        "confusion": 2,
        "pairs": 2,
    }
    assert list(report.sheets) == [*FIRST_TABLES, *LAST_TABLES]
    text = Tree(page.page(report)).text
    assert "whether readout.kind is disc or gen, all else equal?" in text
    assert "gen: 1.25 % of the test answers are unparsable." in text
    assert "git checkout c0ffee" in text
    assert "constant (train median)" in text


def test_the_numbers_are_those_of_the_results_rounded(store: Store) -> None:
    report = gather(store, made(store))
    mae = report.about.found.rows[0].test["mae"]
    text = Tree(page.page(report)).text
    assert f"{mae.mean:.3f} ± {mae.sd:.3f}" in text
    shown = [re.findall(r"\((\S+) to (\S+)\)", str(cell)) for row in report.sheets["intervals"].rows for cell in row]
    ends = [float(end) for found in shown for pair in found for end in pair]
    assert ends and min(ends) >= -1 and max(ends) == 100  # two seeds say next to nothing, but nothing impossible
    alts = [one.alt for one in report.plots["seeds"]]
    said = [float(end) for alt in alts for pair in re.findall(r"from (\S+) to ([\d.-]+\d)", alt) for end in pair]
    assert said and max(said) == 100


def test_one_epoch_has_a_whole_number_and_seeds_that_can_be_told_apart(store: Store, monkeypatch) -> None:
    monkeypatch.setattr(made_up_runs, "EPOCHS", 1)
    (figure,) = plots_runs.valid(evidence(store, made(store, variants={})))
    assert re.findall(r">([\d.]+)<", figure.svg.split("matplotlib.axis_2")[0].split("axis_1")[1]) == ["1"]
    (places,) = {tuple(re.findall(r'<use [^>]*x="([\d.]+)"[^>]*var\(--c0\)', figure.svg))}
    assert len(set(places)) >= 2
    assert "what is filled of it is the seed" in figure.note


def test_a_search_shows_its_trials_and_says_that_the_best_was_lucky(store: Store, tmp_path: Path) -> None:
    job = searches.new_job(store, tmp_path)
    searches.train(store, searches.proposals(store, job))
    tree = tree_of(store, job.id)
    assert "Which values of lora.rank and train.lora_lr give the lowest valid MAE on synthetic?" in tree.text
    assert "Trials of the search" in tree.text
    assert "are also the luckiest" in tree.text


def test_classes_have_their_confusion_and_no_residuals(store: Store) -> None:
    task = {"kind": "synthetic", "name": "clips", "task": made_up_runs.CLASSES}
    report = gather(store, made(store, made_up_runs.small(classes=3), dataset=task))
    assert {name for name, plots in report.plots.items() if plots} == {"losses", "valid", "seeds", "confusion"}
    tree = Tree(page.page(report))
    assert "<b>快乐</b>" in "".join(tree.words)  # also as text of a figure
    assert tree.of("b") == []
    assert "of the runs are wrong" in tree.text


def test_a_collapsed_run_is_called_so(store: Store) -> None:
    labels = {split: {f"c{n}": 0.0 for n in range(5)} | {"d": 3.0} for split in ("valid", "test")}
    spec = made_up_runs.job_spec(variants={})
    job_id = made_up_runs.submit(store, spec)
    run_id = made_up_runs.finish(store, job_id, spec, labels, skip=("disc-2",))[0]
    clips = [
        {"split": "test", "clip_id": name, "label": label, "score": 1.0, "parsed": True, "in_range": True}
        for name, label in labels["test"].items()
    ]
    test = measure("mosi", [1.0] * len(clips), list(labels["test"].values()))
    records.finish_run(store, run_id, {}, {"test": test}, clips)
    assert "disc, collapsed: seed 1 predicts one value (1) for all test clips." in tree_of(store, job_id).text


def test_a_run_that_is_no_better_than_the_constant_is_called_collapsed(store: Store) -> None:
    job_id = made(store, variants={})
    run_id = gather(store, job_id).about.trained[0].run.id
    records.finish_run(store, run_id, {}, {"test": {"mae": 2.0, "constant_mae": 1.9}})
    said = tree_of(store, job_id).text
    assert "disc, collapsed: seed 1 has a test mae of 2.000, no better than the constant predictor's 1.900." in said
    assert "disc (collapsed: 1 of 2 seeds)" in said
    runs = by_seed(gather(store, job_id).about)
    assert [row[0].text for row in marked(runs)[0]] == ["disc (collapsed)", "disc"]
    assert "[1] collapsed: seed 1 has a test mae of 2.000" in said


def test_a_search_by_correlation_calls_no_good_seed_collapsed_and_names_what_chose_the_epoch(store: Store) -> None:
    text = tree_of(store, made_up_runs.confirmed_search(store)[0]).text
    assert "collapsed" not in text
    assert "give the highest valid Corr" in text
    assert "The weights that are best on valid (MAE) are tested, once." in text


def test_the_table_has_valid_and_is_sorted_by_it_and_has_the_text_only_runs_of_the_store(store: Store) -> None:
    text_only = {"inputs": {"modalities": ["text"]}, "variants": {}}
    made(store, name="words", **text_only)
    report = gather(store, made(store, variants={"gen": {"readout.kind": "gen"}, "disc": {}}))
    sheet = report.sheets["results"]
    assert [column.heading for column in sheet.columns][:4] == ["runs", "seeds", "valid MAE", "MAE"]
    labels = [cell if isinstance(cell, str) else cell.cell for cell, *_ in sheet.rows]
    assert set(labels) == {"disc", "gen", "words disc (text only)", "constant (train median)"}
    valid = [row[2].mean for row in sheet.rows[:-1]]
    assert valid == sorted(valid)


def test_two_variants_are_compared_clip_by_clip(store: Store) -> None:
    job_id = made(store)
    for variant, off in (("disc", 0.25), ("gen", -0.75)):
        clips = [
            {"split": "test", "clip_id": name, "label": label, "score": label + off, "parsed": True, "in_range": True}
            for name, label in made_up_runs.small()["test"].items()
        ]
        for seed in (1, 2):
            records.finish_run(store, f"{job_id}-{variant}-{seed}", {}, {}, clips)
    scores, errors = gather(store, job_id).plots["pairs"]
    assert "they correlate at 1.000" in scores.alt
    assert errors.alt == "disc is nearer to the label on 100.0 % of the clips, gen is +0.500 points worse."


# What is missing


def test_a_job_without_a_finished_run_has_a_report_that_says_so(store: Store) -> None:
    job_id = made(store, skip=("disc-1", "disc-2", "gen-1", "gen-2"))
    tree = tree_of(store, job_id)
    assert "Nothing is finished, so there are no numbers here yet." in tree.text
    assert "4 runs queued: in no mean." in tree.text
    assert tree.of("svg") == []


def test_a_job_whose_runs_were_never_made_has_a_report_too(store: Store) -> None:
    job_id = made_up_runs.submit(store, made_up_runs.job_spec())
    assert "0 of 4 runs have results" in tree_of(store, job_id).text


def test_failed_runs_are_named_with_their_reason(store: Store) -> None:
    job_id = made(store, skip=("gen-2",))
    records.fail_run(store, f"{job_id}-gen-2", "loss is NaN at step 3")
    tree = tree_of(store, job_id)
    assert "1 run failed: in no mean." in tree.text
    assert "loss is NaN at step 3" in tree.text
    assert "3 of 4 runs have results" in tree.text


def test_a_job_that_scores_no_test_clips_has_its_curves(store: Store) -> None:
    job_id = made(store, {"valid": made_up_runs.small()["valid"]}, evaluate={"splits": ["valid"]})
    report = gather(store, job_id)
    assert {name for name, plots in report.plots.items() if plots} == {"losses", "valid"}
    assert len(report.plots["valid"]) == 1
    page.page(report)


def test_clips_that_not_every_run_scored_are_counted(store: Store) -> None:
    job_id = made(store)
    more = {"split": "test", "clip_id": "more", "label": 1.0, "score": 1.0, "parsed": True, "in_range": True}
    records.finish_run(store, f"{job_id}-disc-1", {}, {}, [more])
    assert "1 test clips were not scored by every run" in tree_of(store, job_id).text


def test_nan_scores_and_metrics_are_shown_and_harm_no_figure(store: Store) -> None:
    job_id = made(store)
    lost = {"split": "test", "clip_id": "v3$_$3", "label": -2.2, "score": math.nan, "parsed": True, "in_range": True}
    records.finish_run(store, f"{job_id}-disc-1", {}, {"test": {"mae": math.nan, "corr": math.nan}}, [lost])
    report = gather(store, job_id)
    assert report.worst[0].clip_id == "v3$_$3"
    tree = Tree(page.page(report))
    assert "nan ± nan" in tree.text
    assert "1 without a number." in tree.text


def test_one_seed_and_one_clip_are_enough_for_a_page(store: Store) -> None:
    labels = {split: {"only": 1.0} for split in ("valid", "test")}
    tree_of(store, made(store, labels, seeds=(1,)))


def test_more_variants_than_fit_a_figure_are_said_to_be_left_out(store: Store) -> None:
    variants = {f"v{n}": {"lora.rank": n + 1} for n in range(MOST + 2)}
    report = gather(store, made(store, made_up_runs.small(6), seeds=(1,), variants=variants))
    assert len(report.plots["predicted"]) == MOST
    text = Tree(page.page(report)).text
    assert "2 more are in the tables alone" in text
    assert "9 more pairs are left out" in text


def test_thousands_of_clips_are_squares_and_not_dots(store: Store) -> None:
    few, many = (gather(store, made(store, made_up_runs.small(n), seeds=(1,))) for n in (200, 1600))
    size = [len(report.plots["predicted"][0].svg) for report in (few, many)]
    assert size[1] < 8 * size[0]
    assert "Squares: clips" in many.plots["predicted"][0].note


# A page for everybody, without a network


def test_the_page_loads_nothing(store: Store) -> None:
    text = page.page(gather(store, made(store)))
    tree = Tree(text)
    assert not tree.of("script", "link", "iframe", "object", "embed", "base", "form")
    places = [a[name] for _, a in tree.found for name in ("src", "href", "srcset", "poster", "data") if name in a]
    assert places
    assert [place for place in places if not place.startswith(("#", "data:"))] == []
    assert re.findall(r"url\((?!#)|@import|https?://", text) == []
    assert any("default-src 'none'" in meta.get("content", "") for meta in tree.of("meta"))


def test_links_and_ids_meet(store: Store) -> None:
    tree = tree_of(store, made(store))
    ids = Counter(a["id"] for _, a in tree.found if "id" in a)
    assert [name for name, times in ids.items() if times > 1] == []
    named = {a["href"][1:] for _, a in tree.found if a.get("href", "").startswith("#")}
    named |= {name for _, a in tree.found for name in re.findall(r"url\(#([^)]+)\)", " ".join(a.values()))}
    assert named - ids.keys() == set()


def test_a_screen_reader_has_headings_in_order_and_words_for_every_figure(store: Store) -> None:
    tree = tree_of(store, made(store))
    assert tree.of("html")[0]["lang"] == "en"
    levels = [int(tag[1]) for tag, _ in tree.found if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert all(len(svg["aria-label"]) > 40 and svg["role"] == "img" for svg in tree.of("svg"))
    assert all(cell.get("scope") in ("col", "row") for cell in tree.of("th"))
    assert all(image["alt"] for image in tree.of("img"))


def test_figures_take_their_colours_from_the_style_sheet(store: Store) -> None:
    """Else they could not be read on a dark page."""
    svg = "".join(one.svg for plots in gather(store, made(store)).plots.values() for one in plots)
    assert re.findall(r"#[0-9a-f]{6}\b", svg) == []
    assert {"var(--c0)", "var(--c1)", "currentColor"} <= set(re.findall(r"var\(--\w+\)|currentColor", svg))


def test_the_same_job_gives_the_same_bytes(store: Store) -> None:
    job_id = made(store)
    assert page._files(gather(store, job_id)) == page._files(gather(store, job_id))


# Words of others


@pytest.mark.parametrize("classes", [False, True], ids=["scores", "classes"])
def test_hostile_words_are_text_everywhere(store: Store, tmp_path: Path, classes: bool) -> None:
    task = {"kind": "classification", "classes": ["a", HOSTILE, "c"]} if classes else {"kind": "regression"}
    clips = {HOSTILE: 1.0, "x" * 10_000: 1.0, "v1": 2.0}
    spec = made_up_runs.job_spec(dataset={"kind": "synthetic", "name": "clips", "task": task})
    job_id = made_up_runs.submit(store, spec, name=HOSTILE)
    made_up_runs.finish(store, job_id, spec, {"valid": clips, "test": clips}, skip=("gen-2",))
    records.fail_run(store, f"{job_id}-gen-2", HOSTILE * 300)
    out = tmp_path / "report"
    report = gather(store, job_id)
    assert report.worst
    write(report, out)
    for path in filter(Path.is_file, out.rglob("*")):
        text = path.read_text(encoding="utf-8")
        assert "\x1b" not in text and "\u202e" not in text, path
    tree = Tree((out / page.PAGE).read_text(encoding="utf-8"))
    assert not tree.of("script", "b", "a1") and len(tree.of("title")) == 1
    assert tree.text.count("<script>alert('x')</script></title>\" & =cmd|'/c calc'! $\\alpha$") > 300
    tex = (out / "tables/unfinished.tex").read_text(encoding="utf-8")
    assert "\\alpha" not in tex and r"\textbackslash{}alpha" in tex


def test_a_hostile_name_is_text_in_a_figure(store: Store) -> None:
    def paint(axes: Any) -> None:
        axes.set_xlabel("</text><script>a & b</script> $x^2$ 😀 快")

    shown = plot("x", "x", HOSTILE, "", paint).svg
    tree = Tree(shown)
    assert tree.of("script") == []
    assert "</text><script>a & b</script> $x^2$ 😀 快" in "".join(tree.words)
    assert "\x1b" not in shown


# The worst clips


def test_the_worst_clips_have_words_frames_and_sound_where_the_shards_are(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYMSA_HOME", str(tmp_path))
    test = [
        replace(clip(f"c{n}", f"words of {n} {HOSTILE}", 6, 0.4, (56, 440)), label=float(n % 5 - 2)) for n in range(12)
    ]
    folder = tmp_path / "shards" / "clips-0123"
    write_shards(folder, test)
    digest = json.loads((folder / "manifest.json").read_text())["digest"]
    labels = {split: {one.id: one.label for one in test} for split in ("valid", "test")}
    spec = made_up_runs.job_spec()
    job_id = made_up_runs.submit(store, spec)
    made_up_runs.finish(store, job_id, spec, labels)
    assert "no clips with data d1 under RAYMSA_HOME" in gather(store, job_id).words.source
    for run in gather(store, job_id).about.trained:
        records.update_run(store, run.run.id, data_digest=digest)
    report = gather(store, job_id)
    assert report.words.source.startswith(f"The words are those of the shards (data {digest}); frames and sound, where")
    assert len(report.worst) == 10
    errors = [one.error for one in report.worst]
    assert errors == sorted(errors, reverse=True)
    assert all(len(one.frames) == 4 and 'width="146"' in one.frames[0] for one in report.worst)
    tree = Tree(page.page(report))
    assert len(tree.of("audio")) == 10
    assert f"words of {report.worst[0].clip_id[1:]} <script>" in tree.text


def test_words_that_are_nowhere_are_said_to_be_missing(store: Store) -> None:
    tree = tree_of(store, made(store))
    assert "The words are not at hand" in tree.text
    assert "words not at hand" in tree.text


# The folder


def test_the_folder_holds_the_page_the_tables_the_job_and_the_mark(store: Store, tmp_path: Path) -> None:
    job_id = made(store)
    files = write(gather(store, job_id), tmp_path / "deep/report")
    there = sorted(str(p.relative_to(tmp_path / "deep/report")) for p in (tmp_path / "deep/report").rglob("*.*"))
    assert sorted(files) == there
    assert {"index.html", "job.yaml", "tables/results.md", "tables/results.tex", MARK} <= set(files)
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["report"]
    assert "\\toprule" in (tmp_path / "deep/report/tables/results.tex").read_text()


def test_the_job_file_of_a_report_is_the_job(store: Store, tmp_path: Path) -> None:
    write(gather(store, bare(store, "made_up")), tmp_path / "report")
    assert load_job(tmp_path / "report/job.yaml").model_dump(mode="json") == made_up_runs.job_spec()


def test_an_older_report_is_replaced(store: Store, tmp_path: Path) -> None:
    out = tmp_path / "report"
    write(gather(store, bare(store, "first")), out)
    write(gather(store, bare(store, "second")), out)
    assert "<title>second" in (out / "index.html").read_text()
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == ["report"]


def test_what_is_no_report_of_ours_is_left_alone(store: Store, tmp_path: Path) -> None:
    report = gather(store, bare(store))
    for out in (tmp_path / "mine", tmp_path / "file"):
        out.mkdir() if out.name == "mine" else out.touch()
        with pytest.raises(UsageError, match="is there and is no report; name a new folder"):
            write(report, out)
    write(report, tmp_path / "report")
    (tmp_path / "report/tables/notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"holds tables/notes\.txt, which is no part of the report"):
        write(report, tmp_path / "report")
    assert (tmp_path / "report/tables/notes.txt").read_text() == "mine"


def test_a_report_that_cannot_be_written_leaves_the_older_one(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "report"
    write(gather(store, bare(store, "first")), out)
    later = gather(store, bare(store, "second"))
    rename = Path.rename

    def full(self: Path, target: Path) -> Path:
        if target == out:
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(RaymsaError, match="cannot be written: No space left on device"):
        write(later, out)
    assert "<title>first" in (out / "index.html").read_text()
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == ["report"]


def test_the_command_writes_a_report_and_prints_where(store: Store, tmp_path: Path) -> None:
    job_id = bare(store)
    words = ["report", job_id[:5], "--store", str(store.engine.url), "--out", str(tmp_path / "report")]
    ended = CliRunner().invoke(main, words)
    assert (ended.exit_code, ended.stdout.strip()) == (0, str(tmp_path / "report/index.html"))
    again = CliRunner().invoke(main, [*words, "--json"])
    assert json.loads(again.stdout)["job"] == job_id


def test_the_command_refuses_in_one_line(store: Store, tmp_path: Path) -> None:
    words = ["report", "nothing", "--store", str(store.engine.url), "--out"]
    refused = CliRunner().invoke(main, [*words, str(tmp_path)])
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    unknown = CliRunner().invoke(main, [*words, str(tmp_path / "new")])
    assert unknown.exit_code == NotFound.exit_code
    assert not (tmp_path / "new").exists()
