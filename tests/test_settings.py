"""Settings, thresholds, paths: small things that everything else leans on."""

import errno
import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adlib import thresholds
from adlib.errors import InputError, suggest
from adlib.paths import atomic_path
from adlib.settings import as_dict, build, choice, parse_overrides


@dataclass(frozen=True)
class Example:
    share: float = 0.1
    size: int | tuple[int, ...] = 8
    name: str = "a"
    limit: int | None = None
    flag: bool = False


def test_known_changes_pass_and_lists_become_tuples():
    made = build(Example, {"share": 1, "size": [4, 6], "limit": 3, "flag": True})
    assert made == Example(1, (4, 6), "a", 3, True)
    assert as_dict(made)["size"] == [4, 6]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"shere": 0.2}, "did you mean 'share'"),
        ({"share": "0.2"}, "must be float"),
        ({"share": True}, "must be float"),
        ({"size": 4.5}, "size"),
        ({"size": [4, "6"]}, "size"),
        ({"limit": "none"}, "limit"),
        ({"flag": 1}, "must be bool"),
    ],
)
def test_unknown_or_wrongly_typed_settings_are_refused(values, message):
    with pytest.raises(InputError, match=message):
        build(Example, values)


def test_overrides_are_read_as_yaml():
    text = ["a=0.02", "b=[1, 2]", "c=null", "d=true", "e=word", "f="]
    assert parse_overrides(text) == {"a": 0.02, "b": [1, 2], "c": None, "d": True, "e": "word", "f": None}
    for bad in ("novalue", "=3", "x=[1"):
        with pytest.raises(InputError, match="--set"):
            parse_overrides([bad])


def test_choice_names_the_nearest():
    choice("sampler", "greedy", ("greedy", "random"))
    with pytest.raises(InputError, match="did you mean 'greedy'"):
        choice("sampler", "gredy", ("greedy", "random"))
    assert suggest("zzz", ["greedy"]) == ""


def test_atomic_path_keeps_the_old_file_when_writing_fails(tmp_path):
    target = tmp_path / "record.json"
    target.write_text("old")

    def write_until_the_disk_is_full():
        with atomic_path(target) as temporary:
            temporary.write_text("half of the new")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_until_the_disk_is_full()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]
    with atomic_path(target) as temporary:
        temporary.write_text("new")
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
    with pytest.raises(InputError, match=message):
        thresholds.from_normals(*arguments)
