"""What `selection="synthetic"` goes by, for every method: the same damaged images and the same score."""

import numpy as np

from adlib.images import to_tensor
from adlib.synthesis.split import SyntheticSplit

N_IMAGES = 64  # at most so many, half of them damaged
# No method of any profile trains on these: a judge who taught is no judge. The second is akin to `nsa`, though,
# which the contrastive model sees among others, so methods are not held against each other by it.
FAMILIES = ("memseg", "anomalygpt_nsa")


class Judge:
    """Held-out normal images, every other one damaged: fixed by table, size of the input and seed.

    Args:
        table: held-out normal images, or a list of paths.
        resize: the geometry of the input.
        number: at most so many images, half of them damaged; each serves at most twice, once clean and once damaged.
        seed: the same for all methods of one run.
        families: of the damages.
        draws: so many times over, with the seeds from `seed` on: other damages on the same images.

    Attributes:
        images: uint8 (N, H, W, 3). masks: bool (N, H, W). labels: int (N,), 1 for damaged.
    """

    def __init__(self, table, resize, number: int = N_IMAGES, seed: int = 0, families=FAMILIES, draws: int = 1):
        number = min(2 * len(table), number)
        splits = [SyntheticSplit(table, families, number=number, seed=seed + k, resize=resize) for k in range(draws)]
        items = [split[i] for split in splits for i in range(len(split))]
        self.images = np.stack([item.image for item in items])
        self.masks = np.stack([item.mask for item in items])
        self.labels = np.array([item.label for item in items])

    def look(self, score) -> dict[str, float]:
        """Rate a function that takes images (B, 3, H, W) in [0, 1] to `Scores`."""
        scored = [score(to_tensor(self.images[k : k + 8])) for k in range(0, len(self.images), 8)]
        return self.rate(np.concatenate([one.image for one in scored]), np.concatenate([one.map for one in scored]))

    def rate(self, image_scores, maps) -> dict[str, float]:
        """Rate scores (N,) and maps (N, H, W) of `images`: `score` is the mean of image AUROC and pixel AP."""
        from adlib.evaluation import metrics  # it needs no image, this module nothing else of it

        image_auroc = metrics.image_metrics(np.asarray(image_scores, np.float64), self.labels)["image_auroc"]
        pixel_ap = metrics.pixel_metrics(list(maps), list(self.masks))["pixel_ap"]
        return {"score": (image_auroc + pixel_ap) / 2, "image_auroc": image_auroc, "pixel_ap": pixel_ap}
