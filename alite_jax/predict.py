"""Classifies image files with an exported network.

    python -m alite_jax.predict ARTEFACT IMAGE...

ARTEFACT is a folder that `--job=export` wrote. Prints the likeliest classes of each
image; of a file that cannot be read, a sentence instead, on standard error. Exit
status: 0 done, 2 something could not be read; the other images were classified.
"""

import argparse
import sys
from collections.abc import Sequence

import numpy as np

from alite_jax.deploy.artefact import load
from alite_jax.errors import AliteError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line, by default the process's, and returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m alite_jax.predict",
        description="Classifies image files with an exported network.",
    )
    parser.add_argument("artefact", help="folder that --job=export wrote")
    parser.add_argument("images", nargs="+", help="image files")
    parser.add_argument("--top", type=int, default=3, help="classes to print")
    options = parser.parse_args(arguments)
    if options.top < 1:
        return _complain(f"--top={options.top}, but at least 1 class can be printed")
    try:
        artefact = load(options.artefact)
    except AliteError as error:
        return _complain(error)
    status, paths, images = 0, [], []
    for path in options.images:
        try:
            images.append(artefact.read_image(path))
            paths.append(path)
        except AliteError as error:
            status = _complain(error)
    if images:
        found = artefact.classify(np.stack(images), options.top)
        for path, classes in zip(paths, found, strict=True):
            odds = ", ".join(f"{name} {100 * p:.1f} %" for name, p in classes)
            print(f"{path}: {odds}")
    return status


def _complain(error: object) -> int:
    print(f"error: {error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
