"""Profiles: parameters only. `smoke` is the embedded demo data, `laptop` real data on a CPU, `paper` the papers' own.

A profile is a YAML file in `profiles/` with one schema:

    description: one line
    datasets:           # what a batch runs without a data root: data set -> {categories: [...]}
    discover: false     # with a data root: run every data set that is found below it
    seeds: [0]
    only: {}            # method -> the categories it runs on, where not all
    methods:            # method -> changes to its default settings
    studies:            # notebook of a study -> its settings; every profile knows the same ones
"""

import yaml

from adlib import methods, settings
from adlib.errors import InputError
from adlib.paths import root
from adlib.settings import choice

KEYS = {
    "description": str,
    "datasets": dict,
    "discover": bool,
    "seeds": list,
    "only": dict,
    "methods": dict,
    "studies": dict,
}


def names() -> list[str]:
    """Return the names of the profiles, those of the repository's `profiles/` folder."""
    files = (root() / "profiles").glob("*.yaml")
    return sorted(file.stem for file in files if file.name != "costs.yaml")  # what they cost, see adlib_book.costs


def load(name: str) -> dict:
    """Read a profile and check it against the schema; `check` looks at the settings too.

    Raises:
        InputError: unknown profile, unknown or wrongly typed key, unknown method.
    """
    choice("profile", name, names())
    file = root() / "profiles" / f"{name}.yaml"
    try:
        profile = yaml.safe_load(file.read_text()) or {}
    except yaml.YAMLError as error:
        raise InputError(f"{file} is not valid YAML: {str(error).splitlines()[0]}") from None
    for key, kind in KEYS.items():
        if not isinstance(profile.get(key), kind):
            raise InputError(f"{file}: key {key!r} must be there and be a {kind.__name__}")
    for key in profile:
        choice(f"{file}: key", key, KEYS)
    for method in profile["only"]:
        choice(f"{file}: method under 'only'", method, profile["methods"])
    for method in profile["methods"]:
        choice(f"{file}: method", method, methods.METHODS)
    return {"name": name, **profile}


def check(name: str) -> None:
    """Refuse a profile with an unknown setting or value of a method; this loads all methods, and torch with them."""
    for method in load(name)["methods"]:
        method_settings(name, method)


def method_settings(profile: str, method: str, overrides: dict | None = None) -> dict:
    """Return a method's changes to its defaults: the profile's, then `overrides` on top, checked."""
    own = load(profile)["methods"].get(method, {})
    changes = {**own, **(overrides or {})}
    settings.build(methods.get(method).Settings, own, owner=f"{method} in {profile}.yaml")
    settings.build(methods.get(method).Settings, changes, owner=method)
    return changes


def shaped(method: str, values: dict, image_paths, report=None) -> dict:
    """Return settings of a method with `resize: aspect` resolved to a size, by its normal training images alone.

    Args:
        values: changes to the method's defaults, as `method_settings` returns them.
        image_paths: normal training images; see `adlib.images.aspect_size` for the rule.
        report: called with one line where the input is not square, or is although the images are not.

    Returns:
        `resize: stretch` with an `image_size` that keeps the images' shape; a height and width that were given stay.
        Unchanged where `resize` asks for something else.
    """
    if values.get("resize") != "aspect":
        return values
    from adlib.images import aspect_size  # it loads torch

    side = values.get("image_size", methods.get(method).Settings().image_size)
    if not isinstance(side, int):
        return values | {"resize": "stretch"}
    size, line = aspect_size(image_paths, side)
    if report and line:
        report(line)
    return values | {"resize": "stretch", "image_size": size}


def study_settings(profile: str, study: str, overrides: dict | None = None) -> dict:
    """Return the settings of a study: the profile's, then `overrides` on top; unknown names are refused."""
    studies = load(profile)["studies"]
    choice("study", study, studies)
    for name in overrides or {}:
        choice(f"setting of {study}", name, studies[study])
    return {**studies[study], **(overrides or {})}
