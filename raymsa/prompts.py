"""Prompts: template files read in, which template a job uses, and whether all of its placeholders can be filled."""

from __future__ import annotations

from pathlib import Path
from string import Formatter
from typing import Any

from raymsa.errors import SpecError
from raymsa.target import PROMPTS

FIELDS = ("inputs.prompt", "dataset.prompt")
ENDING = ".txt"  # one line that ends so is the path of a file; everything else is the prompt itself
DEEPEST = 4  # keys above a prompt: search.space, the field, choice


def with_prompts(raw: dict[str, Any], folder: Path, where: str, above: tuple[str, ...] = ()) -> dict[str, Any]:
    """`raw` with the file's words in the place of every prompt that names one; paths are relative to `folder`.

    `above` are the keys that lead to `raw`. Variants and the choices of a search are read in, too. Raises SpecError
    when a file cannot be read or holds nothing.
    """
    return {key: _read_in(value, folder, where, (*above, key)) for key, value in raw.items()}


def _read_in(value: Any, folder: Path, where: str, place: tuple[str, ...]) -> Any:
    if isinstance(value, dict) and len(place) <= DEEPEST:
        return with_prompts(value, folder, where, place)
    if isinstance(value, list) and place[-1] == "choice" and _is_prompt(place[:-1]):
        return [_read_in(item, folder, where, place[:-1]) for item in value]
    if isinstance(value, str) and _is_prompt(place) and _names_a_file(value):
        return read_template(value.strip(), folder, f"{where}: {'.'.join(place)}: given {value.strip()!r}: ")
    return value


def _is_prompt(place: tuple[str, ...]) -> bool:
    dotted = ".".join(place)
    return any(dotted == field or dotted.endswith(f".{field}") for field in FIELDS)


def _names_a_file(text: str) -> bool:
    return text.strip().endswith(ENDING) and "\n" not in text.strip()


def read_template(path: str, folder: Path, where: str) -> str:
    """The whole file as a template, without the newline at its end. Raises SpecError; `where` is put in front."""
    file = folder / path
    try:
        file = folder / Path(path).expanduser()
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise SpecError(f"{where}{file}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except (OSError, ValueError, RuntimeError) as error:  # ValueError: a NUL in the path; RuntimeError: no such ~user
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise SpecError(f"{where}{str(file)!r} cannot be read: {reason}; give a text file, or the words") from None
    if not text.strip():
        raise SpecError(f"{where}{file}: holds nothing; write the user message there, {{text}} for the transcript")
    return text.removesuffix("\n")


def prompt_of(job: Any) -> str:
    """The user message's template: the job's own, else the dataset's, else its task's in its language."""
    return _source(job)[1]


def prompt_problem(job: Any) -> str | None:
    """Why a job's prompt cannot be used, in one line with its field; None when it can."""
    field, template = _source(job)
    known = ("text", "context", *job.dataset.task.answer_blanks)
    try:
        parts = list(Formatter().parse(template))
    except ValueError as reason:
        return f"{field}: {reason}; for a brace itself, write it twice"
    for _, name, form, conversion in parts:
        if name is not None and (name not in known or form or conversion):
            given = name + f"!{conversion}" * bool(conversion) + f":{form}" * bool(form)
            return f"{field}: cannot fill in {{{given}}}; known for this task are {_listed(known)}"
    placed = {"text", "context"} & blanks_in(template)
    if job.inputs.context and "text" in job.inputs.modalities and not placed:
        return f"{field}: inputs.context is {job.inputs.context}, but there is no {{context}} or {{text}} to put it at"
    return None


def blanks_in(template: str) -> set[str]:
    """Names of the placeholders in a template that can be filled."""
    return {name for _, name, _, _ in Formatter().parse(template) if name}


def _source(job: Any) -> tuple[str, str]:
    """The field that the template stands in, and the template."""
    given = {"inputs.prompt": job.inputs.prompt, "dataset.prompt": job.dataset.prompt}
    default = PROMPTS[job.dataset.task.kind, job.dataset.language]
    return next(((field, text) for field, text in given.items() if text), ("dataset.language", default))


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(f"{{{name}}}" for name in names)
