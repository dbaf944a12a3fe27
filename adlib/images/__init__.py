"""From a file to features: files, backbones, patches, nearest neighbours. What reads and resizes is named here."""

from adlib.images.files import (
    IMAGE_SUFFIXES,
    RESIZE_MODES,
    RESULTS_MARK,
    Batch,
    Geometry,
    Resize,
    aspect_size,
    batches,
    bit_depth_of,
    image_shape,
    list_images,
    read_image,
    read_mask,
    resample,
    stored_values,
    to_tensor,
)
