"""Texts of others on a terminal and in data: nothing in them hides or acts, and nothing of them is lost."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from rich.console import Console

from raymsa.cli import main
from raymsa.cli.base import print_json, say
from raymsa.evaluation.neighbours import Neighbourhood
from raymsa.home import run_dir, store_url
from raymsa.report.latent import Latent, Space, render
from raymsa.store import Store
from raymsa.words import visible
from tests import stores

ACTING = "\x1b[2J\x9b31m\x07\r\b\x7f\u202e\u2066\u200b\ufeff\u2028\x85\0\U000e0041"
HARMLESS = "é 快乐 می\u200cخواهم 👩\u200d🔬 \U0001f6a8"


def is_harmless(text: str) -> bool:
    return visible(text, "\n") == text


def test_what_acts_is_shown_as_an_escape_and_what_is_written_stays() -> None:
    assert visible(ACTING).isprintable()
    assert visible("\x1b\u202e\u200b") == r"\x1b\u202e\u200b"
    assert visible(HARMLESS) == HARMLESS
    assert visible("a\tb\nc\rd", "\t\n") == "a\tb\nc\\rd"


def test_data_on_a_terminal_hides_nothing_and_is_the_same_data(capsys: pytest.CaptureFixture[str]) -> None:
    value = {ACTING: [ACTING, HARMLESS, "\udc80", 0.5, float("nan")]}
    print_json(value)
    said = capsys.readouterr().out
    assert is_harmless(said) and HARMLESS in said
    assert json.loads(said) == {ACTING: [ACTING, HARMLESS, "\udc80", 0.5, None]}


def test_a_line_for_a_person_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    say(f"taken in: {ACTING}{HARMLESS}")
    said = capsys.readouterr().err
    assert is_harmless(said) and said.count("\n") == 1 and said.endswith(f"{HARMLESS}\n")


def test_an_error_with_words_of_others_is_one_line(tmp_path: Path) -> None:
    refused = CliRunner().invoke(main, ["import", str(tmp_path / "no\x1b[2J\u202e\x85folder")])
    assert refused.exit_code == 102
    assert is_harmless(refused.stderr) and refused.stderr.count("\n") == 1, refused.stderr


def test_the_table_of_hidden_states_shows_a_runs_id_as_text() -> None:
    near = [Neighbourhood(10, 0.95, 1.896, 1.8, 1.99, 0.001)]
    space = Space("base", near, np.zeros((3, 2)), np.zeros(2), 4)
    page = io.StringIO()
    found = Latent(f"r{ACTING}", ACTING, "test", (-3, 3), np.zeros(3), "euclidean", 1, 0, [space])
    render(found, Console(file=page, width=160))
    assert is_harmless(page.getvalue())


def test_a_log_of_others_is_printed_as_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYMSA_HOME", str(tmp_path))
    with Store.open(store_url()) as store:
        stores.add_runs(store, stores.put(store), "r1")
    run_dir("r1").mkdir(parents=True)
    (run_dir("r1") / "log.txt").write_text(f"one\ttwo\n{ACTING}{HARMLESS}\n", encoding="utf-8")
    said = CliRunner().invoke(main, ["logs", "r1"]).stdout
    assert said.startswith("one\ttwo\n") and HARMLESS in said
    assert is_harmless(said.replace("\t", ""))
