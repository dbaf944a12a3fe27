"""adlib: a small module behind the notebooks of an anomaly-detection paper companion."""

import warnings

# A dependency imports tqdm's notebook bars, which complain where ipywidgets is missing; the project uses plain bars.
warnings.filterwarnings("ignore", message="IProgress not found")

__version__ = "0.1.0"
