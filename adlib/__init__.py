"""adlib: a small module behind the notebooks of an anomaly-detection paper companion."""

__version__ = "0.1.0"
