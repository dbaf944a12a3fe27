"""From scores to numbers: metrics, thresholds, and what is counted."""

from adlib.evaluation.evaluation import PIXEL_METRICS, RESOLUTIONS, Evaluation, at_threshold, evaluate
