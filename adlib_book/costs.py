"""What a run takes: `profiles/costs.yaml`, the one file that a cluster's requests and every estimate rest on."""

import functools
import math
from typing import NamedTuple

import yaml

from adlib import profiles
from adlib.errors import InputError
from adlib.paths import root
from adlib.settings import choice

NOTEBOOKS = "notebooks"  # the entry of what a batch runs once
# Another processor, other images: the request is the measured cost times these.
MEMORY_MARGIN, TIME_MARGIN = 1.5, 3


class Cost(NamedTuple):
    """What one run took, or what is expected of it.

    Attributes:
        minutes, mem_mb: of the longest run, without a margin.
        threads: processors; gpu: graphics cards.
        basis: "measured" or "estimated".
    """

    minutes: float
    mem_mb: int
    threads: int
    gpu: int
    basis: str


def read(profile: str, entry: str) -> Cost:
    """Return the cost of a method ("notebooks": of a notebook that a batch runs once) in a profile.

    Raises:
        InputError: the file lacks the entry, or it is not of the form `{minutes, mem_mb, threads, gpu, basis}`.
    """
    file = root() / "profiles" / "costs.yaml"
    costs = _costs(file)
    if profile not in costs:  # one of your own
        profile = _based_on(profile)
    choice(f"{file}: profile", profile, costs)
    choice(f"{file}: entry of {profile}", entry, costs[profile])
    values = costs[profile][entry]
    numbers = ("minutes", "mem_mb", "threads", "gpu")
    right = isinstance(values, dict) and set(values) == set(Cost._fields)
    if not right or not all(type(values[name]) in (int, float) and values[name] >= 0 for name in numbers):
        raise InputError(f"{file}: {profile}.{entry} must be {{{', '.join(Cost._fields)}}}, with numbers from 0")
    return Cost(**values)


def request(profile: str, entry: str, attempt: int = 1) -> dict[str, int]:
    """Return what a scheduler is asked for: Snakemake's resources `mem_mb`, `runtime` (minutes) and `gpu`.

    Args:
        attempt: 1, 2, ...; each asks for as much memory and time again.
    """
    cost = read(profile, entry)
    return {
        "mem_mb": math.ceil(cost.mem_mb * MEMORY_MARGIN) * attempt,
        "runtime": max(10, math.ceil(cost.minutes * TIME_MARGIN)) * attempt,
        "gpu": cost.gpu,
    }


@functools.cache  # a batch asks for every job, and the profile may list thousands of seeds
def _based_on(profile: str) -> str:
    return profiles.load(profile)["based_on"]


@functools.cache
def _costs(file) -> dict:
    try:
        return yaml.safe_load(file.read_text())
    except yaml.YAMLError as error:
        raise InputError(f"{file} is not valid YAML: {str(error).splitlines()[0]}") from None
