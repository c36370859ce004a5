"""What a request costs, estimated from its fields before anything is computed.

The unit is one image by semantic delivery, of the profile's size and with the model's own steps. The
estimates are coarse on purpose: they keep a key from asking for much more work than its rate of requests
means.
"""

from __future__ import annotations

import math

from dekag.api.limits import MAX_PICTURE_PIXELS
from dekag.api.schemas import ImagesRequest, PictureRequest, parse_size
from dekag.pictures import Tiling, announced_size

CONVENTIONAL = 4.0
"""Of an image by conventional delivery: the cloud draws it, and its file is coded with LDPC."""
SLOW_CHANNEL, SLOW_DB = 2.0, 6.0
"""Factor of a conventional delivery below that SNR, dB, where a file takes many times the channel uses."""
MEASUREMENT = 0.25
"""Part of one unit: the latent is decoded as sent, too, to measure the received image against it."""
PREVIEW = 0.25
"""Of one preview: what the denoiser predicts is decoded, and sent as a PNG."""
COMPARISON = 4.0
"""Of a comparison with the cloud's own image, which is drawn for it."""
USUAL_STEPS = 20
"""Denoising steps of one unit."""
PICTURE_BYTES = 2**20
"""Of a picture of one's own of one unit, if its pixels do not count more."""
PUBLICATION = 5
"""Of an upload of knowledge: up to 8 MiB are parsed and tried out, and the whole store is looked through and
synchronised."""


def images_cost(request: ImagesRequest, size: int) -> int:
    """Estimated cost of a request for images, in units.

    Args:
        request: validated.
        size: side of the profile's images, pixels.
    """
    width, height = parse_size(request.size)
    image = _delivery(request.delivery, request.link.snr_db)
    image *= max(1.0, (request.steps or 0) / USUAL_STEPS)
    image -= _unmeasured(request)  # which takes no steps, but more in a larger image
    image += PREVIEW * (request.partial_images if request.stream else 0)
    image *= max(1.0, width * height / size**2)
    if request.consistency:
        image += COMPARISON
    return math.ceil(request.n * image)


def picture_cost(request: PictureRequest, size: int) -> int:
    """Estimated cost of a request that sends a picture, in units.

    The picture counts as many images as its tiles have pixels for, or as its file has bytes for. A picture
    whose header is not clear counts as the largest.

    Args:
        request: validated.
        size: side of the profile's images, pixels.
    """
    picture = _delivery(request.delivery, request.link.snr_db) - _unmeasured(request)
    images = _tiled_pixels(request.picture, size) / size**2
    return math.ceil(picture * max(1.0, images, len(request.picture) / PICTURE_BYTES))


def _tiled_pixels(file: bytes, size: int) -> int:
    """Pixels of all tiles of a picture; those of the largest for one that is larger or not clear."""
    width, height = announced_size(file) or (0, 0)
    if not 0 < width * height <= MAX_PICTURE_PIXELS:
        return MAX_PICTURE_PIXELS
    return math.prod(Tiling.of(width, height, size).padded)


def _unmeasured(request: ImagesRequest | PictureRequest) -> float:
    """What a request saves that leaves out the measurement: nothing unless it sends latents."""
    return 0.0 if request.measure or not request.delivery.startswith("semantic") else MEASUREMENT


def _delivery(delivery: str, snr_db: float) -> float:
    if delivery != "conventional":
        return 1.0
    return CONVENTIONAL * (SLOW_CHANNEL if snr_db < SLOW_DB else 1.0)
