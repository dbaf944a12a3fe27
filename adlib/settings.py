"""Settings: one frozen dataclass a method; the type of a field says what it may be, and nothing else passes.

@dataclass(frozen=True)
class ExampleSettings(Settings):
    steps: Count = 100  # 1, 2, ...
    sigma: NotNegative = 4.0
    scale: Count | None = None
    image_score: Literal["max", "top"] = "max"

    def check(self): ...  # only what ties two fields together
"""

import dataclasses
import math
import os
import re
import types
import typing
from collections.abc import Callable
from typing import Annotated, Literal, NamedTuple

import yaml

from adlib.errors import InputError, suggest


class Must(NamedTuple):
    """A condition on values of a type, `Annotated[type, Must(...)]`, and how a message says it: "must `words`"."""

    holds: Callable[[object], bool]
    words: str


Count = Annotated[int, Must(lambda v: v >= 1, "be at least 1")]
Whole = Annotated[int, Must(lambda v: v >= 0, "not be negative")]
Odd = Annotated[Count, Must(lambda v: v % 2 == 1, "be odd, so that a patch has a centre")]
Positive = Annotated[float, Must(lambda v: 0 < v < math.inf, "be a positive number, for example 0.001")]
NotNegative = Annotated[float, Must(lambda v: 0 <= v < math.inf, "not be negative, nan or inf")]
Share = Annotated[float, Must(lambda v: 0 < v < 1, "be a share between 0 and 1, for example 0.15")]
ShareTo1 = Annotated[float, Must(lambda v: 0 < v <= 1, "be a share in (0, 1], for example 0.1")]
ShareFrom0 = Annotated[float, Must(lambda v: 0 <= v < 1, "be a share from 0 to below 1, for example 0.3")]
Closed = Annotated[float, Must(lambda v: 0 <= v <= 1, "lie between 0 and 1")]
# Shared by all methods: layers of the backbone; pixels of the network input.
Stages = Annotated[
    tuple[Whole | str, ...], Must(lambda v: len(v) == len(set(v)) > 0, "name at least one stage, each once")
]
ImageSize = Annotated[
    int | tuple[int, ...],
    Must(
        lambda v: v >= 1 if isinstance(v, int) else len(v) == 2 and min(v) >= 1,
        "be one number, or height and width, of at least 1 pixel",
    ),
]
# See adlib.images.Resize; a number: the shorter side to so many pixels, then a crop of the centre.
ResizeMode = Literal["stretch", "letterbox", "aspect"] | Count
Interpolation = Literal["area", "antialias", "linear", "nearest", "bicubic"]  # see adlib.images.resample

RENAMED = {
    "max_steps": "steps",
    "n_steps": "steps",
    "lr": "learning_rate",
    "validate_every": "snapshot_every",
    "scale": "resize",
    "token_share": "cell_share",
}

_WORDS = {bool: "be true or false", int: "be a whole number", float: "be a number", str: "be text", tuple: "be a list"}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the settings of all methods inherit.

    However they are made, values that the types rule out are refused; lists are tuples.

    Raises:
        InputError: names the field, its value and what is allowed.
    """

    # Of images with more than 8 bits per channel; None: 16, or what `profiles.shaped` finds in the training images.
    bit_depth: Count | None = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self):
        for name, hint in typing.get_type_hints(type(self), include_extras=True).items():
            value = getattr(self, name)
            if isinstance(value, list):
                object.__setattr__(self, name, value := tuple(value))
            if typing.get_origin(hint) is Literal and isinstance(value, str):
                choice(name, value, typing.get_args(hint))
            if condition := _wanted(value, hint):
                plain = list(value) if isinstance(value, tuple) else value
                raise InputError(f"{name} {plain!r} must {condition}")
        self.check()

    def check(self) -> None:
        """Refuse values that do not go together."""


def build(cls, values: dict | None = None, owner: str = ""):
    """Make an instance of the settings class `cls` with some fields changed.

    Args:
        cls: a frozen dataclass that inherits `Settings`.
        values: field name -> value. Lists become tuples; an int is accepted where a float is asked for.
        owner: who the settings belong to, for the message.

    Raises:
        InputError: an unknown field (with the nearest known name) or a value that its field does not allow.
    """
    fields = [field.name for field in dataclasses.fields(cls)]
    for name in values or {}:
        if RENAMED.get(name) in fields:
            raise InputError(f"parameter {name!r} of {owner or cls.__name__} is now called {RENAMED[name]!r}")
        if name not in fields:
            raise InputError(
                f"parameter {name!r} is unknown to {owner or cls.__name__}{suggest(name, fields)}; known: "
                + ", ".join(fields)
            )
    try:
        return cls(**(values or {}))
    except InputError as error:
        raise InputError(f"{owner}: {error}" if owner else str(error)) from None


def choice(name: str, value, choices) -> None:
    """Raise an InputError unless `value` is one of `choices`."""
    if value not in choices:
        listed = ", ".join(str(one) or '""' for one in choices)
        raise InputError(f"{name} {value!r} is unknown{suggest(str(value), choices)}; choose one of {listed}")


def parse_overrides(pairs: list[str]) -> dict:
    """Turn what people type, `["coreset=2e-2", "stages=2,3", "category=01"]`, into a dict.

    Values are numbers, true, false, null, and else text, as 01 is; commas or brackets make a list, quotes make text of
    anything, braces are YAML. A path may begin with "~".

    >>> parse_overrides(["coreset=2e-2", "stages=2,3", "category=01"])
    {'coreset': 0.02, 'stages': [2, 3], 'category': '01'}
    """
    values = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name.strip():
            raise InputError(f"--set {pair!r} is not of the form name=value, for example --set coreset=0.02")
        try:
            values[name.strip()] = _typed(text.strip())
        except yaml.YAMLError:
            raise InputError(f"--set {pair!r}: the value is not valid YAML; quote it") from None
    return values


def _typed(text: str):
    """Read one value of `parse_overrides`. YAML itself takes 1e-4 for text, 01 for a number and "on" for true."""
    if text.startswith("["):
        return [_typed(item) if isinstance(item, str) else item for item in yaml.load(text, yaml.BaseLoader)]
    if text.startswith(("{", '"', "'")):
        return yaml.safe_load(text)
    if re.fullmatch(r"[\w.+-]+(\s*,\s*[\w.+-]+)+", text):
        return [_typed(item.strip()) for item in text.split(",")]
    if text in ("true", "True", "false", "False"):
        return text[0] in "tT"
    if re.fullmatch(r"[+-]?(0|[1-9]\d*)", text):
        return int(text)
    if re.fullmatch(r"[+-]?((0|[1-9]\d*)?\.\d+|(0|[1-9]\d*)\.?)([eE][+-]?\d+)?|[+-]?\.(inf|nan)", text):
        return float(text.replace(".inf", "inf").replace(".nan", "nan"))
    return os.path.expanduser(text) if text not in ("", "null", "None") else None


def as_dict(settings) -> dict:
    """Return the settings as plain JSON types (tuples become lists)."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(settings).items()}


def _wanted(value, hint) -> str:
    """What `value` must do to be of the type `hint`, in words; "" where it is."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        broken = (must.words for must in parts[1:] if not must.holds(value))
        return _wanted(value, parts[0]) or next(broken, "")
    if origin in (types.UnionType, typing.Union):
        conditions = [_wanted(value, part) for part in parts]
        return ", or ".join(dict.fromkeys(conditions)) if all(conditions) else ""
    if origin is Literal:
        allowed = any(value == part and type(value) is type(part) for part in parts)
        listed = ("one of " if len(parts) > 1 else "") + ", ".join(map(repr, parts))
        return "" if allowed else f"be {listed}{suggest(value, parts)}"
    if hint is type(None):
        return "" if value is None else "null"
    kind = (int, float) if hint is float else origin or hint
    if not isinstance(value, kind) or (isinstance(value, bool) and hint is not bool):
        return _WORDS[origin or hint]
    return next(filter(None, (_wanted(v, parts[0]) for v in value)), "") if origin is tuple else ""
