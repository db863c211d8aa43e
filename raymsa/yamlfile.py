"""Reading YAML as plain data: `safe_load`, no duplicate keys, one line per error."""

from pathlib import Path
from typing import Any

import yaml

from raymsa.errors import SpecError


class _UniqueKeys(yaml.SafeLoader):
    """safe_load keeps the last of two equal keys without a word; here the second one is an error."""


def _mapping(loader: _UniqueKeys, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str):
            raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is not text", key_node.start_mark)
        if key in seen:
            raise yaml.constructor.ConstructorError(None, None, f"key '{key}' stands twice", key_node.start_mark)
        seen.add(key)
    loader.flatten_mapping(node)
    return {loader.construct_object(k, deep=True): loader.construct_object(v, deep=True) for k, v in node.value}


_UniqueKeys.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def read_mapping(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises SpecError with the file, the line and what is wrong there."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
        raise SpecError(f"{path}: cannot be read: {reason}") from None
    value = _load(text, str(path))
    if not isinstance(value, dict):
        given = "nothing" if value is None else type(value).__name__
        raise SpecError(f"{path}: holds {given}; give a mapping of fields (`name: ...`)")
    return value


def parse_value(text: str, where: str) -> Any:
    """One YAML value, as typed after `--set field=`."""
    return _load(text, where)


def _load(text: str, where: str) -> Any:
    try:
        return yaml.load(text, _UniqueKeys)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f":{mark.line + 1}" if mark else ""
        raise SpecError(f"{where}{line}: not valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise SpecError(f"{where}: not valid YAML: {' '.join(str(error).split())}") from None
