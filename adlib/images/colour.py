"""CIELAB and structural similarity in torch, differentiable; scikit-image is what the tests compare with.

Kornia has both, but brings a compiled image library of its own; these are two formulas.
"""

import torch
import torch.nn.functional as F

from adlib.errors import InputError

# Linear sRGB -> CIE XYZ (IEC 61966-2-1), and the white of D65 for the 2 degree observer.
RGB_TO_XYZ = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
D65 = (0.95047, 1.0, 1.08883)


def rgb_to_lab(images: torch.Tensor) -> torch.Tensor:
    """Turn sRGB images (B, 3, H, W) in [0, 1] into CIELAB (D65): L* in 0 ... 100, a* and b* about -110 ... 110.

    Both roots have a straight piece near zero, so the gradient is finite at black.
    """
    _check(images)
    images = images.float()  # half precision would lose a whole unit of L*
    linear = torch.where(images > 0.04045, ((images.clamp_min(0.04045) + 0.055) / 1.055) ** 2.4, images / 12.92)
    xyz = torch.einsum("dc,bchw->bdhw", linear.new_tensor(RGB_TO_XYZ), linear)
    xyz = xyz / linear.new_tensor(D65)[:, None, None]
    root = torch.where(xyz > 0.008856, xyz.clamp_min(0.008856) ** (1 / 3), 7.787 * xyz + 16 / 116)
    x, y, z = root.unbind(dim=1)  # (B, H, W) each
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=1)


def colour_difference(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """CIE76 distance in CIELAB of sRGB images (B, 3, H, W) -> (B, H, W); 100 is black against white."""
    squared = (rgb_to_lab(a) - rgb_to_lab(b)).square().sum(dim=1)
    return (squared + 1e-8).sqrt() - 1e-4  # the slope of a plain root is infinite where both agree


def ssim_map(a: torch.Tensor, b: torch.Tensor, window: int = 11, sigma: float = 1.5, border="reflect") -> torch.Tensor:
    """Structural similarity at every pixel of images (B, C, H, W) in [0, 1] -> (B, H, W), the mean over channels.

    Wang et al. (2004): Gaussian window, K1 = 0.01, K2 = 0.03; padded, so that the map keeps the size of the image.

    Args:
        window: side of the window, pixels, odd.
        sigma: standard deviation of the Gaussian, pixels.
        border: what is beyond the edges: `reflect`, or `constant` (zeros).

    Returns:
        values of at most 1, which equal images reach everywhere.
    """
    if a.shape != b.shape or a.ndim != 4:
        raise InputError(f"two images (B, C, H, W) of one shape are compared, got {tuple(a.shape)}, {tuple(b.shape)}")
    if window % 2 == 0 or window // 2 >= min(a.shape[-2:]):
        raise InputError(f"window {window} must be odd and less than twice the image, which is {tuple(a.shape[-2:])}")
    a, b = a.float(), b.float()
    channels, radius = a.shape[1], window // 2
    steps = torch.arange(-radius, radius + 1, dtype=a.dtype, device=a.device)
    kernel = torch.exp(-0.5 * (steps / sigma) ** 2)
    kernel = kernel / kernel.sum()

    # All five moments in one pass: one window over columns, one over rows.
    moments = torch.cat([a, b, a * a, b * b, a * b], dim=1)  # (B, 5 C, H, W)
    moments = F.pad(moments, (radius,) * 4, mode=border)
    for shape in ((1, 1, 1, window), (1, 1, window, 1)):
        moments = F.conv2d(moments, kernel.view(shape).expand(5 * channels, 1, *shape[2:]), groups=5 * channels)
    mean_a, mean_b, aa, bb, ab = moments.split(channels, dim=1)
    var_a, var_b, cov = aa - mean_a**2, bb - mean_b**2, ab - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    similarity = (2 * mean_a * mean_b + c1) * (2 * cov + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    return similarity.mean(dim=1)


def _check(images: torch.Tensor) -> None:
    if images.ndim != 4 or images.shape[1] != 3:
        raise InputError(f"images of shape {tuple(images.shape)} given; expected (batch, 3, height, width)")
