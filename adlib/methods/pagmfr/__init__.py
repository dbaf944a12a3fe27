"""PAGMFR: adaptive pseudo-anomalies and dual-space reconstruction."""
