"""Classifies image files with an exported network.

    python -m alite_jax.predict ARTEFACT IMAGE...

ARTEFACT is a folder that `--job=export` wrote. Prints the likeliest classes of each
image. Exit status: 0 done, 2 a file is missing or damaged.
"""

import argparse
import sys
from collections.abc import Sequence

import numpy as np

from alite_jax.deploy.artefact import load
from alite_jax.errors import AliteError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status.

    Args:
        arguments: instead of those of the process.
    """
    parser = argparse.ArgumentParser(
        prog="python -m alite_jax.predict",
        description="Classifies image files with an exported network.",
    )
    parser.add_argument("artefact", help="folder that --job=export wrote")
    parser.add_argument("images", nargs="+", help="image files")
    parser.add_argument("--top", type=int, default=3, help="classes to print")
    options = parser.parse_args(arguments)
    try:
        artefact = load(options.artefact)
        images = np.stack([artefact.read_image(path) for path in options.images])
    except AliteError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    found = artefact.classify(images, options.top)
    for path, classes in zip(options.images, found, strict=True):
        print(f"{path}: " + ", ".join(f"{name} {100 * p:.1f} %" for name, p in classes))
    return 0


if __name__ == "__main__":
    sys.exit(main())
