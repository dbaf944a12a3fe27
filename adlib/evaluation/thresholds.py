"""Thresholds from normal images alone, and the false-alarm rate they imply.

A threshold chosen on training images is biased low (a memory bank knows them), one chosen on test images is a leak.
So every rule here takes scores of *held-out* normal images.
"""

import math
from dataclasses import asdict, dataclass

import numpy as np

from adlib.errors import InputError
from adlib.settings import choice

RULES = ("quantile", "mean_sigma", "max")


@dataclass(frozen=True)
class Threshold:
    """A decision threshold: an image is called anomalous when its score is *above* `value`.

    Attributes:
        value: in units of the score.
        rule: how it was chosen.
        n_normals: number of held-out normal scores it rests on.
        false_alarm_rate: expected share of new normal images above it, (number of held-out scores above + 1) / (n + 1).
    """

    value: float
    rule: str
    n_normals: int
    false_alarm_rate: float

    def to_dict(self) -> dict:
        """Return plain JSON types."""
        return asdict(self)


def from_normals(scores, rule: str = "quantile", false_alarm_rate: float = 0.05, n_sigma: float = 3.0) -> Threshold:
    """Choose a threshold from scores of held-out normal images.

    `quantile` takes the smallest held-out score that a new normal image exceeds with a probability of at most
    `false_alarm_rate`: of n + 1 exchangeable scores the new one is above the k-th smallest with probability
    (n + 1 - k) / (n + 1). With fewer than 1 / rate - 1 images no score is high enough; then the largest one is used
    and the rate that it implies, 1 / (n + 1), is reported instead of the rate that was wished for.

    Args:
        scores: (n,) scores of held-out normal images.
        rule: `quantile`, `mean_sigma` (mean + n_sigma * standard deviation) or `max`.
        false_alarm_rate: target for `quantile`, in (0, 1).
        n_sigma: for `mean_sigma`.
    """
    choice("threshold rule", rule, RULES)
    scores = np.sort(np.asarray(scores, dtype=np.float64).ravel())
    n = len(scores)
    if n < 2:
        raise InputError(f"a threshold needs at least 2 held-out normal images, got {n}")
    if not np.isfinite(scores).all():
        raise InputError("held-out scores contain NaN or infinity; the features of the model are broken")
    if not 0 < false_alarm_rate < 1:
        raise InputError(f"false_alarm_rate {false_alarm_rate} must lie strictly between 0 and 1")
    if not math.isfinite(n_sigma):
        raise InputError(f"n_sigma {n_sigma} must be a number, for example 3")
    if rule == "quantile":
        rank = min(n, math.ceil((n + 1) * (1 - false_alarm_rate) - 1e-9))
        value = scores[rank - 1]
    elif rule == "mean_sigma":
        value = scores.mean() + n_sigma * scores.std(ddof=1)
    else:
        value = scores[-1]
    implied = (np.count_nonzero(scores > value) + 1) / (n + 1)
    return Threshold(float(value), rule, n, float(implied))
