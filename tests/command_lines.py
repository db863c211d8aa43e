"""Finds `ray ...` and `raymsa ...` commands in text, and asks the real command lines whether they would take them."""

import re
import shlex
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
import yaml

PROGRAMS = ("ray", "raymsa")
ENDS = set(";&|()\n")  # of a simple command
BEFORE = {"if", "then", "do", "else", "while", "until", "exec", "!", "{", "sudo", "setsid", "nohup", "srun"}
REDIRECTION = re.compile(r"(?<!\S)[0-9&]?(?:>>?|<)\s*(?:&\d|[^\s;&|)]+)")
CAPITALS = re.compile(r"\b[A-Z][A-Z_]*\b|\.\.\.")
NOT_FOR_SYMMETRIC_RUN = {"--head", "--node-ip-address", "--port", "--block"}


def commands(text: str) -> Iterator[list[str]]:
    """Every command of ours or Ray's in shell text, as words; also those inside quoted words and behind `--`."""
    for words in _simple_commands(text):
        for word in words:
            if re.search(r"\s", word):
                with suppress(ValueError):  # a sentence with an apostrophe is no command
                    yield from commands(word)
        start = 0
        while start < len(words) and (words[start] in BEFORE or re.match(r"-|\w+=", words[start])):
            start += 1
        if start < len(words) and words[start] in PROGRAMS:
            found = words[start:]
            yield found
            if "--" in found:
                yield from commands(shlex.join(found[found.index("--") + 1 :]))


def _simple_commands(text: str) -> Iterator[list[str]]:
    text = re.sub(r"(?m)(^|\s)#(\s.*|!.*)?$", r"\1", text.replace("\\\n", " "))
    lexer = shlex.shlex(REDIRECTION.sub(" ", text), posix=True, punctuation_chars="".join(ENDS))
    lexer.whitespace, lexer.commenters, lexer.whitespace_split = " \t\r", "", True
    words: list[str] = []
    for word in lexer:
        if set(word) <= ENDS:
            yield words
            words = []
        else:
            words.append(word)
    yield words


def of_file(path: Path) -> list[list[str]]:
    """The commands of one file in cluster/: a page, a script, YAML or a Dockerfile."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        blocks, spans = page_parts(text)
        return [found for block in blocks for found in commands(block)] + [
            found if any(map(_says_more, found)) else [*found, "--help"]  # a name alone: it has to be one
            for span in spans
            for found in commands(span)
        ]
    if path.suffix == ".yaml":
        parts = [part for document in yaml.safe_load_all(text) for part in _yaml_parts(document)]
    elif path.name == "Dockerfile":
        lines = re.findall(r"(?m)^(?:RUN|CMD|ENTRYPOINT) (.*)$", text.replace("\\\n", " "))
        parts = [shlex.join(yaml.safe_load(line)) if line.startswith("[") else line for line in lines]
    else:
        parts = [text]
    return [found for part in parts for found in commands(part)]


def page_parts(text: str) -> tuple[list[str], list[str]]:
    """The code of a Markdown page: its blocks, and its spans."""
    blocks = re.findall(r"(?ms)^ *```\w*\n(.*?)^ *```", text)
    spans = re.findall(r"`([^`]+)`", re.sub(r"(?ms)^ *```.*?^ *```", "", text))
    return blocks, [" ".join(re.sub(r"[][]", " ", span).split()) for span in spans]


def _says_more(word: str) -> bool:
    return word.startswith("-") or not re.fullmatch(r"[a-z-]+", word)


def _yaml_parts(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for inside in value.values():
            yield from _yaml_parts(inside)
    elif isinstance(value, list):
        if all(isinstance(word, str) for word in value):
            yield shlex.join(value)
        for inside in value:
            yield from _yaml_parts(inside)
    elif isinstance(value, str) and " " in value:  # a lone "raymsa" is a name
        yield value


def problems(words: list[str]) -> list[str]:
    """What the real command line would refuse; nothing is run."""
    line = " ".join(words)
    try:
        _ask(words)
    except click.ClickException as error:
        return [f"{line}: {' '.join(error.format_message().split())}"]
    return []


def _program(name: str) -> click.Command:
    if name == "ray":
        from ray.scripts.scripts import cli

        return cli
    from raymsa.cli import main

    return main


def _ask(words: list[str]) -> None:
    command, rest = _program(words[0]), list(words[1:])
    context = _context(command)
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        inside = command.get_command(context, rest[0])
        if inside is None:
            raise click.UsageError(f"no such command: {rest[0]}")
        command, rest = inside, rest[1:]
        context = _context(command)
    if rest == ["--help"]:
        return
    if words[:2] == ["ray", "symmetric-run"]:
        _ask_symmetric_run(command, rest)
        return
    if "--" in rest and words[0] == "ray":
        rest = [*rest[: rest.index("--")], "entrypoint"]
    _parse(command, context, rest)


def _ask_symmetric_run(command: click.Command, rest: list[str]) -> None:
    """Its own options, then those of `ray start` but for four, then `--` and a command."""
    if "--" not in rest or rest[-1] == "--":
        raise click.UsageError("no -- with a command behind it")
    left = _parse(command, _context(command), rest[: rest.index("--")]).get("ray_args_and_entrypoint", ())
    if refused := {word.split("=")[0] for word in left} & NOT_FOR_SYMMETRIC_RUN:
        raise click.UsageError(f"not with symmetric-run: {', '.join(sorted(refused))}")
    from ray.scripts.scripts import start

    _parse(start, _context(start), list(left))


def _context(command: click.Command) -> click.Context:
    return click.Context(command, info_name=command.name, **command.context_settings)


def _parse(command: click.Command, context: click.Context, rest: list[str]) -> dict[str, Any]:
    """The words by parameter. Raises click.UsageError for what the command does not take."""
    values, surplus, _ = command.make_parser(context).parse_args(list(rest))
    if surplus and not context.allow_extra_args:
        raise click.UsageError(f"unexpected: {' '.join(surplus)}")
    given = {name: value for name, value in values.items() if isinstance(value, str | tuple | list) and value}
    for parameter in command.params:
        value = given.get(parameter.name or "")
        if value is None and parameter.required:
            raise click.MissingParameter(ctx=context, param=parameter)
        if isinstance(value, str) and not _open(parameter, value):
            parameter.type_cast_value(context, value)
    return given


def _open(parameter: click.Parameter, value: str) -> bool:
    """Whether a page or a script leaves the value open: $address, HOST:PORT. Choices may be in capitals themselves."""
    return "$" in value or (not isinstance(parameter.type, click.Choice) and bool(CAPITALS.search(value)))
