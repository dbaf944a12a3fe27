"""Settings, thresholds, paths: small things that everything else leans on."""

import contextlib
import math
import re
import types
import typing
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
import pytest
from conftest import full_disk, refused
from hypothesis import given
from hypothesis import strategies as st

from adlib import methods
from adlib.errors import InputError, suggest
from adlib.evaluation import thresholds
from adlib.paths import atomic_path
from adlib.settings import Count, ImageSize, Must, Settings, Share, as_dict, build, choice, parse_overrides


@dataclass(frozen=True)
class Example(Settings):
    share: Share = 0.1
    size: ImageSize = 8
    name: Literal["ant", "bee"] = "ant"
    limit: Count | Literal["paper"] | None = None
    flag: bool = False

    def check(self):
        if self.flag and self.limit is None:
            raise InputError("flag needs a limit")


def test_known_changes_pass_and_lists_become_tuples():
    made = build(Example, {"share": 0.5, "size": [4, 6], "limit": 3, "flag": True})
    assert made == Example(0.5, (4, 6), "ant", 3, True) == Example(size=[4, 6], share=0.5, limit=3, flag=True)
    assert as_dict(made)["size"] == [4, 6]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"shere": 0.2},
            "parameter 'shere' is unknown to toy (did you mean 'share'?); known: bit_depth, share, size, name, limit, "
            "flag",
        ),
        ({"share": "0.2"}, "toy: share '0.2' must be a number"),
        ({"share": True}, "toy: share True must be a number"),
        ({"share": 1.0}, "toy: share 1.0 must be a share between 0 and 1, for example 0.15"),
        ({"size": [4, "6"]}, r"toy: size [4, '6'] must be a whole number"),
        ({"size": [4]}, r"toy: size [4] must be one number, or height and width, of at least 1 pixel"),
        ({"name": "be"}, "toy: name 'be' is unknown (did you mean 'bee'?); choose one of ant, bee"),
        ({"name": None}, "toy: name None must be one of 'ant', 'bee'"),
        ({"limit": 0}, "toy: limit 0 must be at least 1, or be 'paper', or null"),
        ({"limit": "papr"}, "toy: limit 'papr' must be a whole number, or be 'paper' (did you mean 'paper'?), or null"),
        ({"flag": 1}, "toy: flag 1 must be true or false"),
        ({"flag": True}, "toy: flag needs a limit"),
    ],
)
def test_what_is_refused_is_said_in_one_line(values, message):
    with pytest.raises(InputError) as error:
        build(Example, values, owner="toy")
    assert str(error.value) == message
    if set(values) <= set(Example.__dataclass_fields__):  # there is no way around `build`
        for make in (Example, lambda **changes: replace(Example(), **changes)):
            with pytest.raises(InputError):
                make(**values)


def test_an_old_name_says_the_new_one():
    with pytest.raises(InputError, match=r"^parameter 'lr' of glass is now called 'learning_rate'$"):
        build(methods.get("glass").Settings, {"lr": 0.1}, owner="glass")


# Settings that may be 0, negative, an empty list, and so on; "method.name" where methods differ.
ZERO = [
    "anchor", "area", "average", "bank", "blocks", "context", "direction", "drawn_products", "dropout", "gamma",
    "jitter", "n_ascent", "n_calibration", "noise", "p", "pos_weight", "probability", "radius", "rotate", "seed",
    "sigma", "snapshot_every", "step_size", "warm_up", "few_shot.learning_rate", "unified.learning_rate",
    "ulsad.hidden",
]  # fmt: skip
EMPTY = ["contrastive.families", "ulsad.global_losses", "unified.references"]
SHARES = [  # at most 1
    "average", "coreset", "jitter", "p", "probability", "radius", "rotate", "cell_share", "unified.whiten",
]  # fmt: skip
ABOVE_1 = ["ulsad.batch_size"]
BELOW_1 = ["dropout", "hold_out", "ulsad.hidden", "warm_up"]
FREE_TEXT = ["backbone", "glass.foreground", "objects", "stages", "textures", "weights"]


def kinds(hint) -> set:
    """The plain types in a hint, lists and what they hold among them."""
    inner = [part for part in typing.get_args(hint) if not isinstance(part, Must) and part is not ...]
    if typing.get_origin(hint) is Literal:
        return {type(part) for part in inner}
    own = {typing.get_origin(hint)} & {tuple} or (set() if inner else {hint})
    return own.union(*map(kinds, inner))


def nonsense_for(method, name, hint):
    """Values that this field must refuse: of each wrong type, and of the right one out of bounds."""

    def listed(names):
        return name in names or f"{method}.{name}" in names

    found = kinds(hint)
    yield from ({"a": 1}, math.nan, math.inf, -math.inf, b"a")
    yield from (-1, -0.5)
    yield from () if listed(ZERO) else (0, 0.0)
    yield from (1.01, 2) if listed(SHARES + BELOW_1) else ()
    yield from (1,) if listed(ABOVE_1 + BELOW_1) else ()
    yield from () if bool in found else (True, False)
    yield from () if types.NoneType in found else (None,)
    yield from () if float in found else (1.5,)
    yield from () if listed(EMPTY) else ([],)
    yield from ([math.nan], [-1], [None], [{}], [[]], [True])
    if tuple in found or not listed(FREE_TEXT):
        yield "no such thing"
    if not listed(FREE_TEXT):
        yield ["no such thing"]
    if not {int, float} & found:
        yield 1


@pytest.mark.parametrize("name", methods.METHODS)
def test_every_setting_of_every_method_refuses_nonsense(name):
    cls = methods.get(name).Settings
    for field, hint in typing.get_type_hints(cls, include_extras=True).items():
        for bad in nonsense_for(name, field, hint):
            try:
                said = f"accepted: {build(cls, {field: bad}, owner=name)}"
            except InputError as error:
                said = str(error)
            shown = f"({re.escape(repr(bad))}|'no such thing')"
            assert re.match(rf"{name}: {field}\b.*{shown} (must|is unknown|leave)[^\n]+$", said), (field, bad)
        for odd in (10**30, "", "\udcff", "../x", [0], [-1, 2]):  # taken, or refused in one line
            with contextlib.suppress(InputError):
                build(cls, {field: odd}, owner=name)
        if {int, float} & kinds(hint) and tuple not in kinds(hint) and (field in ZERO or f"{name}.{field}" in ZERO):
            assert getattr(build(cls, {field: 0}), field) == 0


@pytest.mark.parametrize("name", methods.METHODS)
def test_no_number_is_without_a_condition(name):
    def bare(hint):
        parts = typing.get_args(hint)
        return hint in (int, float) if not parts else typing.get_origin(hint) is not Annotated and any(map(bare, parts))

    hints = typing.get_type_hints(methods.get(name).Settings, include_extras=True)
    assert [field for field, hint in hints.items() if bare(hint)] == []


@pytest.mark.parametrize(
    ("text", "value"),
    [("0.02", 0.02), ("1e-4", 1e-4), ("1.0e+30", 1e30), (".5", 0.5), ("-3", -3), ("0", 0), ("01", "01"), ("1_0", "1_0"),
     (".inf", math.inf), ("nan", "nan"), ("[1, 2e-1]", [1, 0.2]), ("2,3", [2, 3]), ("layer2, 03", ["layer2", "03"]),
     ("null", None), ("", None), ("true", True), ("on", "on"), ("word", "word"), ("'7'", "7"), ("lot #2", "lot #2"),
     ("{a: 1}", {"a": 1}), ("/a,b/c", "/a,b/c"), ("~/w.pth", "/home/me/w.pth")],
)  # fmt: skip
def test_overrides_are_read_as_people_mean_them(text, value, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    (read,) = parse_overrides([f"name={text}"]).values()
    assert (read, type(read)) == (value, type(value))


@pytest.mark.parametrize("bad", ["novalue", "=3", "x=[1"])
def test_overrides_that_are_none_are_refused(bad):
    refused("--set", parse_overrides, [bad])


def test_choice_names_the_nearest():
    choice("sampler", "greedy", ("greedy", "random"))
    refused("did you mean 'greedy'", choice, "sampler", "gredy", ("greedy", "random"))
    assert suggest("zzz", ["greedy"]) == ""


@pytest.mark.parametrize("place", ["pathlib.Path.write_text", "os.replace"])
def test_atomic_path_keeps_the_old_file_when_writing_fails(tmp_path, monkeypatch, place):
    target = tmp_path / "record.json"

    def write(text):
        with atomic_path(target) as temporary:
            temporary.write_text(text)

    write("old")
    with monkeypatch.context() as patch:
        patch.setattr(place, full_disk)
        refused(r"^.*record\.json: the disk is full; [^\n]+$", write, "new")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]
    write("new")
    assert target.read_text() == "new"


def test_quantile_threshold_by_hand():
    # 19 held-out normals, 5 %: rank ceil(20 * 0.95) = 19, the largest; one of 20 new normals lies above it.
    found = thresholds.from_normals(np.arange(19), "quantile", 0.05)
    assert (found.value, found.n_normals) == (18.0, 19)
    assert found.false_alarm_rate == pytest.approx(1 / 20)
    # 99 normals, 10 %: rank 90.
    assert thresholds.from_normals(np.arange(99), "quantile", 0.10).value == 89.0
    # Too few normals for the wish: the rate that is implied is reported.
    assert thresholds.from_normals(np.arange(9), "quantile", 0.01).false_alarm_rate == pytest.approx(0.1)


def test_the_other_rules_by_hand():
    scores = [1.0, 2.0, 3.0, 4.0]
    assert thresholds.from_normals(scores, "max").value == 4.0
    found = thresholds.from_normals(scores, "mean_sigma", n_sigma=2)
    assert found.value == pytest.approx(2.5 + 2 * math.sqrt(5 / 3))


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=60), st.floats(0.01, 0.99))
def test_quantile_threshold_keeps_its_promise(scores, rate):
    found = thresholds.from_normals(scores, "quantile", rate)
    n = len(scores)
    above = np.count_nonzero(np.asarray(scores) > found.value)
    assert found.false_alarm_rate == (above + 1) / (n + 1)
    assert found.false_alarm_rate <= max(rate, 1 / (n + 1)) + 1e-9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0],), "at least 2"),
        (([1.0, float("nan")],), "NaN"),
        (([1.0, 2.0], "median"), "threshold rule"),
        (([1.0, 2.0], "quantile", 0.0), "strictly between"),
    ],
)
def test_bad_thresholds_are_refused(arguments, message):
    refused(message, thresholds.from_normals, *arguments)
