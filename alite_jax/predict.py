"""Classifies images with an exported network.

    python -m alite_jax.predict MODEL PATH... [--runtime=jax|onnx|tflite] [--json]

MODEL is a folder that `--job=export` wrote. A PATH is an image file, a folder, in which
image files are looked for at any depth, or - for a list of paths on standard input, one
a line. Prints the likeliest classes of each image; of what cannot be read, a sentence
instead, on standard error. Exit status: 0 done, 2 something could not be read; the
other images were classified.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np

from alite_jax.compiled_programs import keep_compiled_programs
from alite_jax.data.folder_layout import find_images
from alite_jax.data.images import decoding_threads
from alite_jax.deploy.artefact import Artefact, load
from alite_jax.deploy.runtimes import RUNTIMES
from alite_jax.errors import AliteError, DataError
from alite_jax.paths import printable, user_path

# As shells have it of a process that nobody listens to.
_BROKEN_PIPE, _INTERRUPTED = 141, 130


def main(
    arguments: Sequence[str] | None = None,
    program: str = "python -m alite_jax.predict",
) -> int:
    """Classifies images with an exported network.

    Args:
        arguments: the command line, by default the process's.
        program: what stands before them, for the help.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(
        prog=program,
        description="Classifies images with an exported network.",
    )
    parser.add_argument("model", help="folder that --job=export wrote")
    parser.add_argument(
        "paths",
        nargs="+",
        help="image files, folders of them, or - for a list on standard input",
    )
    parser.add_argument("--top", type=int, default=3, help="classes to print")
    parser.add_argument("--batch", type=int, default=64, help="images at a time")
    parser.add_argument(
        "--runtime", choices=list(RUNTIMES), default="jax", help="what runs the network"
    )
    parser.add_argument("--json", action="store_true", help="print an object a line")
    options = parser.parse_args(arguments)
    for name in ("top", "batch"):
        if (value := getattr(options, name)) < 1:
            return _complain(f"--{name}={value}, but at least 1 is needed")
    try:
        artefact = load(options.model, options.runtime)
        if options.runtime == "jax":  # Nothing is compiled so far.
            keep_compiled_programs()
        return _classify(artefact, options)
    except AliteError as error:
        return _complain(error)
    except BrokenPipeError:
        # What is still to be written when Python ends goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    except KeyboardInterrupt:
        return _INTERRUPTED


def _classify(artefact: Artefact, options: argparse.Namespace) -> int:
    """Prints the classes of all images, which are read and let go batch by batch."""
    status, size = 0, 0

    def read(found: str | AliteError) -> np.ndarray | AliteError:
        if isinstance(found, AliteError):
            return found
        try:
            return artefact.read_image(found)
        except AliteError as error:
            return error

    files = _files(options.paths)
    with decoding_threads() as threads:
        while batch := list(islice(files, options.batch)):
            images, paths = [], []
            for path, image in zip(batch, threads.map(read, batch), strict=True):
                if isinstance(image, AliteError):
                    status = _complain(image)
                else:
                    images.append(image)
                    paths.append(str(path))
            # A runtime compiles for a number of images: for one of them, of few that
            # there are, and no image of the rest is looked at.
            size = size or min(options.batch, 1 << (len(batch) - 1).bit_length())
            if images:
                images += [np.zeros_like(images[0])] * (size - len(images))
                found = artefact.classify(np.stack(images), options.top)
                for path, classes in zip(paths, found, strict=False):
                    print(_line(path, classes, options.json))
                sys.stdout.flush()
    return status


def _line(path: str, classes: list[tuple[str, float]], as_json: bool) -> str:
    if as_json:
        pairs = [{"name": name, "probability": p} for name, p in classes]
        return json.dumps({"path": path, "classes": pairs})
    odds = ", ".join(f"{name} {100 * p:.1f} %" for name, p in classes)
    return printable(f"{path}: {odds}")


def _files(paths: Sequence[str]) -> Iterator[str | AliteError]:
    """The image files that paths stand for, and errors where there are none."""
    for path in paths:
        if path == "-":
            for line in sys.stdin.buffer:
                if listed := os.fsdecode(line.rstrip(b"\r\n")):
                    yield from _below(listed)
        else:
            yield from _below(path)


def _below(path: str) -> Iterator[str | AliteError]:
    try:
        place = user_path(path)
        if not place.is_dir():
            yield path
            return
        found = sorted(map(str, find_images(place)))
    except AliteError as error:
        yield error
    except OSError as error:
        yield DataError(f"{path} cannot be read ({error.strerror})")
    else:
        yield from found
        if not found:
            yield DataError(f"{path} is a folder without image files")


def _complain(error: object) -> int:
    print(printable(f"error: {error}"), file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
