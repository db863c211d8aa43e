"""What a folder of shards holds, in numbers: from its manifest, its csv files and the small columns of its shards."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from raymsa.clip import SPLITS
from raymsa.data import manifest as manifests
from raymsa.data.columns import columns
from raymsa.data.manifest import NOTES, REJECTS
from raymsa.errors import DataError
from raymsa.target import Classification, Regression, task_of

PERCENTILES = {"p5": 5, "p25": 25, "p50": 50, "p75": 75, "p95": 95, "max": 100}
BINS = 12  # at most, of a label's range
BIN_WIDTHS = (0.05, 0.1, 0.2, 0.25, 0.5, 1, 2, 2.5, 5, 10)
SMALL = ["split", "text", "label", "seconds", "audio_tokens", "video_tokens"]
VARYING = re.compile(r"'[^']*'|\"[^\"]*\"|[-+]?\d+(?:\.\d+)?")  # what differs between two rows with the same problem


@dataclass(frozen=True)
class Part:
    """One split, or all of them. `text_tokens` is None where no tokenizer was given; `tokens` then leaves words out.

    `seconds` and `tokens` are percentiles per clip, `seconds` of the clips with sound or picture.
    """

    clips: int
    hours: float
    without_words: int
    without_sound: int
    without_picture: int
    words: int
    characters: int
    text_tokens: int | None
    audio_tokens: int
    video_tokens: int
    seconds: dict[str, float] | None
    tokens: dict[str, float] | None
    labels: dict[str, Any]


@dataclass(frozen=True)
class Stats:
    """A folder of shards. `parts` has every split that has clips, and `all`; reasons are counted as in `by_reason`."""

    folder: str
    name: str
    digest: str
    task: str
    parts: dict[str, Part]
    rejects: int
    rejects_by_reason: dict[str, int]
    damaged: int
    notes_by_reason: dict[str, int]
    cut_sound: int
    published: dict[str, int]


def stats(folder: Path, tokenizer: Any = None) -> Stats:
    """The numbers of a folder of shards. Raises DataError when it is not whole."""
    manifest = manifests.read(folder)
    task = task_of({"dataset": manifest.settings})
    table = columns(folder, manifest, SMALL)
    column = {name: table[name].to_numpy() for name in SMALL}
    text_tokens = None if tokenizer is None else np.array(counted(tokenizer, table["text"].to_pylist()), int)
    in_split = {split: column["split"] == split for split in SPLITS}
    chosen = {split: where for split, where in in_split.items() if where.any()}
    chosen["all"] = np.ones(table.num_rows, bool)
    return Stats(
        folder=str(folder),
        name=manifest.name,
        digest=manifest.digest,
        task=task.kind,
        parts={name: _part(column, text_tokens, where, task) for name, where in chosen.items()},
        rejects=manifest.rejects,
        rejects_by_reason=by_reason(_reasons(folder / REJECTS)),
        damaged=manifest.damaged,
        notes_by_reason=by_reason(_reasons(folder / NOTES)),
        cut_sound=manifest.cut_sound,
        published=manifest.settings.get("published", {}),
    )


def tokenizer_of(path: str) -> Any:
    """The tokenizer of a model folder, of a model on the hub, or of the tiny Thinker. Raises DataError."""
    from transformers import AutoTokenizer

    from raymsa.thinker.load import resolve

    if path.startswith(("/", ".", "~")) and not Path(path).expanduser().exists():
        raise DataError(f"--model: given '{path}'; there is no such folder")
    try:
        return AutoTokenizer.from_pretrained(resolve(path), trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise DataError(f"--model: given '{path}'; no tokenizer could be opened there: {reason}") from None


def counted(tokenizer: Any, texts: Sequence[str]) -> list[int]:
    """Tokens of each text, without the chat's marks around it."""
    return [len(ids) for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]] if texts else []


def label_summary(task: Regression | Classification, labels: Sequence[float]) -> dict[str, Any]:
    """Clips per class, or range, mean, sd, median, signs and a histogram of scores (bins closed at their low end)."""
    if isinstance(task, Classification):
        times = Counter(int(label) for label in labels)
        return {"classes": {name: times[index] for index, name in enumerate(task.classes)}}
    values = np.asarray(labels, float)
    if not len(values):
        return {"min": None, "max": None, "bins": []}
    edges = _edges(task.low, task.high)
    counts, _ = np.histogram(values, edges)
    bins = [{"low": low, "high": high, "clips": int(n)} for low, high, n in zip(edges, edges[1:], counts, strict=False)]
    return {
        "min": float(values.min()),
        "max": float(values.max()),
        "mean": float(values.mean()),
        "sd": float(values.std()),
        "median": float(np.median(values)),
        "negative": int((values < 0).sum()),
        "zero": int((values == 0).sum()),
        "positive": int((values > 0).sum()),
        "bins": bins,
    }


def by_reason(reasons: Iterable[str]) -> dict[str, int]:
    """How often each reason occurs, the most frequent first; what differs between like ones is shown as `…`."""
    alike: dict[tuple[str, ...], Counter[str]] = {}  # by the words between those that vary
    for reason in reasons:
        alike.setdefault(tuple(VARYING.split(reason)), Counter())[reason] += 1
    counts: Counter[str] = Counter()  # two groups have one line where a reason holds a `…` of its own
    for between, words in alike.items():
        counts[_common(list(words), between)] += words.total()
    return dict(counts.most_common())


def _common(reasons: list[str], between: tuple[str, ...]) -> str:
    """One line for reasons that differ in numbers and quoted words only."""
    columns = zip(*map(VARYING.findall, reasons), strict=True)
    same = [values[0] if len(set(values)) == 1 else "…" for values in columns]
    return between[0] + "".join(value + rest for value, rest in zip(same, between[1:], strict=True))


def _part(column: dict[str, Any], text_tokens: Any, where: Any, task: Regression | Classification) -> Part:
    texts = column["text"][where]
    seconds, heard, seen = (column[name][where] for name in ("seconds", "audio_tokens", "video_tokens"))
    said = None if text_tokens is None else text_tokens[where]
    return Part(
        clips=len(texts),
        hours=float(seconds.sum() / 3600),
        without_words=sum(not text.strip() for text in texts),
        without_sound=int((heard == 0).sum()),
        without_picture=int((seen == 0).sum()),
        words=sum(len(text.split()) for text in texts),
        characters=sum(map(len, texts)),
        text_tokens=None if said is None else int(said.sum()),
        audio_tokens=int(heard.sum()),
        video_tokens=int(seen.sum()),
        seconds=_percentiles(seconds[(heard > 0) | (seen > 0)]),
        tokens=_percentiles(heard + seen if said is None else heard + seen + said),
        labels=label_summary(task, column["label"][where]),
    )


def _percentiles(values: Any) -> dict[str, float] | None:
    if not len(values):
        return None
    return dict(zip(PERCENTILES, map(float, np.percentile(values, list(PERCENTILES.values()))), strict=True))


def _edges(low: float, high: float) -> list[float]:
    """The edges of at most BINS bins, of a width that people count in where the range allows it."""
    counts = [(high - low) / width for width in BIN_WIDTHS]
    fits = [round(count) for count in counts if abs(count - round(count)) < 1e-9 and count <= BINS + 0.5]
    bins = fits[0] if fits else 10
    return [round(float(edge), 10) for edge in np.linspace(low, high, bins + 1)]  # 0.6, not 0.6000000000000001


def _reasons(path: Path) -> list[str]:
    """The last column of a csv file that `prepare` writes; none where there is no such file."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [row[-1] for row in csv.reader(file) if row][1:]
