"""The functions that PAGMFR's README names, as thin real functions on a data set in MVTec AD's layout.

    loader = get_mvtec_dataloader("data/mvtec_ad", "bottle", train=True, texture_dataset_path="data/dtd")
    model = train_pagmfr(PAGMFRModel(), loader, epochs=600)
    save_checkpoint(model, "runs", "bottle")                                   # runs/pagmfr_bottle_best.pth
    test = get_mvtec_dataloader("data/mvtec_ad", "bottle", train=False)
    image_auroc, pixel_auroc, pro = validate_pagmfr(model, test)
    save_pictures(model, test, "runs", "bottle")                               # runs/pagmfr_bottle_<image>.png

`adlib run pagmfr` does all of this and more (thresholds, records, selection without test data).
"""

import math
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from adlib import datasets
from adlib.errors import InputError
from adlib.evaluation import metrics
from adlib.images import Resize, to_tensor
from adlib.methods import training
from adlib.methods.pagmfr.network import PAGMFRModel, losses
from adlib.methods.pagmfr.training_pairs import Pairs, PairSettings
from adlib.paths import atomic_path


class TrainingPairs(Dataset):
    """One epoch of training pairs: dicts of normal, image (3, H, W) in [0, 1] and mask (H, W)."""

    def __init__(self, pairs: Pairs):
        self.pairs = pairs

    def __len__(self):
        return len(self.pairs.images)

    def __getitem__(self, index: int) -> dict:
        normal, image, mask = self.pairs.sample(index)
        return {"normal": to_tensor([normal])[0], "image": to_tensor([image])[0], "mask": torch.from_numpy(mask)}


class TestImages(Dataset):
    """Test images: dicts of image (3, H, W) in [0, 1], mask (H, W), label and name ("<defect>_<file stem>")."""

    def __init__(self, table, resize: Resize):
        self.table, self.resize = table.reset_index(drop=True), resize

    def __len__(self):
        return len(self.table)

    def __getitem__(self, index: int) -> dict:
        row = self.table.iloc[index]
        image, _ = self.resize.read(row.image_path)
        (mask,) = datasets.masks(self.table.iloc[[index]])
        mask = np.zeros(image.shape[:2], bool) if mask is None else self.resize.mask(mask)
        name = f"{row.defect}_{Path(row.image_path).stem}"
        return {"image": to_tensor([image])[0], "mask": torch.from_numpy(mask), "label": int(row.label), "name": name}


def get_mvtec_dataloader(
    root,
    category: str,
    train: bool = True,
    texture_dataset_path: str = "",
    external_img_dir: str = "",
    image_size: int = 256,
    batch_size: int = 32,
    workers: int = 0,
    seed: int = 0,
) -> DataLoader:
    """Load a category of a folder in MVTec AD's layout.

    Args:
        root: the folder of the category folders (`root_dir` in the README).
        train: pseudo-anomalous training pairs, or the test images.
        texture_dataset_path: folder of textures, searched with subfolders; "" for textures made on the spot.
        external_img_dir: folder of pictures of foreign objects; "" for objects made on the spot.
        image_size: pixels.

    Returns:
        a torch DataLoader; batches are dicts, see `TrainingPairs` and `TestImages`.

    Raises:
        InputError: folders that are missing or hold no image.
    """
    table = datasets.load("mvtec", root, category)
    resize = Resize(image_size)
    pinned = torch.cuda.is_available()
    if not train:
        test = TestImages(table[table.split == "test"], resize)
        if not len(test):
            raise InputError(f"{root}: {category!r} has no test image; expected some in {category}/test")
        return DataLoader(test, batch_size, num_workers=workers, pin_memory=pinned)
    normal = table[(table.split == "train") & (table.label == 0)]
    if normal.empty:
        raise InputError(f"{root}: {category!r} has no normal training image; expected some in {category}/train/good")
    settings = PairSettings(textures=texture_dataset_path, objects=external_img_dir, batch_size=batch_size, seed=seed)
    pairs = TrainingPairs(Pairs(normal, resize, settings))
    return DataLoader(
        pairs, batch_size, shuffle=False, num_workers=workers, pin_memory=pinned
    )  # the stream is shuffled


def train_pagmfr(model: PAGMFRModel, loader: DataLoader, epochs: int = 600, rate: float = 1e-3, seed: int = 0):
    """Train a model in the README's way (Adam, weight decay 1e-5, cosine) on all pairs of a loader; return the model.

    Pairs of later epochs are drawn anew. `PAGMFR` adds held-out images, selection and resuming.
    """
    pairs = getattr(getattr(loader, "dataset", None), "pairs", None)
    if not isinstance(pairs, Pairs):
        raise InputError("loader gives no training pairs; make it by get_mvtec_dataloader(..., train=True)")
    if not (rate > 0 and math.isfinite(rate)) or epochs < 1:
        raise InputError(
            f"rate {rate} must be a positive number and epochs {epochs} at least 1, for example 0.001 and 600"
        )
    device = next(model.parameters()).device
    normal = to_tensor(pairs.images[:64]).to(device)
    model.set_statistics(model.encode(normal), normal)
    trainable = model.trainable()
    optimizer = torch.optim.Adam([p for m in trainable.values() for p in m.parameters()], rate, weight_decay=1e-5)
    n_steps = epochs * math.ceil(len(pairs.images) / pairs.settings.batch_size)

    training.train(
        trainable,
        [optimizer],
        pairs.batch,
        lambda modules, batch, _step: losses(model, modules, batch),
        n_steps,
        training.Options(seed=seed),
        schedulers=[training.warm_up_cosine(optimizer, n_steps, lowest=1e-6 / rate)],
        clip_norm=1.0,
        progress="PAGMFR",
    )
    return model


def validate_pagmfr(model, loader: DataLoader) -> tuple[float | None, float | None, float | None]:
    """Return image AUROC, pixel AUROC and PRO (up to 30 % false positives) on a test loader, as fractions.

    None where they are undefined; a defective image without a mask counts in no pixel metric.

    Args:
        model: a `PAGMFRModel`, or any fitted method of this project.
    """
    scores, maps, masks, labels = [], [], [], []
    for batch in _test_batches(loader):
        batch_scores = model.score(batch["image"])
        scores.append(batch_scores.image)
        maps.extend(batch_scores.map)
        masks.extend(batch["mask"].numpy())
        labels.append(np.asarray(batch["label"]))
    labels = np.concatenate(labels)
    judged = [i for i, mask in enumerate(masks) if mask.any() or not labels[i]] or [0]
    pixel = metrics.pixel_metrics([maps[i] for i in judged], [masks[i] for i in judged])
    image = metrics.image_metrics(np.concatenate(scores), labels)
    return image["image_auroc"], pixel["pixel_auroc"], pixel["aupro_30"]


def _test_batches(loader: DataLoader):
    """The batches of a loader of test images."""
    for batch in loader:
        if missing := ", ".join(sorted({"image", "mask", "label", "name"} - set(batch))):
            raise InputError(
                f"loader gives batches without {missing}; make it by get_mvtec_dataloader(..., train=False)"
            )
        yield batch


def save_checkpoint(model: PAGMFRModel, folder, category: str) -> Path:
    """Write `pagmfr_{category}_best.pth`: the trained weights (not the encoder's) and what they belong to."""
    if callable(model.fusion_name):
        raise InputError("fusion is a function, which cannot be stored; save a model with fusion mlp, sum or product")
    path = Path(folder) / f"pagmfr_{category}_best.pth"
    state = {k: v.cpu() for k, v in model.state_dict().items() if not k.startswith("encoder.")}
    with atomic_path(path) as temporary:
        torch.save({"state": state, "configuration": _configuration(model)}, temporary)
    return path


def load_checkpoint(model: PAGMFRModel, path) -> PAGMFRModel:
    """Put the weights of `save_checkpoint` into a model of the same configuration and return it; nothing is unpickled.

    Raises:
        InputError: no such file, a damaged one, or one of another backbone, fusion or width.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        stored, state = dict(content["configuration"]), dict(content["state"])
    except FileNotFoundError:
        raise InputError(f"checkpoint {path} does not exist; expected a pagmfr_<category>_best.pth") from None
    except Exception as error:  # torch, pickle and zip each raise their own; to the user they mean one thing
        raise InputError(f"checkpoint {path} is damaged or none of PAGMFR's; train the model again") from error
    for key, value in _configuration(model).items():
        if stored.get(key) != value:
            raise InputError(
                f"checkpoint {path} was made with {key} {stored.get(key)!r}, this model has {value!r}; "
                "make the model as it was in training"
            )
    try:
        encoder = {k: v for k, v in model.state_dict().items() if k.startswith("encoder.")}
        model.load_state_dict(state | encoder)
    except RuntimeError as error:
        line = str(error).splitlines()[1].strip()[:100]
        raise InputError(f"checkpoint {path} is of another configuration ({line}); use the same widths") from None
    return model.eval()


def _configuration(model: PAGMFRModel) -> dict:
    encoder = model.encoder
    return {
        "backbone": encoder.name,
        "stages": list(encoder.stages),
        "fingerprint": encoder.fingerprint,
        "fusion": model.fusion_name,
        "terms": list(model.terms),
        "image_stride": model.mfrm.image_stride,
    }


def save_pictures(model, loader: DataLoader, folder, category: str) -> list[Path]:
    """Write `pagmfr_{category}_{image_name}.png` for every test image: original, ground truth, heat map.

    All heat maps share one colour scale, from the smallest to the largest score of the loader.
    """
    from matplotlib import pyplot as plt

    items = []
    for batch in _test_batches(loader):
        maps = model.score(batch["image"]).map
        images = batch["image"].permute(0, 2, 3, 1).numpy()
        items += list(zip(batch["name"], images, batch["mask"].numpy(), maps, strict=True))
    low, high = min(m.min() for *_, m in items), max(m.max() for *_, m in items)
    files = []
    for name, image, mask, anomaly_map in items:
        figure, axes = plt.subplots(1, 3, figsize=(7.2, 2.6))
        axes[0].imshow(image)
        axes[1].imshow(mask, cmap="gray", vmin=0, vmax=1)
        heat = axes[2].imshow(anomaly_map, cmap="inferno", vmin=low, vmax=high)
        for axis, title in zip(axes, ("original", "ground truth", "heat map"), strict=True):
            axis.set(title=title, xticks=[], yticks=[])
        figure.colorbar(heat, ax=axes[2], fraction=0.046, label="score")
        files.append(Path(folder) / f"pagmfr_{category}_{name}.png")
        with atomic_path(files[-1]) as temporary:
            figure.savefig(temporary, bbox_inches="tight", dpi=80)
        plt.close(figure)
    return files
