"""From a preset's name, a YAML file or plain data to a space, with overrides of single keys."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from takd.search_spaces.errors import InputError
from takd.search_spaces.space import Space, whole_roles
from takd.search_spaces.values import explain
from takd.search_spaces.yaml_text import read_yaml

PRESETS = Path(__file__).with_name("presets")


def presets() -> list[str]:
    return sorted(file.stem for file in PRESETS.glob("*.yaml"))


def load_space(
    space: str | os.PathLike[str] | Mapping[str, Any] | Space, overrides: Mapping[str, Any] | Sequence[str] = ()
) -> Space:
    """A space by a preset's name or the path of a YAML file; or made of plain data or of another space.

    Overrides replace single keys, dotted where they are in a section: `{"student.temperature": 4}`, or as on the
    command line `["student.temperature=4"]`, with values in YAML. Raises InputError, in one line that names the key and
    what is valid there. The files of `code` are found beside the space's file; from here, where it has none.
    """
    folder = Path.cwd()
    if isinstance(space, Space):
        given, source = space.model_dump(mode="json"), "space"
    elif isinstance(space, Mapping):
        given, source = _unshared(dict(space)), "space"
    else:
        given, source = _read(os.fspath(space)), f"space {os.fspath(space)}"
        folder = Path(space).absolute().parent
    whole = overridden(given, overrides, source)
    places = tuple(os.path.normpath(folder / os.path.expanduser(each)) for each in whole.code)
    return whole.model_copy(update={"code": places}) if places else whole


def overridden(given: Any, overrides: Mapping[str, Any] | Sequence[str], source: str) -> Space:
    """A space from plain data, with single keys replaced; `source` names it in errors."""
    for key, value, where in _overrides(overrides):
        _override(given, key, value, where)
    return space_from(given, source)


def _read(space: str) -> Any:
    file = PRESETS / f"{space}.yaml" if space in presets() else Path(space)
    source = f"space {space}"
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else getattr(error, "strerror", None) or error
        raise InputError(f"{source}: {reason}; presets: {', '.join(presets())}") from None
    return parse_space(text, source)


def space_from(given: Any, source: str) -> Space:
    """A space from plain data; `source` names it in errors."""
    try:
        return Space.model_validate(given)
    except ValidationError as error:
        raise explain(error, source) from None


def without_code(space: Space) -> Space:
    """As it may be used that was read from a root: it names no files, and keeps their digests."""
    return space.model_copy(update={"code": ()}) if space.code else space


def parse_space(text: str, source: str) -> Any:
    """The plain data of a YAML text; raises InputError, in which `source` names it."""
    try:
        return _unshared(read_yaml(text))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        raise InputError(f"{source}:{line} not YAML: {getattr(error, 'problem', error)}") from None
    except (ValueError, RecursionError) as error:  # a tag's value that is none, an anchor in itself
        raise InputError(f"{source}: not YAML of plain values: {str(error) or type(error).__name__}") from None


def _unshared(value: Any) -> Any:
    """A copy in which what YAML's anchors share is apart, so that an override changes one place."""
    if isinstance(value, dict):
        return {key: _unshared(each) for key, each in value.items()}
    return [_unshared(each) for each in value] if isinstance(value, list) else value


def _overrides(given: Mapping[str, Any] | Sequence[str]) -> Iterator[tuple[str, Any, str]]:
    """Key, value, and what an error calls them."""
    if isinstance(given, Mapping):
        yield from ((key, _unshared(value), f"override {key}: {value!r}") for key, value in given.items())
        return
    for override in given:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise InputError(f"--set {override}: expected KEY=VALUE, such as student.temperature=4")
        yield key, parse_space(text, f"--set {key}"), f"--set {override}"


def _override(given: Any, key: str, value: Any, source: str) -> None:
    *parents, last = key.split(".")
    if not isinstance(given, dict):
        return  # the check of the space says what is wrong
    given |= whole_roles({name: given[name] for name in parents[:1] if name in given})
    for number, parent in enumerate(parents):
        if isinstance(given, dict) and given.get(parent) is None:
            given[parent] = {}
        if isinstance(given, list):
            place = _place(given, parent, f"{source}: {'.'.join(parents[:number])}")
            if parents[:number] == ["assistants", "models"] and isinstance(given[place], str):
                given[place] = {"model": given[place]}
            given = given[place]
        else:
            given = given[parent] if isinstance(given, dict) else None
    if isinstance(given, list):
        given[_place(given, last, f"{source}: {'.'.join(parents)}")] = value
    elif isinstance(given, dict):
        given[last] = value
    else:
        raise InputError(f"{source}: {'.'.join(parents)} is a value, not a section")


def _place(given: Sequence[Any], name: str, where: str) -> int:
    """Of a list that of what has this name in arms, or this place; raises InputError where there is none."""
    called = [_called(each) for each in given]
    for place, names in enumerate(called):
        if name in (*names, str(place)):
            return place
    valid = [*dict.fromkeys(each for names in called for each in names), *map(str, range(len(given)))]
    raise InputError(f"{where} has no {name!r}; valid: {', '.join(valid)}")


def _called(entry: Any) -> list[str]:
    """What an entry of a list may be called by."""
    if isinstance(entry, dict):
        family = [f"{entry['family']}-*"] if isinstance(entry.get("family"), str) else []
        return [each for each in (entry.get("model"), entry.get("name")) if isinstance(each, str)] + family
    return [entry] if isinstance(entry, str) else []
