"""The words that the Thinker reads of a clip: its own and those before it, in the prompt's template."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from raymsa.clip import Clip
from raymsa.inputs import InputsSpec
from raymsa.prompts import blanks_in
from raymsa.target import Language

# How previous words stand before a clip's own where the template has no {context}.
BEFORE_AND_NOW: dict[Language, str] = {
    "en": "Said before, oldest first:\n{context}\nSaid now:\n{text}",
    "zh": "之前所说（由远到近）：\n{context}\n现在所说：\n{text}",
}
HALF_A_CHARACTER = "\ufffd"  # what a tokenizer makes of a character that was cut in its middle
FIRST_LETTER = re.compile(r"[^\W\d_]")


@dataclass(frozen=True)
class Prompt:
    """Turns a clip's words into the user message that stands behind its media."""

    tokenizer: Any
    inputs: InputsSpec
    template: str
    blanks: Mapping[str, str]
    language: Language = "en"

    def words(self, clip: Clip) -> str:
        """The template filled in; without text among the modalities, as for a clip that says nothing."""
        if "text" not in self.inputs.modalities:
            return self._filled("", "")
        return self._filled(self._own(clip.text), "\n".join(self._before(clip.previous)))

    def _filled(self, text: str, context: str) -> str:
        if context and "context" not in blanks_in(self.template):
            text = BEFORE_AND_NOW[self.language].format(text=text, context=context)
        return self.template.format(text=text, context=context, **self.blanks).strip()

    def _own(self, text: str) -> str:
        text = self._harmless(text)
        ids = self._ids(text)
        most = self.inputs.max_text_tokens
        return text if len(ids) <= most else self.tokenizer.decode(ids[:most]).rstrip(HALF_A_CHARACTER)

    def _before(self, previous: tuple[str, ...]) -> list[str]:
        """The words of the last `context` clips, oldest first, one line each, the newest that fit the budget."""
        kept: list[str] = []
        left = self.inputs.max_context_tokens
        for text in self._newest_first(previous):
            ids = self._ids(text)
            if len(ids) > left and not kept:  # the newest alone is too long: its end is what is nearest
                return [self.tokenizer.decode(ids[-left:]).lstrip(HALF_A_CHARACTER)]
            if len(ids) > left:
                break
            left -= len(ids)
            kept.insert(0, text)
        return kept

    def _newest_first(self, previous: tuple[str, ...]) -> Iterator[str]:
        for text in reversed(previous[len(previous) - min(self.inputs.context, len(previous)) :]):
            yield self._harmless(" ".join(text.split()))  # one line each: no line of a clip's own can be forged

    def _harmless(self, text: str) -> str:
        text = sentence_case(text) if self.inputs.lowercase else text
        for special in self._specials:  # words of a speaker must never open a turn or stand for a picture
            text = text.replace(special, special.replace("<|", "< |"))
        return text

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    @cached_property
    def _specials(self) -> list[str]:
        return [t for t in self.tokenizer.get_added_vocab() if t.startswith("<|")]


def sentence_case(text: str) -> str:
    """All but the first letter in lower case: `I REALLY LIKED IT` -> `I really liked it`. Names lose theirs, too.

    MOSI's transcripts are upper case, which a tokenizer cuts into many rare pieces. Source: CAGMamba lower-cases them
    so (all but the first character).
    """
    first = FIRST_LETTER.search(text)
    return text if first is None else text[: first.end()] + text[first.end() :].lower()
