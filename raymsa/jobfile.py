"""Job files and dataset files, read: `base:`, sections in files of their own, `--set`."""

from __future__ import annotations

from functools import cache, reduce
from pathlib import Path
from typing import Any

from raymsa.datasets.base import Layout
from raymsa.errors import SpecError
from raymsa.merge import merge, nested, parse_override
from raymsa.plugins import union
from raymsa.prompts import with_prompts
from raymsa.spec import LAYOUTS, check, validate
from raymsa.yamlfile import read_mapping

SECTION_FILES = ("dataset", "model", "readout")  # sections that may be the path of a file


def load_job(path: Path, overrides: list[str] | None = None) -> Any:
    """The resolved JobSpec of a file, its base and `a.b=c` overrides. Raises SpecError, one line per problem."""
    over = _overrides(overrides or [])
    return check(merge(read_job(path), over), f"{path} with --set" if over else str(path))


def read_job(path: Path, where: str = "", above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A job file as a mapping: `base:` and sections that name a file are read in; paths are relative to the file.

    `above` are the files that led here by their `base:`.
    """
    raw = read_mapping(path, where)
    base = raw.pop("base", None)
    raw = nested(_with_files(raw, path.parent, str(path)))
    if base is None:
        return raw
    if not isinstance(base, str):
        raise SpecError(f"{path}: base: given {base!r}; give the path of one file")
    below = (*above, path.resolve())
    target = path.parent / Path(base.replace("\0", "")).expanduser()
    if target.resolve() in below:
        chain = " -> ".join(str(file) for file in (*below, target.resolve()))
        raise SpecError(f"{path}: base: given '{base}', which leads back to itself ({chain}); leave one out")
    return merge(read_job(target, f"{path}: base: ", below), raw)


def load_dataset(path: Path, overrides: list[str] | None = None) -> Layout:
    """The checked dataset config of a file such as configs/datasets/mosi.yaml."""
    over: dict[str, Any] = reduce(merge, map(parse_override, overrides or []), {})
    where = f"{path} with --set" if over else str(path)
    raw = merge(_read_section("dataset", path), with_prompts(over, Path(), "--set", ("dataset",)))
    return validate(_dataset_type(), raw, where)  # type: ignore[no-any-return]


def _overrides(texts: list[str]) -> dict[str, Any]:
    """All `--set` as one mapping, so that their order does not matter; paths in them are relative to the person."""
    parsed = [_with_files(parse_override(text), Path(), "--set") for text in texts]
    over: dict[str, Any] = reduce(merge, parsed, {})
    if "base" in over:
        raise SpecError(f"--set base={over['base']}: a base is named in the file, because it is read first")
    return over


def _with_files(raw: dict[str, Any], folder: Path, where: str) -> dict[str, Any]:
    """Prompts and sections that are the path of a file, read in."""
    return _with_sections(with_prompts(raw, folder, where), folder, where)


def _with_sections(raw: dict[str, Any], folder: Path, where: str) -> dict[str, Any]:
    """Sections that are the path of a file, read in; those of variants too."""
    named = {section: raw[section] for section in SECTION_FILES if isinstance(raw.get(section), str)}
    read = {
        section: _read_section(section, folder / Path(text).expanduser(), f"{where}: {section}: given '{text}': ")
        for section, text in named.items()
    }
    variants = raw.get("variants")
    if isinstance(variants, dict):
        read["variants"] = {
            name: _with_sections(over, folder, f"{where}: variants.{name}") if isinstance(over, dict) else over
            for name, over in variants.items()
        }
    return {**raw, **read}


def _read_section(section: str, path: Path, where: str = "") -> dict[str, Any]:
    """A section's file; a prompt that it names is relative to it."""
    return with_prompts(read_mapping(path, where), path.parent, f"{where}{path}", (section,))


@cache
def _dataset_type() -> Any:
    return union(LAYOUTS)
