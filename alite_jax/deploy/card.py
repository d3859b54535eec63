"""What an exported network says of itself, to people and to model hubs."""

import json
from collections.abc import Mapping
from typing import Any

from alite_jax.pages.table import (
    COMPARISON_HEAD,
    UNKNOWN,
    card_rows,
    markdown,
    worst_first,
)
from alite_jax.provenance import written_by

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

_FORMATS = """\
Other files, each a whole network with its weights or the weights alone, read back and \
compared with the network on all of these images. Programs were timed where they run, \
in ONNX Runtime or LiteRT, on one thread, in turns with the teacher's."""

_LOAD = """\
```python
import numpy as np
from alite_jax.deploy.artefact import load

network = load("FOLDER")  # With runtime="onnx" by model.onnx, if there is one.
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
        _metadata(card),
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
        f" lowest for {lowest}. To use it takes the bytes of the weights and of the"
        " program; the teacher's weights are float32 with its statistics. It was"
        " exported in the same way, unless it is from elsewhere, and both were timed on"
        f" {environment['device']} with jax {environment['jax']}. The exported program"
        " predicts the class that the network predicts for"
        f" {100 * agreement['same_classes']:.2f} % of the images; logits are at most"
        f" {agreement['logits_error']:.1g} apart, where"
        f" {allowed['logits_error'] * agreement['largest_logit']:.1g} is allowed:"
        f" {allowed['logits_error']:.1g} of the largest, for {allowed['products']}"
        f" products whose factors have {allowed['bits']} significant bits. By"
        " themselves, in float32 at the highest precision, compaction changes logits"
        f" by at most 1e-5 of the largest and packing by {card['packing_error']:.1g}.",
        "\n".join(markdown(parts)),
    ]
    if card["formats"]:
        paragraphs += [_FORMATS, "\n".join(markdown(_format_rows(card)))]
    written = f"Written by {written_by(environment)}."
    return "\n\n".join([*paragraphs, _LOAD, written]) + "\n"


def _format_rows(card: Mapping[str, Any]) -> list[list[str]]:
    """A line for each file, below its head: sizes and times, the teacher's beside."""
    head = ["file", "images", "accuracy", "same class", "bytes", "teacher"]
    for batch in card["milliseconds"]["student"]:
        head += [f"ms, batch of {batch}", "teacher"]
    rows = [head]
    for found in card["formats"].values():
        size, theirs = found["bytes"], found.get("teacher_bytes")
        agreement = found.get("agreement")
        same = f"{100 * agreement['same_classes']:.2f} %" if agreement else "-"
        accuracy = f"{100 * found['accuracy']:.2f} %"
        images = str(found["batch"] or "any number") if found["program"] else "-"
        row = [found["file"], images, accuracy, same]
        row += [f"{size:,}", "-" if theirs is None else f"{theirs:,}"]
        times = found.get("milliseconds", {})
        for batch in card["milliseconds"]["student"]:
            for phase in ("student", "teacher"):
                took = times.get(phase, {}).get(batch)
                row.append("-" if took is None else f"{took:.2f}")
        rows.append(row)
    return rows


def _metadata(card: Mapping[str, Any]) -> str:
    """The YAML that model hubs read at the head of a card; JSON values are YAML."""
    data = {"name": card["dataset"], "type": card["dataset"], "split": card["split"]}
    accuracy = {"type": "accuracy", "name": "accuracy", "value": card["accuracy"]}
    task = {"type": "image-classification", "name": "image classification"}
    result = {"task": task, "dataset": data, "metrics": [accuracy]}
    fields = {
        # Of the weights, which is for their owner to say.
        "license": "unknown",
        "library_name": "alite_jax",
        "pipeline_tag": task["type"],
        "tags": ["jax", "pruning", "distillation", card["name"]],
        "datasets": [card["dataset"]],
        "metrics": ["accuracy"],
        "model-index": [
            {"name": f"{card['name']} for {card['dataset']}", "results": [result]}
        ],
    }
    lines = [f"{name}: {json.dumps(value)}" for name, value in fields.items()]
    return "\n".join(["---", *lines, "---"])
