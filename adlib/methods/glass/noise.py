"""How long GLASS's noise is: in units of the data, where the paper has a number for its own network's features.

The paper's noise has length 0.59, its anomalies keep a distance of 0.5 to 1 from normal. Beside features whose normal
cells lie 4 to 6 apart that is nothing: what is called anomalous cannot be told from normal, and the global stream
teaches nothing. `noise: auto` measures the distance between normal cells and multiplies noise, radius and step alike.
How many such distances are right differs: more noise makes better maps, less makes better image scores of objects. So
the heads take the levels in turn, and their mean is scored with: it comes near the better level, whichever that is.
"""

import numpy as np

from adlib.images.neighbours import NearestNeighbours

PAPER_NOISE, PAPER_WIDTH = 0.015, 1536  # standard deviation of the noise, and the width that it was chosen for
PAPER_LENGTH = PAPER_NOISE * PAPER_WIDTH**0.5  # of the noise
LEVELS = (0.12, 0.6)  # lengths of the noise, in distances between normal cells, that the heads take in turn
QUERIES, ROWS = 1000, 20000  # cells whose neighbours are looked for, and among which


def cell_distance(features: np.ndarray, seed: int = 0) -> float:
    """Median distance of a normal cell to the nearest one of other images; of one image alone, of its other half.

    Args:
        features: (n, L, D), the cells of n normal images.
    """
    rows = features.reshape(-1, features.shape[-1])
    half, rng = len(features) // 2 * len(features[0]) or len(rows) // 2, np.random.default_rng(seed)
    own, others = (
        part[rng.permutation(len(part))[:number]] for part, number in ((rows[:half], QUERIES), (rows[half:], ROWS))
    )
    squared, _ = NearestNeighbours().fit(others).query(own)
    return float(np.median(np.sqrt(squared)))


def units(features: np.ndarray, n_heads: int, seed: int = 0) -> tuple[float, ...]:
    """What each head multiplies the paper's lengths by; 1 where all cells are alike."""
    distance = cell_distance(features, seed)
    return tuple(LEVELS[i % len(LEVELS)] * distance / PAPER_LENGTH or 1.0 for i in range(n_heads))
