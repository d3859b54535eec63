"""What an exported network says of itself, to people."""

from collections.abc import Mapping
from typing import Any

from alite_jax.analysis.table import markdown

_LOAD = """```python
import numpy as np
from alite_jax.deploy.artefact import load

network = load("FOLDER")
images = np.stack([network.read_image("image.png")])
network.classify(images)
```"""


def card_text(card: Mapping[str, Any]) -> str:
    """Returns `card.md`.

    Args:
        card: the content of `card.json`.
    """
    teacher, sizes, times = card["teacher"], card["bytes"], card["milliseconds"]
    weights = sum(size for name, size in sizes.items() if name != "program")
    rows = [
        ["", "this network", "its teacher", "teacher / this"],
        [
            "accuracy",
            f"{100 * card['accuracy']:.2f} %",
            f"{100 * teacher['accuracy']:.2f} %",
            f"{100 * (card['accuracy'] - teacher['accuracy']):+.2f} points",
        ],
        ["bytes of the weights", *_compared(weights, teacher["bytes"])],
        *(
            [label, *_compared(card[name], teacher[name])]
            for label, name in (
                ("parameters that are not zero", "nonzero_parameters"),
                ("MACs", "macs"),
                ("MACs of weights that are not zero", "nonzero_macs"),
            )
        ),
        *(
            [
                f"milliseconds, batch of {batch}",
                f"{times['student'][batch]:.2f}",
                f"{times['teacher'][batch]:.2f}",
                f"{times['teacher'][batch] / times['student'][batch]:.2f}x",
            ]
            for batch in times["student"]
        ),
    ]
    parts = [["part", "bytes"]] + [[name, f"{size:,}"] for name, size in sizes.items()]
    height, width, channels = card["image_shape"]
    agreement, environment = card["agreement"], card["environment"]
    allowed = agreement["allowed"]
    return "\n".join(
        [
            f"# {card['name']} for {card['dataset']}",
            "",
            f"Distilled from a {teacher['name']} while it was pruned to"
            f" {100 * card['density']:.1f} % of its weights. Takes {width}x{height}"
            f" images of {channels} channel{'s' * (channels > 1)} and knows"
            f" {len(card['classes'])} classes. Weights are stored as {card['values']};"
            f" before that its accuracy was"
            f" {100 * card['accuracy_before_packing']:.2f} %.",
            "",
            "Images are uint8, 0 for black and 255 for white. `read_image` turns an"
            " image file upright as its EXIF orientation says, puts black behind what"
            " is transparent, takes the middle square and makes each pixel the rounded"
            " average of the area that it covers; another runtime must do the same.",
            "",
            *markdown(rows),
            "",
            f"Accuracy is that on the {agreement['images']:,} evaluation images. The"
            " teacher's bytes are those of its float32 weights and statistics. Both"
            f" were exported in the same way and timed on {environment['device']} with"
            f" jax {environment['jax']}, {environment['date']}. The exported program"
            f" names the class that the network names for"
            f" {100 * agreement['same_classes']:.2f} % of the images; logits are at"
            f" most {agreement['logits_error']:.1g} apart, where"
            f" {allowed['logits_error'] * agreement['largest_logit']:.1g} is allowed:"
            f" {allowed['logits_error']:.1g} of the largest, for {allowed['products']}"
            f" products whose factors have {allowed['bits']} significant bits. By"
            " themselves, in float32 at the highest precision, compaction changes"
            f" logits by at most 1e-5 of the largest and packing by"
            f" {card['packing_error']:.1g}.",
            "",
            *markdown(parts),
            "",
            *_lite(card.get("tflite")),
            _LOAD,
            "",
        ]
    )


def _lite(found: Mapping[str, Any] | None) -> list[str]:
    if found is None:
        return []
    agreement = found["agreement"]
    return [
        f"`model.tflite` ({found['bytes']:,} bytes, weights as float32) takes"
        f" {found['milliseconds']:.2f} milliseconds for one image on one thread of"
        f" LiteRT and names the same class for {100 * agreement['same_classes']:.2f} %"
        " of the images.",
        "",
    ]


def _compared(ours: float, theirs: float) -> list[str]:
    return [f"{ours:,}", f"{theirs:,}", f"{theirs / ours:.1f}x"]
