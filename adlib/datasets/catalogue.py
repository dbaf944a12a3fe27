"""The data sets by name."""

DATASETS = {}
