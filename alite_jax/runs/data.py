"""The data of a run: described, read, and measured once."""

import sys
from dataclasses import replace
from pathlib import Path

from ml_collections import ConfigDict

from alite_jax.data.folder_copy import change_of
from alite_jax.data.sources import Data, class_names, describe, load_split, measured
from alite_jax.runs.folder import read_spec
from alite_jax.runs.processes import first_alone, is_first


def load_data(config: ConfigDict, folder: Path | None = None) -> Data:
    """Reads the training and evaluation split, into memory if they fit.

    Args:
        config: the whole configuration.
        folder: of a run, whose own data set it is, even if a folder of images has
            changed since.

    Raises:
        DataError: the data set is missing or damaged; says what to run.
    """
    spec = read_spec(folder) if folder else None
    if spec and config.data.folder and is_first():
        change = change_of(config.data, spec.prepared)
        if change:
            print(
                f"note: {change}; the run keeps to the copy {spec.prepared} that it"
                " was begun with",
                file=sys.stderr,
            )
    # It may have to be made.
    spec = spec or first_alone(describe)(config.data)
    read = first_alone(load_split)
    train, evaluation = (read(config.data, part, spec) for part in ("train", "eval"))
    spec = replace(measured(spec, train), class_names=class_names(config.data, spec))
    return Data(spec, train, evaluation)
