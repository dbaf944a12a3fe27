"""Settings: one frozen dataclass a method, defaults from the paper; nothing unknown or wrongly typed passes."""

import dataclasses
import types
import typing

import yaml

from adlib.errors import InputError, suggest


def build(cls, values: dict | None = None, owner: str = ""):
    """Make an instance of the settings dataclass `cls` with some fields changed.

    Args:
        cls: a frozen dataclass.
        values: field name -> value. Lists become tuples; an int is accepted where a float is asked for.
        owner: who the settings belong to, for the message.

    Raises:
        InputError: an unknown field (with the nearest known name) or a value of the wrong type.
    """
    owner = owner or cls.__name__
    fields = {field.name: field for field in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    checked = {}
    for name, value in (values or {}).items():
        if name not in fields:
            raise InputError(
                f"parameter {name!r} is unknown to {owner}{suggest(name, fields)}; known: {', '.join(fields)}"
            )
        if isinstance(value, list):
            value = tuple(value)
        if not _fits(value, hints[name]):
            expected = str(getattr(hints[name], "__name__", hints[name])).replace("typing.", "")
            raise InputError(
                f"parameter {name!r} of {owner} must be {expected}, got {value!r} ({type(value).__name__})"
            )
        checked[name] = value
    return cls(**checked)


def choice(name: str, value, known) -> None:
    """Raise an InputError unless `value` is one of `known`."""
    if value not in known:
        listed = ", ".join(map(str, known))
        raise InputError(f"{name} {value!r} is unknown{suggest(str(value), known)}; choose one of {listed}")


def parse_overrides(pairs: list[str]) -> dict:
    """Turn `["coreset=0.02", "stages=[2, 3]"]` into a dict; values are read as YAML.

    >>> parse_overrides(["coreset=0.02", "image_score=reweight"])
    {'coreset': 0.02, 'image_score': 'reweight'}
    """
    values = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name.strip():
            raise InputError(f"--set {pair!r} is not of the form name=value, for example --set coreset=0.02")
        try:
            values[name.strip()] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise InputError(f"--set {pair!r}: the value is not valid YAML; quote it") from None
    return values


def as_dict(settings) -> dict:
    """Return the settings as plain JSON types (tuples become lists)."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(settings).items()}


def _fits(value, hint) -> bool:
    origin = typing.get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        return any(_fits(value, part) for part in typing.get_args(hint))
    if origin is tuple:
        inner = [part for part in typing.get_args(hint) if part is not Ellipsis]
        return isinstance(value, tuple) and all(any(_fits(v, part) for part in inner) for v in value)
    if hint is type(None):
        return value is None
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, origin or hint) if hint is not typing.Any else True
