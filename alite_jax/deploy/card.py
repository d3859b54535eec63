"""What an exported network says of itself, to people."""

from collections.abc import Mapping
from typing import Any

from alite_jax.pages.table import (
    COMPARISON_HEAD,
    UNKNOWN,
    card_rows,
    markdown,
    worst_first,
)

_IMAGES = """\
Images are uint8, 0 for black and 255 for white. `read_image` turns an image file \
upright as its EXIF orientation says, puts black behind what is transparent, takes the \
middle {shape} and {resizes}; another runtime must do the same."""
_RESIZES = {
    "area": "makes each pixel the rounded average of the area that it covers",
    "bilinear": (
        "resizes it by an antialiased bilinear (triangle) filter, as Pillow's BILINEAR"
        " or ONNX's Resize with antialias; of a JPEG more than twice as large, that may"
        " be decoded at a half, a quarter or an eighth of its size"
    ),
}

_LOAD = """\
```python
import numpy as np
from alite_jax.deploy.artefact import load

network = load("FOLDER")
images = np.stack([network.read_image("image.png")])
network.classify(images)
```"""


def _teacher(card: Mapping[str, Any]) -> str:
    teacher = card["teacher"]
    return UNKNOWN["name"] if teacher is None else f"a {teacher['name']}"


def card_text(card: Mapping[str, Any]) -> str:
    """Returns `card.md`, which says what `card.json` holds."""
    height, width, channels = card["image_shape"]
    agreement, environment = card["agreement"], card["environment"]
    allowed = agreement["allowed"]
    worst = worst_first(card["class_accuracy"])[:5]
    lowest = ", ".join(f"{name} ({100 * accuracy:.2f} %)" for name, accuracy in worst)
    parts = [["part", "bytes"]]
    parts += [[name, f"{size:,}"] for name, size in card["bytes"].items()]
    paragraphs = [
        f"# {card['name']} for {card['dataset']}",
        f"Distilled from {_teacher(card)} while it was pruned to"
        f" {100 * card['density']:.1f} % of its weights. Takes {width}x{height} images"
        f" of {channels} channel{'s' * (channels > 1)} and knows"
        f" {len(card['classes'])} classes. Weights are stored as {card['values']};"
        f" before that its accuracy was {100 * card['accuracy_before_packing']:.2f} %.",
        _IMAGES.format(
            shape="square" if height == width else f"part of {width}:{height}",
            resizes=_RESIZES[card["resize"]],
        ),
        "\n".join(markdown([COMPARISON_HEAD, *card_rows(card)])),
        f"Accuracy is that on the {agreement['images']:,} evaluation images; it is"
        f" lowest for {lowest}. A"
        " teacher's bytes are those of its weights and statistics. It was exported in"
        " the same way, unless it is from elsewhere, and both were timed on"
        f" {environment['device']} with jax {environment['jax']},"
        f" {environment['date']}. The exported program predicts"
        " the class that the network predicts for"
        f" {100 * agreement['same_classes']:.2f} % of the images; logits are at most"
        f" {agreement['logits_error']:.1g} apart, where"
        f" {allowed['logits_error'] * agreement['largest_logit']:.1g} is allowed:"
        f" {allowed['logits_error']:.1g} of the largest, for {allowed['products']}"
        f" products whose factors have {allowed['bits']} significant bits. By"
        " themselves, in float32 at the highest precision, compaction changes logits"
        f" by at most 1e-5 of the largest and packing by {card['packing_error']:.1g}.",
        "\n".join(markdown(parts)),
    ]
    if "tflite" in card:
        lite = card["tflite"]
        paragraphs.append(
            f"`model.tflite` ({lite['bytes']:,} bytes, weights as float32) takes"
            f" {lite['milliseconds']:.2f} milliseconds for one image on one thread of"
            " LiteRT and predicts the same class for"
            f" {100 * lite['agreement']['same_classes']:.2f} % of the images."
        )
    return "\n\n".join([*paragraphs, _LOAD]) + "\n"
