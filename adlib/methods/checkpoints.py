"""A training on disk: one file, moved into place when complete, that also says what it was made with."""

import zipfile
from pathlib import Path

import torch

from adlib.errors import InputError
from adlib.paths import atomic_path

EVERY = 100  # steps between two writes
# Settings that may change between two parts of one run; all others make another run.
FREE_SETTINGS = ("epochs", "steps", "checkpointing")


def check_origin(checkpoint: Path, made_with: dict, origin: dict) -> None:
    """Refuse to resume from a checkpoint that was made with other settings, weights or images."""
    for key, value in _binding(origin).items():
        if made_with.get(key) != value:
            raise InputError(
                f"checkpoint {checkpoint} was made with {key} {made_with.get(key)!r}, these settings say {value!r}; "
                "use the same or delete it to start anew"
            )


def _binding(origin: dict) -> dict:
    return {key: value for key, value in origin.items() if key not in FREE_SETTINGS}


def checkpoint_file(checkpoint: str | Path) -> Path:
    """Return the path of a checkpoint; a folder is refused."""
    if Path(checkpoint).is_dir():
        raise InputError(f"checkpoint {checkpoint} is a folder; give a file, for example {Path(checkpoint) / 'run.pt'}")
    return Path(checkpoint)


def states(modules) -> dict:
    """Copy the weights of every module to the processor's memory."""
    return {n: {k: v.detach().cpu().clone() for k, v in m.state_dict().items()} for n, m in modules.items()}


def save(path: Path, state, modules, optimizers, schedulers, origin: dict | None = None) -> None:
    """Write all that a training needs to go on, and `origin`: settings, weights and images that it was made with."""
    content = {
        **state,
        "origin": _binding(origin or {}),
        "modules": states(modules),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "schedulers": [scheduler.state_dict() for scheduler in schedulers],
    }
    with atomic_path(path) as temporary:
        torch.save(content, temporary)


def restore(path: Path, modules, optimizers, schedulers, origin: dict | None = None) -> dict:
    """Read what `save` wrote into modules, optimisers and schedulers; return the rest of it."""
    try:
        with zipfile.ZipFile(path) as parts:  # torch writes a check sum of each part, and does not look at them
            if damaged := parts.testzip():
                raise ValueError(f"part {damaged} has changed")
        content = torch.load(path, map_location="cpu", weights_only=True)
        check_origin(path, content.pop("origin"), origin or {})
        for name, module in modules.items():
            module.load_state_dict(content["modules"][name])
        for optimizer, saved in zip(optimizers, content["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        for scheduler, saved in zip(schedulers, content["schedulers"], strict=True):
            scheduler.load_state_dict(saved)
        return {key: value for key, value in content.items() if key not in ("modules", "optimizers", "schedulers")}
    except InputError:
        raise
    except Exception as error:  # torch, pickle and zip each raise their own; to the user they mean one thing
        reason = str(error).splitlines()[0][:100]
        raise InputError(
            f"checkpoint {path} does not belong to this configuration or is damaged ({reason}); delete it to start anew"
        ) from error
