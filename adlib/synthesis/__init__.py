"""Pseudo-anomalies: defects that are made, not found, with their exact masks.

    image_a, mask, info = synthesise("cutpaste", image, rng)

- `image`: uint8 or float in [0, 1], (H, W, 3) or grey (H, W). `image_a` has the same type and shape, and equals
  `image` exactly wherever `mask` is false.
- `rng`: a `numpy.random.Generator`. Every draw comes from it: the same seed gives the same bytes.
- `foreground`: mask of the product; the anomaly stays inside it. None means the whole image.
- `sources`: where foreign pixels come from, see `Sources`. None means textures and objects made on the spot.
- `info`: every parameter that was drawn, so that a figure can be made again and a sweep can be read.

Opacity is the share of the foreign material, everywhere: 1 replaces the host, 0 leaves it untouched. The papers of
DRAEM and GLASS write beta for the share of the original, so beta = 1 - opacity.

`names("image")` lists the families that work on images, `names("feature")` those that work on feature cells.
A new family is one decorated function:

    @register("dead_pixel")
    def dead_pixel(image, rng, foreground, sources, value=0.0):
        mask = np.zeros(foreground.shape, bool)
        mask[rng.integers(mask.shape[0]), rng.integers(mask.shape[1])] = True
        return np.full_like(image, value), mask, {}
"""

from adlib.synthesis import blends, cutpaste, feature, nsa, pagmfr
from adlib.synthesis.foregrounds import Rule, foreground, rule_for
from adlib.synthesis.perlin import lattice_noise, perlin_mask, pnoise2_noise
from adlib.synthesis.registry import defaults, names, register, synthesise
from adlib.synthesis.sources import Sources
from adlib.synthesis.split import SyntheticSplit
