"""Profiles: parameters only. `smoke` is the embedded demo data, `laptop` real data on a CPU, `paper` the papers' own.

A profile is a YAML file in `profiles/` with one schema; one of your own, `--profile FILE.yaml`, says `based_on:` and
nothing but what it changes. Its `methods` and `studies` change single settings, any other key takes the place of the
whole.

    description: one line
    datasets:           # what a batch runs without a data root: data set -> {categories: [...]}
    discover: false     # with a data root: run every data set that is found below it
    keep_models: false  # leave each run's model in its folder
    seeds: [0]
    only: {}            # method -> the categories it runs on, in this order, where not all
    methods:            # method -> changes to its default settings
    studies:            # notebook of a study -> its settings; every profile knows the same ones
"""

import os
from pathlib import Path

import yaml

from adlib import methods, settings
from adlib.errors import InputError
from adlib.paths import root
from adlib.settings import choice

KEYS = {
    "description": str,
    "datasets": dict,
    "discover": bool,
    "keep_models": bool,
    "seeds": list,
    "only": dict,
    "methods": dict,
    "studies": dict,
}


def files() -> dict[str, Path]:
    """Return the profiles by name: those of the repository's `profiles/` folder, and your own one, `$ADLIB_PROFILE`."""
    own = [Path(os.environ["ADLIB_PROFILE"])] if os.environ.get("ADLIB_PROFILE") else []
    files = sorted((root() / "profiles").glob("*.yaml"))
    return {file.stem: file for file in (*own, *files) if file.stem != "costs"}  # what they cost, see adlib_book.costs


def names() -> list[str]:
    """Return the names of the profiles."""
    return sorted(files())


def use(profile: str) -> str:
    """Return the name of a profile; a YAML file of your own is known by its stem from now on, to notebooks as well."""
    if not profile.endswith((".yaml", ".yml")):
        return profile
    file = Path(profile).resolve()
    if not file.is_file():
        raise InputError(f"profile {profile} does not exist; give a YAML file with based_on, or a name")
    if file.stem in names() and files()[file.stem] != file:
        raise InputError(f"profile {profile} is called like one of the repository's, {file.stem!r}; rename the file")
    os.environ["ADLIB_PROFILE"] = str(file)  # a batch and its kernels are processes of their own
    return load(file.stem)["name"]


def load(name: str) -> dict:
    """Read a profile and check it against the schema; `check` looks at the settings too.

    Raises:
        InputError: unknown profile, unknown or wrongly typed key, unknown method.
    """
    choice("profile", name, names())
    file = files()[name]
    profile, base = _read(file), name
    if file.parent != root() / "profiles":
        base, profile = _changed(file, profile)
    for key, kind in KEYS.items():
        if not isinstance(profile.get(key), kind):
            raise InputError(f"{file}: key {key!r} must be there and be a {kind.__name__}")
    for key in profile:
        choice(f"{file}: key", key, KEYS)
    for method in profile["only"]:
        choice(f"{file}: method under 'only'", method, profile["methods"])
    for method in profile["methods"]:
        choice(f"{file}: method", method, methods.METHODS)
    return {"name": name, "based_on": base, **profile}


def _read(file: Path) -> dict:
    try:
        profile = yaml.safe_load(file.read_text()) or {}
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # the latter: no text, a number of 5,000 digits
        raise InputError(f"{file} is not valid YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(profile, dict):
        raise InputError(f"{file} must hold keys and values, such as seeds: [0]")
    return profile


def _changed(file: Path, changes: dict) -> tuple[str, dict]:
    """Return the name of the profile that an own one is based on, and its keys with the changes."""
    for key in changes:
        choice(f"{file}: key", key, ("based_on", *KEYS))
    bases = [name for name in names() if name != file.stem]
    if "based_on" not in changes:
        raise InputError(f"{file} is based on nothing; add a line such as based_on: laptop ({', '.join(bases)})")
    choice(f"{file}: based_on", changes["based_on"], bases)
    base = load(changes["based_on"])
    profile = {key: base[key] for key in KEYS}
    for key, value in changes.items():
        if key in ("methods", "studies") and isinstance(value, dict):
            for name, own in value.items():
                choice(f"{file}: {key}", name, methods.METHODS if key == "methods" else profile[key])
                if not isinstance(own, dict):
                    raise InputError(f"{file}: {key} {name!r} must hold settings and values")
                if key == "studies":
                    for setting in own:
                        choice(f"{file}: setting of {name}", setting, profile[key][name])
            value = profile[key] | {name: profile[key].get(name, {}) | own for name, own in value.items()}
        if key != "based_on":
            profile[key] = value
    return base["based_on"], profile


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
    """Return settings of a method with what its normal training images alone say: `resize: aspect`, and `bit_depth`.

    Args:
        values: changes to the method's defaults, as `method_settings` returns them.
        image_paths: normal training images; see `adlib.images.aspect_size` for the rule.
        report: called with one line where the input is not square, or is although the images are not.

    Returns:
        `bit_depth` where the images hold more than 8 bits and it was not given (`images.bit_depth_of`), and in place of
        `aspect`, `resize: stretch` with an `image_size` that keeps the images' shape; a height and width that were
        given stay.
    """
    from adlib.images import aspect_size, bit_depth_of  # they load torch

    if values.get("bit_depth") is None and (depth := bit_depth_of(image_paths)):
        values = values | {"bit_depth": depth}
        if report:
            report(f"{depth} bits, from {len(image_paths)} training images (bit_depth sets another range)")
    if values.get("resize") != "aspect":
        return values
    side = values.get("image_size", methods.get(method).Settings().image_size)
    if not isinstance(side, int):
        return values | {"resize": "stretch"}
    size, line = aspect_size(image_paths, side)
    if report and line:
        report(line)
    return values | {"resize": "stretch", "image_size": size}
