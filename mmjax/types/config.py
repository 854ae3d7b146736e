"""From a config to frozen dataclasses and back: the one place where types, ranges and names of settings are checked.

A config is a nested mapping (`ml_collections.ConfigDict`, or what `json.load` gives); a resolved config is a frozen
dataclass such as `mmjax.training.stage.Experiment`. Nothing here imports JAX, so a mistake is named at once.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import json
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from ml_collections import ConfigDict

from mmjax.types.errors import UserError

T = TypeVar("T")
Folder = Mapping | ConfigDict  # a ConfigDict is no Mapping

_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "None"}


def suggest(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name.

    Args:
      name: what came.
      known: the names that exist.

    Returns:
      "; did you mean 'x'?" with the nearest name, or else the list of all of them.
    """
    known = sorted(known)
    lower = {option.lower(): option for option in known}
    near = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.5)
    return f"; did you mean {lower[near[0]]!r}?" if near else f"; there is {', '.join(known) or 'none'}"


def from_config(cls: type[T], config: Any, path: str = "config") -> T:
    """Converts a nested mapping into a dataclass, by the type hints of its fields.

    A whole number written as a float (1e3) passes for an int. In `dict[str, X]` with a dataclass X that has a field
    `name`, the name is taken from the key. In `dict[str, dict]` a mapping that holds only mappings is a folder: its keys
    are joined by dots, so that `parts.encoders.image.width` may be overridden although the part is "encoders.image".

    Args:
      cls: a dataclass; nested dataclasses, dict, tuple, list, Literal, unions, scalars and Any are understood.
      config: ConfigDict or dict; anything else is an error of the user's.
      path: what to call the config in messages, for example "--config".

    Returns:
      An instance of cls; sequences of untyped values come as tuples.

    Raises:
      UserError: one line with the dotted path of an unknown or missing key, a wrong type or a refused value.
    """
    if not isinstance(config, Folder):
        raise UserError(f"{path}: expected a mapping with the fields of {cls.__name__}, got {_show(config)}")
    hints = get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    for key in config:
        if key not in fields:
            raise UserError(f"{path}.{key}: no such key{suggest(str(key), fields)}")
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in config:
            raise UserError(f"{path}.{name}: missing; {cls.__name__} needs it")
    values = {key: _convert(hints[key], value, f"{path}.{key}") for key, value in _items(config)}
    try:
        return cls(**values)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


def _items(folder: Folder) -> list[tuple[str, Any]]:
    """The entries in the order in which they were written: stages run in it. ConfigDict keeps it, but shows a sorted view."""
    return [(key, folder[key]) for key in getattr(folder, "_fields", folder)]


def _show(value: Any) -> str:
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"


def _mismatch(expected: str, value: Any, path: str) -> UserError:
    return UserError(f"{path}: expected {expected}, got {_show(value)}")


def _plain(value: Any) -> Any:
    """An untyped value: mappings become dicts, sequences tuples."""
    if isinstance(value, Folder):
        return {str(key): _plain(item) for key, item in _items(value)}
    if isinstance(value, list | tuple):
        return tuple(_plain(item) for item in value)
    return value


def _convert(hint: Any, value: Any, path: str) -> Any:
    """`value` as the type that `hint` asks for, or UserError."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return _plain(value)
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else from_config(hint, value, path)  # type: ignore[arg-type]
    if origin is Literal:
        if value not in arguments:
            raise _mismatch(" or ".join(map(repr, arguments)), value, path)
        return value
    if origin in (Union, types.UnionType):
        return _convert_union(arguments, value, path)
    if origin is dict:
        return _convert_dict(arguments[1], value, path)
    if origin in (tuple, list, Sequence):
        return _convert_sequence(list if origin is list else tuple, arguments, value, path)
    return _convert_scalar(hint, value, path)


def _convert_union(options: Sequence[Any], value: Any, path: str) -> Any:
    if value is None and type(None) in options:
        return None
    options = [option for option in options if option is not type(None)]
    for option in options[:-1]:
        try:
            return _convert(option, value, path)
        except UserError:
            continue
    return _convert(options[-1], value, path)


def _convert_dict(item: Any, value: Any, path: str) -> dict[str, Any]:
    if not isinstance(value, Folder):
        raise _mismatch("a mapping", value, path)
    named = dataclasses.is_dataclass(item) and any(field.name == "name" for field in dataclasses.fields(item))
    if get_origin(item) is dict:
        value = dict(_leaves(value))
    return {
        str(key): _convert(item, {"name": key, **entry} if named and isinstance(entry, Folder) else entry, f"{path}.{key}")
        for key, entry in _items(value)
    }


def _leaves(folder: Folder, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The entries of a mapping, folders (non-empty mappings of mappings) opened."""
    for key, value in _items(folder):
        if isinstance(value, Folder) and len(value) and all(isinstance(inner, Folder) for inner in value.values()):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _convert_sequence(kind: type, items: Sequence[Any], value: Any, path: str) -> Any:
    if not isinstance(value, list | tuple):
        raise _mismatch("a list", value, path)
    if kind is tuple and not (len(items) == 2 and items[1] is Ellipsis):
        if len(items) != len(value):
            raise _mismatch(f"{len(items)} values", value, path)
    else:
        items = [items[0]] * len(value)
    return kind(_convert(item, entry, f"{path}[{i}]") for i, (item, entry) in enumerate(zip(items, value, strict=True)))


def _convert_scalar(hint: type, value: Any, path: str) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if hint is float and number:
        return float(value)
    if hint is int and number and value == value // 1:
        return int(value)
    if hint in (int, float) or not isinstance(value, hint):
        raise _mismatch(_WORDS.get(hint, hint.__name__), value, path)
    return value


def to_dict(config: Any) -> Any:
    """A resolved config as plain dicts, lists and scalars that JSON can hold; `from_config` reads it back.

    Args:
      config: a dataclass (or a part of one, or a ConfigDict).

    Returns:
      The same nesting in plain Python.
    """
    if dataclasses.is_dataclass(config):
        return {field.name: to_dict(getattr(config, field.name)) for field in dataclasses.fields(config)}
    if isinstance(config, Folder):
        return {str(key): to_dict(value) for key, value in _items(config)}
    if isinstance(config, list | tuple):
        return [to_dict(value) for value in config]
    return config


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """The leaves of a plain config as (dotted path, JSON)."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _flat(item, f"{path}.{key}" if path else key)
    else:
        yield path, json.dumps(value)


def to_text(config: Any) -> str:
    """A resolved config as text to compare: one `dotted.path = JSON value` a line, sorted.

    Args:
      config: a dataclass or a mapping.

    Returns:
      The lines, each with its newline.
    """
    return "".join(f"{path} = {text}\n" for path, text in sorted(_flat(to_dict(config))))


def diff(old: Any, new: Any) -> list[str]:
    """What differs between two configs.

    Args:
      old, new: dataclasses or mappings.

    Returns:
      "dotted.path: old -> new" for every setting that differs, sorted; a side that lacks it reads "(absent)".
    """
    before, after = dict(_flat(to_dict(old))), dict(_flat(to_dict(new)))
    return [
        f"{path}: {before.get(path, '(absent)')} -> {after.get(path, '(absent)')}"
        for path in sorted(before.keys() | after.keys())
        if before.get(path) != after.get(path)
    ]


def parse_arg(arg: str | None, **defaults: Any) -> types.SimpleNamespace:
    """Parses what follows the colon of `--config=file.py:width=64,llm=smollm2,fast`.

    Args:
      arg: "key=value" pairs joined by commas; a bare word stands for `word=true`. None or "" = all defaults.
      defaults: the keys that exist. A value is read as its default's type; None reads any Python literal, else a text.

    Returns:
      A namespace with every key.

    Raises:
      UserError: for an unknown key, naming the nearest, or a value of another type.
    """
    values = dict(defaults)
    for piece in filter(None, (piece.strip() for piece in (arg or "").split(","))):
        key, equals, text = piece.partition("=")
        path = f"the config's argument {key!r}"
        if key not in defaults:
            raise UserError(f"{path}: no such argument{suggest(key, defaults)}")
        default = defaults[key]
        value = read_literal(text) if equals else True
        if isinstance(default, str):
            value = text if equals else value
        values[key] = _plain(value) if default is None else _convert_scalar(type(default), value, path)
    return types.SimpleNamespace(**values)


def read_literal(text: str) -> Any:
    """The Python literal that a text spells (true and false in any case), or else the text itself."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text
