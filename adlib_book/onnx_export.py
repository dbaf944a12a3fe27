"""A fitted method as one ONNX file: from pixels to scores and maps, smoothing and image score included.

    adlib export -m model/ -o model.onnx        adlib predict -m model.onnx -i parts/new -o out/

Decoding and resizing stay outside; how, and the thresholds, stand in the file's metadata under "adlib", as JSON.
"""

import copy
import json
import warnings
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn

from adlib import methods
from adlib.errors import InputError
from adlib.images import patches
from adlib.images.maps import enlarge, top_mean
from adlib.methods import storage
from adlib.methods.dfr import WINDOW, aggregate, energy
from adlib.methods.glass.glass import embed
from adlib.own_parts import KEPT
from adlib.paths import atomic_path, digest_of


class GlassCells(nn.Module):
    """Probability of each cell: (B, 3, H, W) -> (B, h, w), as all modules of `CELLS`."""

    def __init__(self, method):
        super().__init__()
        self.backbone, self.network = copy.deepcopy((method.backbone, method.averaged.eval()))
        self.pooling = (method.settings.patch_size, method.settings.embedding_dim)
        self.factor = method.feature_factor

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        cells = embed(self.backbone(images), *self.pooling) * self.factor  # (B, D, h, w)
        rows = cells.permute(0, 2, 3, 1)  # (B, h, w, D)
        return self.network.logits(rows.flatten(0, 2)).sigmoid().reshape(-1, *rows.shape[1:3])


class PatchCoreCells(nn.Module):
    """Mean distance of each patch to the nearest rows of the bank."""

    def __init__(self, method):
        super().__init__()
        self.backbone, s = copy.deepcopy(method.backbone), method.settings
        self.pooling, self.squared = (method.patch_size, s.embedding_dim), s.squared
        bank = torch.from_numpy(np.array(method.memory_bank))  # (N, D)
        self.k = min(s.k, len(bank))
        self.register_buffer("middle", bank.mean(dim=0))  # far from the origin rounding would decide
        self.register_buffer("bank", (bank - self.middle).T.contiguous())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        grid = embed(self.backbone(images), *self.pooling)
        rows = grid.permute(0, 2, 3, 1) - self.middle  # (B, h, w, D)
        squared = rows.square().sum(-1, keepdim=True) + self.bank.square().sum(0) - 2 * rows @ self.bank
        nearest = squared.clamp(min=0).topk(self.k, dim=-1, largest=False).values
        return (nearest if self.squared else nearest.sqrt()).mean(-1)


class PadimCells(nn.Module):
    """Mahalanobis distance of each position."""

    def __init__(self, method):
        super().__init__()
        self.backbone = copy.deepcopy(method.backbone)
        for name in ("channels", "mean", "whitening"):
            self.register_buffer(name, getattr(method, name).clone())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        grid = patches.mean_embedding(self.backbone(images), patch_size=1).index_select(1, self.channels)
        x = grid.flatten(2).permute(2, 1, 0) - self.mean[:, :, None]  # (P, d, B)
        return torch.bmm(self.whitening, x).norm(dim=1).T.reshape(-1, *grid.shape[2:])


class DfrCells(nn.Module):
    """Reconstruction error of each place of the common grid."""

    def __init__(self, method):
        super().__init__()
        self.backbone, self.auto_encoder = copy.deepcopy((method.backbone, method.auto_encoder.eval()))
        self.map_size = method.map_size
        mean, deviation = method.mean_and_deviation if len(method.mean_and_deviation) else torch.tensor([0.0, 1.0])
        self.register_buffer("mean", mean.clone().reshape(-1, 1, 1))
        self.register_buffer("deviation", deviation.clone().reshape(-1, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = aggregate(self.backbone(images), self.map_size, WINDOW, WINDOW)
        features = (features - self.mean) / self.deviation
        return energy(features, self.auto_encoder(features))


class DraemCells(nn.Module):
    """Probability of each pixel."""

    def __init__(self, method):
        super().__init__()
        self.repair, self.tell = copy.deepcopy((method.reconstruction.eval(), method.discriminator.eval()))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.tell(torch.cat([self.repair(images), images], dim=1)).softmax(dim=1)[:, 1]


CELLS = {"glass": GlassCells, "patchcore": PatchCoreCells, "padim": PadimCells, "dfr": DfrCells, "draem": DraemCells}
IMAGE_SCORES = {  # method -> setting -> what is summed up, and how
    "glass": {"max": ("cells", "max"), "top": ("maps", "top")},
    "patchcore": {"max": ("cells", "max"), "top": ("cells", "top")},
    "padim": {None: ("maps", "max")},
    "dfr": {"max": ("maps", "max"), "top": ("maps", "top")},
    "draem": {None: ("cells", "window")},
}
REASONS = {
    "spade": "it searches the feature maps of all training images anew for each image",
    "few_shot": "it compares every stage with its support images apart",
    "contrastive": "a clustering of each image is no graph of operations",
    "unified": "its scores are ranks among the support's own",
    "ulsad": "its maps are put on one scale by statistics of two branches",
    "pagmfr": "its maps are calibrated and fused in ways that depend on the settings",
}


class Deployed(nn.Module):
    """Everything between an image of the network's size and its scores, with copies of the weights.

    An export therefore leaves the method where it is, on a GPU for example.

    Raises:
        InputError: a method, or an image score of its, that no graph is written for.
    """

    def __init__(self, method):
        super().__init__()
        s = method.settings
        if method.name not in CELLS:
            raise InputError(f"{method.name} cannot be exported: {REASONS[method.name]}; {', '.join(CELLS)} can")
        score, search = getattr(s, "image_score", None), getattr(s, "search", "exact")
        if score not in IMAGE_SCORES[method.name] or search != "exact":
            what = f"image_score {score!r} and search {search!r}"
            raise InputError(f"{method.name} with {what} cannot be exported; train with 'max' and 'exact'")
        self.source, self.rule = IMAGE_SCORES[method.name][score]
        self.cells, self.size, self.aligned = CELLS[method.name](method), method.resize.hw, method.name == "dfr"
        self.border, self.side = getattr(method, "window", (None, 1))
        sigma = getattr(s, "sigma", 0.0)
        self.reach = int(4 * sigma + 0.5)  # the Gaussian is cut off at 4 sigma
        distance = torch.arange(-self.reach, self.reach + 1, dtype=torch.float32)
        kernel = torch.exp(-0.5 * (distance / max(sigma, 1e-6)) ** 2)
        self.register_buffer("kernel", kernel / kernel.sum())

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return image scores (B,) and maps (B, H, W) for images (B, 3, H, W) in [0, 1]."""
        cells = self.cells(images)
        maps = self.smooth(enlarge(cells, self.size, self.aligned))
        values = cells if self.source == "cells" else maps
        if self.rule == "window":
            zeros = self.side // 2 if self.border == cv2.BORDER_CONSTANT else 0
            values = (values if zeros else mirrored(values, self.side // 2))[:, None]
            values = nn.functional.avg_pool2d(values, self.side, stride=1, padding=zeros)[:, 0]
        return top_mean(values) if self.rule == "top" else values.amax(dim=(1, 2)), maps

    def smooth(self, maps: torch.Tensor) -> torch.Tensor:
        """Gaussian smoothing of maps (B, H, W)."""
        if not self.reach:
            return maps
        maps = mirrored(maps, self.reach)[:, None]
        convolved = nn.functional.conv2d(maps, self.kernel.view(1, 1, -1, 1))
        return nn.functional.conv2d(convolved, self.kernel.view(1, 1, 1, -1))[:, 0]


def mirrored(maps: torch.Tensor, reach: int) -> torch.Tensor:
    """Continue maps (B, H, W) beyond their edges, which are mirrored and repeated: no padding mode offers that."""
    maps = torch.cat([maps[:, :reach].flip(1), maps, maps[:, -reach:].flip(1)], dim=1)
    return torch.cat([maps[..., :reach].flip(2), maps, maps[..., -reach:].flip(2)], dim=2)


def export(method, path, **facts) -> Path:
    """Write a fitted method as an ONNX file with a dynamic batch.

    Input `images`: float32 (B, 3, H, W) in [0, 1], RGB, already at the network's size; the weights' normalisation is
    inside. Outputs `scores` (B,) and `maps` (B, H, W): what the method's `score` returns.

    Args:
        facts: for the metadata, such as thresholds; the way to resize an image stands there in any case.

    Raises:
        InputError: a method that is not fitted or has no graph, or a package is missing.
    """
    storage.check_fitted(method)
    model = Deployed(method).cpu().eval()
    try:
        import onnx
        import onnxscript  # noqa: F401 - torch's exporter needs it
    except ImportError:
        raise InputError("ONNX export needs packages that are not installed; run: pip install -e '.[onnx]'") from None
    facts |= {"method": method.name, "resize": asdict(method.resize), "range": [0, 1]}
    with atomic_path(path) as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside the exporter
        torch.onnx.export(
            model,
            (torch.zeros(2, 3, *method.resize.hw),),
            str(temporary),
            dynamo=True,
            external_data=False,
            verbose=False,
            input_names=["images"],
            output_names=["scores", "maps"],
            dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
        )
        written = onnx.load(temporary)
        onnx.helper.set_model_props(written, {"adlib": json.dumps(facts)})
        content = written.SerializeToString()
        digest = onnx.StringStringEntryProto(key="digest", value=digest_of(content))
        seal = onnx.ModelProto(metadata_props=[digest]).SerializeToString()  # bytes added to a file are fields added
        temporary.write_bytes(content + seal)
    return Path(path)


def export_model(model, path) -> Path:
    """Write the model of a folder as an ONNX file, with its thresholds and regions of interest."""
    header, fitted = storage.read_header(model), methods.load(model)
    facts = {key: header[key] for key in ("settings", *KEPT) if key in header}
    return export(fitted, path, normal_scores=fitted.normal_scores.tolist(), **facts)
