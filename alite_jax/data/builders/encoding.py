"""Images as bytes, so that TFDS stores them as they are.

TFDS encodes an array with TensorFlow, which this project does without; it takes bytes
unchanged.
"""

import io

import numpy as np
from PIL import Image


def encode_png(image: np.ndarray) -> bytes:
    """Encodes an image as PNG, without loss.

    Args:
        image: uint8 [height, width, 1 or 3].

    Returns:
        The PNG file.
    """
    if image.shape[-1] == 1:
        image = image[..., 0]
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()
