"""Reading YAML as plain data: `safe_load`, no duplicate keys, one line per error."""

import re
from pathlib import Path
from typing import Any

import yaml

from raymsa.errors import SpecError

MERGE = "tag:yaml.org,2002:merge"  # `<<: *anchor`: keys of another mapping, weaker than the mapping's own
NAMES = {"NoneType": "nothing", "list": "a list", "str": "text", "int": "a number", "float": "a number"}


class _UniqueKeys(yaml.SafeLoader):
    """safe_load keeps the last of two equal keys without a word; here the second one is an error."""


def _mapping(loader: _UniqueKeys, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        if key_node.tag == MERGE:
            continue
        key = loader.construct_object(key_node, deep=True)
        problem = "stands twice" if key in seen else "" if isinstance(key, str) else "is not text; put it in quotes"
        if problem:
            raise yaml.constructor.ConstructorError(None, None, f"key {key!r} {problem}", key_node.start_mark)
        seen.add(key)
    loader.flatten_mapping(node)
    return {loader.construct_object(k, deep=True): loader.construct_object(v, deep=True) for k, v in node.value}


_UniqueKeys.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
# YAML 1.1 reads 1e-4 as text, because it has no point; YAML 1.2 and everybody who writes it mean a number
_UniqueKeys.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"), list("-+.0123456789")
)


def read_mapping(path: Path, where: str = "") -> dict[str, Any]:
    """The mapping in a YAML file. Raises SpecError with the file, the line and what is wrong there.

    `where` is put in front: the place that named this file.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise SpecError(f"{where}{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise SpecError(f"{where}{str(path)!r} cannot be read: {reason}; give the path of a YAML file") from None
    value = _load(text, f"{where}{path}")
    if not isinstance(value, dict):
        given = NAMES.get(type(value).__name__, type(value).__name__)
        raise SpecError(f"{where}{path}: holds {given}; give a mapping of fields (`name: ...`)")
    return value


def parse_value(text: str, where: str) -> Any:
    """One YAML value, as typed after `--set field=`."""
    return _load(text, where, lines=False)


def _load(text: str, where: str, lines: bool = True) -> Any:
    try:
        return yaml.load(text, _UniqueKeys)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f":{mark.line + 1}" if mark and lines else ""
        raise SpecError(f"{where}{line}: not valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise SpecError(f"{where}: not valid YAML: {' '.join(str(error).split())}") from None
    except ValueError as error:  # PyYAML's own constructors: a month 13, a number of 5,000 digits
        raise SpecError(f"{where}: not valid YAML: {error}") from None
    except RecursionError:
        raise SpecError(f"{where}: not valid YAML: nested too deep") from None
