"""What is predicted: a score on a scale, or one of some classes. The `task` block of a dataset decides; readouts ask.

`Regression` and `Classification` are what a person writes. `Scale` and `Classes` are the same with what the training
labels add, and all that a readout needs: losses, readings, the words of an answer and their parser.

Axes: B clips, K outputs of a head.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import Field, TypeAdapter, field_validator, model_validator

from raymsa.plugins import Spec

if TYPE_CHECKING:
    from torch import Tensor

NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?")
NO_CLASS = -1.0  # the class of an answer that names none: it is wrong, whatever the label
BEFORE_TASKS = ("low", "high", "metrics")  # fields of a dataset in stores that are older than the task block
Language = Literal["en", "zh"]
PROMPTS: dict[tuple[str, Language], str] = {
    ("regression", "en"): "{text}\nHow does the speaker feel about the subject, from {low} (very negative) to {high} "
    "(very positive)? Answer with one signed number with two decimals.",
    ("regression", "zh"): "{text}\n说话人的情感倾向如何？从 {low}（非常消极）到 {high}（非常积极）。"
    "只回答一个带正负号、保留两位小数的数字。",
    ("classification", "en"): "{text}\nWhich of these fits the speaker best: {classes}? Answer with that word alone.",
    ("classification", "zh"): "{text}\n以下哪一项最符合说话人：{classes}？只回答这个词。",
}


class Reading(NamedTuple):
    """One clip's score (or class, counted from 0) as read out. `text` is what the model said, if it says anything."""

    score: float
    text: str | None = None
    parsed: bool = True
    in_range: bool = True


@dataclass(frozen=True)
class Labels:
    """What the training labels say: mean, sd (ddof 0) and median of scores, or clips per class."""

    mean: float = 0.0
    sd: float = 1.0
    median: float = 0.0
    counts: Mapping[str, int] | None = None


@dataclass(frozen=True)
class Scale:
    """A score: its range, and the mean, sd and median of the training labels."""

    low: float
    high: float
    mean: float
    sd: float
    median: float
    metrics: str = "mosi"

    outputs: ClassVar[int] = 1

    @property
    def profile(self) -> str:
        """The metric rules."""
        return self.metrics

    @property
    def constant(self) -> float:
        """The floor to beat: what one answers without looking."""
        return self.median

    def blanks(self) -> dict[str, str]:
        """What a prompt's placeholders are filled with."""
        return {"low": f"{self.low:+g}", "high": f"{self.high:+g}"}

    def loss_B(self, out_BK: Tensor, label_B: Tensor) -> Tensor:
        """L1 between a head's output and the label z-scored with the training mean and sd."""
        return (out_BK[:, 0] - (label_B - self.mean) / self.sd).abs()

    def weight_B(self, label_B: Tensor) -> Tensor:
        """Every score weighs the same."""
        return label_B.new_ones(label_B.shape)

    def read(self, out_BK: Tensor) -> list[Reading]:
        """De-normalised scores, clipped to the label range; a score outside it is marked."""
        return [self._reading(s, None) for s in (out_BK[:, 0].double() * self.sd + self.mean).tolist()]

    def say(self, label: float) -> str:
        """`+1.40`: signed, two decimals; zero is `+0.00`."""
        return f"{label + 0.0:+.2f}" if round(label, 2) else "+0.00"

    def answers(self) -> list[str]:
        """The longest answers there are."""
        return [self.say(self.low), self.say(self.high)]

    @property
    def answers_in_all(self) -> int:
        """Answers within the range, one for each hundredth."""
        return len(self._hundredths)

    def all_answers(self) -> list[str]:
        """Every answer within the range."""
        return [self.say(hundredth / 100) for hundredth in self._hundredths]

    @property
    def _hundredths(self) -> range:
        edge = 1e-6  # of a hundredth: 2.3 * 100 is a little less than 230
        return range(math.ceil(self.low * 100 - edge), math.floor(self.high * 100 + edge) + 1)

    def parse(self, text: str) -> Reading:
        """One number and nothing else, or it is unparsable; then it counts as the middle of the range (0 for MOSI)."""
        match = NUMBER.fullmatch(text.strip())
        if match is None:
            return Reading((self.low + self.high) / 2, text, parsed=False, in_range=False)
        return self._reading(float(match[0]), text)

    def _reading(self, score: float, text: str | None) -> Reading:
        clipped = min(max(score, self.low), self.high)
        return Reading(clipped, text, in_range=self.low <= score <= self.high)


@dataclass(frozen=True)
class Classes:
    """One of some classes: their names, and how often each one occurs among the training labels."""

    names: tuple[str, ...]
    counts: tuple[int, ...]
    balanced: bool = False

    profile: ClassVar[str] = "classes"

    @property
    def outputs(self) -> int:
        """One logit for each class."""
        return len(self.names)

    @property
    def constant(self) -> float:
        """The floor to beat: the most frequent class."""
        return float(max(range(len(self.counts)), key=self.counts.__getitem__))

    def blanks(self) -> dict[str, str]:
        """What a prompt's placeholders are filled with."""
        return {"classes": ", ".join(self.names)}

    def loss_B(self, out_BK: Tensor, label_B: Tensor) -> Tensor:
        """Cross-entropy of the softmax over the classes."""
        from torch.nn.functional import cross_entropy

        return cross_entropy(out_BK, label_B.long(), reduction="none")

    def weight_B(self, label_B: Tensor) -> Tensor:
        """Weight of each clip's class: 1, or N / (K * clips of the class), whose mean over the training clips is 1."""
        if not self.balanced:
            return label_B.new_ones(label_B.shape)
        present = sum(count > 0 for count in self.counts)
        weights = [sum(self.counts) / (present * count) if count else 1.0 for count in self.counts]
        weight_B = label_B.new_zeros(label_B.shape)
        for index, weight in enumerate(weights):  # a table of them would be copied to the device in every pass
            weight_B = weight_B + (label_B == index) * weight
        return weight_B

    def read(self, out_BK: Tensor) -> list[Reading]:
        """The class with the highest logit."""
        return [Reading(float(index)) for index in out_BK.argmax(-1).tolist()]

    def say(self, label: float) -> str:
        """The class's name."""
        return self.names[int(label)]

    def answers(self) -> list[str]:
        """All answers there are."""
        return self.all_answers()

    @property
    def answers_in_all(self) -> int:
        """One for each class."""
        return len(self.names)

    def all_answers(self) -> list[str]:
        """Every class's name."""
        return list(self.names)

    def parse(self, text: str) -> Reading:
        """A class's name and nothing else, in any case; else it is unparsable, and wrong."""
        said = text.strip().casefold()
        found = [index for index, name in enumerate(self.names) if name.casefold() == said]
        if not found:
            return Reading(NO_CLASS, text, parsed=False, in_range=False)
        return Reading(float(found[0]), text)


Target = Scale | Classes


def plain(target: Target) -> dict[str, Any]:
    """A target as plain data, for a checkpoint."""
    return asdict(target)


def from_plain(raw: dict[str, Any]) -> Target:
    """The target that `plain` wrote."""
    if "names" in raw:
        return Classes(tuple(raw["names"]), tuple(raw["counts"]), raw["balanced"])
    return Scale(**raw)


class Regression(Spec):
    """A score, such as sentiment from -3 to +3."""

    kind: Literal["regression"] = "regression"
    target: str | None = Field(None, description="which of the layout's labels; null takes its main one")
    low: float = Field(-3.0, description="lowest possible label")
    high: float = Field(3.0, description="highest possible label")
    metrics: Literal["mosi", "sims"] = Field("mosi", description="metric rules: mosi (MOSI, MOSEI) or sims (CH-SIMS)")

    @model_validator(mode="after")
    def _range_is_a_range(self) -> Regression:
        if not self.low < self.high:
            raise ValueError(f"low ({self.low}) must be below high ({self.high})")
        return self

    @property
    def profile(self) -> str:
        """The metric rules."""
        return self.metrics

    @property
    def answer_blanks(self) -> tuple[str, ...]:
        """Placeholders of a prompt that this task fills."""
        return ("low", "high")

    def label(self, text: str) -> float:
        """The label that stands in a label file. Raises ValueError with the reason when it is none."""
        try:
            label = float(text)
        except ValueError:
            raise ValueError(f"label {text!r} is not a number") from None
        if not math.isfinite(label):
            raise ValueError(f"label {text!r} is not a finite number")
        if not self.low <= label <= self.high:
            raise ValueError(f"label {text} is outside [{self.low:g}, {self.high:g}]")
        return label

    def learned(self, labels: Sequence[float]) -> Labels:
        """What the training labels say."""
        import numpy as np

        values = np.asarray(labels)
        return Labels(float(values.mean()), float(values.std()), float(np.median(values)))

    def with_labels(self, seen: Labels) -> Target:
        """The task as readouts need it."""
        sd = seen.sd or 1.0  # one clip, or all labels the same: nothing to scale, and nothing to divide by
        return Scale(self.low, self.high, seen.mean, sd, seen.median, self.metrics)


class Classification(Spec):
    """One of some classes, such as emotion, polarity or sarcasm."""

    kind: Literal["classification"] = "classification"
    target: str | None = Field(None, description="which of the layout's labels; null takes its main one")
    classes: tuple[str, ...] = Field(min_length=2, description="names of the classes, as the label file spells them")
    class_weights: Literal["none", "balanced"] = Field(
        "none", description="weight of a clip's loss; balanced: clips / (classes * clips of its class), in training"
    )

    @field_validator("classes")
    @classmethod
    def _different(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        twice = [name for name, times in Counter(name.strip().casefold() for name in value).items() if times > 1]
        if twice:
            raise ValueError(f"{twice[0]!r} stands twice; name each class once, upper and lower case are the same")
        if not all(name.strip() for name in value):
            raise ValueError("a class has an empty name")
        return tuple(name.strip() for name in value)

    @property
    def profile(self) -> str:
        """The metric rules."""
        return Classes.profile

    @property
    def answer_blanks(self) -> tuple[str, ...]:
        """Placeholders of a prompt that this task fills."""
        return ("classes",)

    def label(self, text: str) -> float:
        """The class that stands in a label file, counted from 0. Raises ValueError with the reason when it is none."""
        given = text.strip().casefold()
        for index, name in enumerate(self.classes):
            if name.casefold() == given:
                return float(index)
        raise ValueError(f"label {text!r} is none of {', '.join(self.classes)}")

    def learned(self, labels: Sequence[float]) -> Labels:
        """What the training labels say."""
        times = Counter(int(label) for label in labels)
        return Labels(counts={name: times[index] for index, name in enumerate(self.classes)})

    def with_labels(self, seen: Labels) -> Target:
        """The task as readouts need it."""
        counts = seen.counts or {}
        return Classes(self.classes, tuple(counts.get(n, 0) for n in self.classes), self.class_weights == "balanced")


Task = Annotated[Regression | Classification, Field(discriminator="kind")]


def task_of(spec: Mapping[str, Any]) -> Regression | Classification:
    """The task of a run or job as the store keeps its spec; before there was a task, its fields were the dataset's."""
    dataset = spec["dataset"]
    old = {"kind": "regression", **{name: dataset[name] for name in BEFORE_TASKS if name in dataset}}
    task: Regression | Classification = _adapter().validate_python(dataset.get("task") or old)
    return task


@cache
def _adapter() -> TypeAdapter[Any]:
    """Made once: a table of thousands of runs asks for the task of each."""
    return TypeAdapter(Task)
