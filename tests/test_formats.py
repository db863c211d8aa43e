"""Tables as Markdown, LaTeX and CSV: what is rounded where, and words that would like to be more than words."""

import csv
import io
import math
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from raymsa.report.formats import WRITERS, Cell, Column, Noted, Sheet, csv_text, latex, markdown, write
from raymsa.report.spread import Spread

HOSTILE = {
    "script": "<script>alert(1)</script></title>",
    "quotes": "\"'`''`",
    "formula": "=cmd|' /C calc'!A0",
    "latex": r"\input{x} $x$ & % # _ ^ ~ {} \\ [1pt]",
    "markdown": "[a](http://b) | **c** `d` # e @f",
    "terminal": "\x1b[2J\x9b31m\x07",
    "direction": "\u202egnp.exe\u2066\u200f",
    "emoji": "😀你好",
    "lines": "a\nb\r\nc\td\u2028e",
    "long": "x" * 10_000,
    "half": "\ud800",
}
COLUMNS = (
    Column("label", "variant"),
    Column("mae", "MAE", 3),
    Column("acc7", "acc7 (%)", 1, 100),
    Column("n", "seeds"),
)


def sheet(*rows: tuple[Cell, ...], title: str = "", notes: tuple[str, ...] = ()) -> Sheet:
    return Sheet(title, COLUMNS, rows, notes)


def hostile(text: str) -> Sheet:
    return Sheet(text, (Column("a", text), Column("b", "MAE", 3)), ((Noted(text, (text,)), 0.5), ("b", 0.5)), (text,))


def test_markdown_rounds_in_the_units_of_the_headings() -> None:
    written = markdown(sheet(("disc", Spread(0.52749, 0.0061, 4), 0.40625, 4), ("gen", math.nan, None, 10_000)))
    assert written.splitlines() == [
        "| variant | MAE | acc7 (%) | seeds |",
        "| --- | ---: | ---: | ---: |",
        "| disc | 0.527 ± 0.006 | 40.6 | 4 |",
        "| gen | nan | - | 10,000 |",
    ]


def test_latex_is_a_booktabs_table() -> None:
    written = latex(sheet(("disc_a", Spread(-0.52749, 0.0061, 4), 0.40625, 4), title="50 % of it"))
    assert written.splitlines() == [
        r"% needs \usepackage{booktabs,graphicx}",
        r"\begin{table}",
        r"\centering",
        r"\caption{50 \% of it}",
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        r"\begin{tabular}{lrrr}",
        r"\toprule",
        r"variant & MAE & acc7 (\%) & seeds \\",
        r"\midrule",
        r"disc\_a & $-$0.527 $\pm$ 0.006 & 40.6 & 4 \\",
        r"\bottomrule",
        r"\end{tabular}%",
        "}",
        r"\end{table}",
    ]


def test_a_sentence_in_latex_has_lines() -> None:
    rows = (("a", "word " * 20), ("b", "short"))
    two = Sheet("", (Column("a", "clip"), Column("b", "words")), rows)
    assert r"\begin{tabular}{lp{.4\linewidth}}" in latex(two)


def test_csv_is_unrounded_and_gives_the_sd_its_own_column() -> None:
    rows = [("disc", Spread(1 / 3, 0.1, 4), np.float64(-0.1), 4), ("gen", Spread(math.nan, None, 1), None, 1)]
    assert csv_text(sheet(*rows)) == (
        "label,mae,mae_sd,acc7,n\r\ndisc,0.3333333333333333,0.1,-0.1,4\r\ngen,nan,,,1\r\n"
    )


@pytest.mark.parametrize(
    "text", ["=1+1", "+1", "-1", "@x", "\tx", "\rx", "\nx", " =1", "  \t@x", "\u200c+1", "=cmd|' /C calc'!A0", "＝1"]
)
def test_words_that_a_spreadsheet_would_calculate_get_a_quote_and_numbers_do_not(text: str) -> None:
    named = Sheet("", (Column(text, "a"), Column("b", "b", 1)), (("x", -0.5), (Noted(text, (text,)), -1.5)))
    heading, _, row = csv.reader(io.StringIO(csv_text(named), newline=""))
    assert heading == [f"'{text}", "b", "notes"]
    assert row == [f"'{text}", "-1.5", f"'{text}"]


def test_equal_footnotes_share_a_number_and_stand_under_the_table() -> None:
    rows = [(Noted("a", ("one",)), Noted(0.5, ("two", "one")), None, 1), ("b", Noted(0.5, ("two",)), None, 1)]
    made = sheet(*rows, notes=("three",))
    assert r"| a \[1\] | 0.500 \[2,1\] | - | 1 |" in markdown(made)
    assert markdown(made).splitlines()[-3:] == [r"- \[1\] one", r"- \[2\] two", "- three"]
    assert r"a\textsuperscript{1} & 0.500\textsuperscript{2,1} & - & 1 \\" in latex(made)
    assert r"\par{\footnotesize three}" in latex(made)
    assert [row[-1] for row in csv.reader(io.StringIO(csv_text(made)))] == ["notes", "one; two; one", "two"]


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_csv_gives_back_the_words_that_went_in(text: str) -> None:
    _, (back, _, note), _ = csv.reader(io.StringIO(csv_text(hostile(text)), newline=""))
    escaped = "".join(c if c.isprintable() or c in "\t\r\n" else repr(c)[1:-1] for c in text)
    assert back == note == ("'" if text[0] in "=@" else "") + escaped


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_markdown_stays_a_table_of_text(text: str) -> None:
    title, _, *table, _, first, second = markdown(hostile(text)).splitlines()
    assert len(table) == 4
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 3 for line in table)
    whole = " ".join([title, *table, first, second])
    assert not re.search(r"<|(?<!\\)[`$\[\]]|@", whole)
    assert "\\\\u202e" in whole or "\u202e" not in text


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_latex_is_balanced_and_its_specials_are_escaped(text: str) -> None:
    body = latex(hostile(text)).split("\n", 1)[1]
    rows = body.split("\\toprule\n")[1].split("\\bottomrule")[0].splitlines()
    bare = [re.sub(r"\\text[a-z]+\{\}|\\[{}$&#%_]|\$(?:\\pm|-)\$", "", row) for row in rows if row != r"\midrule"]
    assert [row[-3:] for row in bare] == [r" \\"] * 3
    assert [row.count("&") for row in bare] == [1, 1, 1]
    assert set(re.findall(r"\\.[a-z]*", "".join(row[:-3] for row in bare))) <= {r"\textsuperscript"}
    assert not re.search(r"[$#%~^_`]|(?<!\{)\[", "".join(bare))
    assert body.count("{") - body.count(r"\{") == body.count("}") - body.count(r"\}")
    assert not re.search("[^\0-\u017f–—…‘’“”€†‡]", body)


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no TeX is at hand")
def test_any_words_are_set_by_pdflatex(tmp_path: Path) -> None:
    tables = "\n".join(latex(hostile(text)) for text in HOSTILE.values())
    head = r"\documentclass{article}\usepackage[T1]{fontenc}\usepackage[utf8]{inputenc}\usepackage{booktabs,graphicx}"
    (tmp_path / "paper.tex").write_text(rf"{head}\begin{{document}}{tables}\end{{document}}")
    fonts = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}  # TeX keeps what it makes of fonts at home
    words = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(words, cwd=tmp_path, env=fonts, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "paper.pdf").stat().st_size > 1000


def test_what_pdflatex_lacks_is_written_as_code_points() -> None:
    assert "U+1F600 U+4F60 U+597D x é – U+0119" in latex(sheet(("😀你好 x é – ę", 0.5, 0.5, 1)))


def test_several_tables_are_apart_by_an_empty_line() -> None:
    one = sheet(("a", 0.5, 0.5, 1))
    assert write([one, one], "markdown").count("\n\n") == 1
    assert write([one, one], "csv").count("\r\n\r\n") == 1


@pytest.mark.parametrize("how", WRITERS)
def test_a_table_without_rows_is_its_heading(how: str) -> None:
    assert "mae" in write([sheet()], how).lower()
