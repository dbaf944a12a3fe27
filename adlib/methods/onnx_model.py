"""A method as `adlib export` writes it: one ONNX file, run by onnxruntime."""

import json
from pathlib import Path
from types import SimpleNamespace

import torch

from adlib.errors import InputError
from adlib.images import Batch, Resize
from adlib.images.maps import check_images
from adlib.methods import Scores
from adlib.paths import digest_of

SEAL = 44  # bytes of the last entry of the metadata: its value is a digest of all that stands before


class OnnxModel:
    """What `adlib.own_parts.predict` asks of a fitted method, from an ONNX file.

    Attributes:
        facts: the file's metadata: `method`, `resize`, `threshold`, `pixel_threshold`, `roi`, `normal_scores`.

    Raises:
        InputError: no such file, not one of `adlib export`, or onnxruntime is not installed.
    """

    def __init__(self, path):
        try:
            import onnxruntime
        except ImportError:
            raise InputError(f"{path}: onnxruntime is not installed; run: pip install -e '.[onnx]'") from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            content = Path(path).read_bytes()
            if content[-32:] != digest_of(content[:-SEAL]).encode():
                raise InputError("damaged, or of an earlier version: export it again")
            self.session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
            self.facts = json.loads(self.session.get_modelmeta().custom_metadata_map["adlib"])
            self.resize = Resize(**self.facts["resize"])
        except Exception as error:  # onnxruntime has classes of its own for each kind of damage
            reason = str(error).splitlines()[0]
            raise InputError(f"{path} is no ONNX file that adlib export has written ({reason})") from None
        self.settings = SimpleNamespace(bit_depth=self.resize.bit_depth)

    def score(self, batch: Batch | torch.Tensor) -> Scores:
        """Score images (B, 3, H, W) in [0, 1] at the network's input size."""
        return Scores(*self.session.run(None, {"images": check_images(batch).numpy()}))
