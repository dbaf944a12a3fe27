"""A trained GLASS as one ONNX file: from pixels to scores and maps, post-processing included."""

import copy
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from adlib.errors import InputError
from adlib.images.maps import top_mean
from adlib.methods import storage
from adlib.methods.glass.glass import Glass, embed
from adlib.paths import atomic_path


class Deployed(nn.Module):
    """Everything between an image of the network's size and its scores as one differentiable-free module.

    Outside remain reading and resizing of the file; see `Glass.resize`. The weights are copies, so that an export
    leaves the method where it is, on a GPU for example.
    """

    def __init__(self, method: Glass):
        super().__init__()
        s = method.settings
        self.pooling = (s.patch_size, s.embedding_dim)
        self.factor, self.size = method.feature_factor, method.resize.hw
        self.backbone, self.network = copy.deepcopy((method.backbone, method.network.eval()))
        self.image_score = s.image_score
        self.reach = int(4 * s.sigma + 0.5)  # the Gaussian is cut off at 4 sigma
        distance = torch.arange(-self.reach, self.reach + 1, dtype=torch.float32)
        kernel = torch.exp(-0.5 * (distance / max(s.sigma, 1e-6)) ** 2)
        self.register_buffer("kernel", kernel / kernel.sum())

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return image scores (B,) and maps (B, H, W) for images (B, 3, H, W) in [0, 1]."""
        cells = embed(self.backbone(images), *self.pooling) * self.factor  # (B, D, h, w)
        rows = cells.permute(0, 2, 3, 1)  # (B, h, w, D)
        grid = rows.shape[1:3]
        probabilities = self.network.logits(rows.flatten(0, 2)).sigmoid().reshape(-1, 1, *grid)  # (B, 1, h, w)
        maps = F.interpolate(probabilities, size=self.size, mode="bilinear", align_corners=False)
        maps = self.smooth(maps)[:, 0]
        return top_mean(maps) if self.image_score == "top" else probabilities.amax(dim=(1, 2, 3)), maps

    def smooth(self, maps: torch.Tensor) -> torch.Tensor:
        """Gaussian smoothing of maps (B, 1, H, W); edges are mirrored and repeated, which no padding mode offers."""
        reach = self.reach
        if not reach:
            return maps
        maps = torch.cat([maps[:, :, :reach].flip(2), maps, maps[:, :, -reach:].flip(2)], dim=2)
        maps = torch.cat([maps[..., :reach].flip(3), maps, maps[..., -reach:].flip(3)], dim=3)
        return F.conv2d(F.conv2d(maps, self.kernel.view(1, 1, -1, 1)), self.kernel.view(1, 1, 1, -1))


def export(method: Glass, path) -> Path:
    """Write a fitted GLASS as an ONNX file with a dynamic batch.

    Input `images`: float32 (B, 3, H, W) in [0, 1], RGB, already at the network's size; the weights' normalisation is
    inside. Outputs `scores` (B,) and `maps` (B, H, W), smoothed: what `Glass.score` returns. Outside the file are
    reading and resizing the image (`Glass.resize`), and the threshold.

    Raises:
        InputError: a method that is not fitted, or the package onnxscript is missing.
    """
    storage.check_fitted(method)
    try:
        import onnxscript  # noqa: F401 - torch's exporter needs it
    except ImportError:
        raise InputError(
            "ONNX export needs packages that are not installed; run: pip install onnx onnxscript"
        ) from None
    path = Path(path)
    example = torch.zeros(2, 3, *method.resize.hw)
    model = Deployed(method).cpu().eval()
    with atomic_path(path) as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside the exporter
        torch.onnx.export(
            model,
            (example,),
            str(temporary),
            dynamo=True,
            external_data=False,
            verbose=False,
            input_names=["images"],
            output_names=["scores", "maps"],
            dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
        )
    return path
