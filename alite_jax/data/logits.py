"""Tables of a teacher's logits for fixed views of the training images."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors

from alite_jax.errors import DataError

_TYPES = {"F16": np.float16, "F32": np.float32}  # By their names in safetensors.
_FORM = (
    "'logits', float16 or float32 [views, n, classes] or [n, classes], and the text"
    " 'digest' of views.json"
)


@dataclass(frozen=True, eq=False)
class LogitsTable:
    """What a teacher says of each training image.

    Attributes:
        logits: float16 or float32 `[views, n, classes]`, perhaps not in memory.
        digest: of the images; see `alite_jax.data.views.begin_digest`.
        probabilities: whether these are what the table holds; their logarithms are
            logits.
    """

    logits: np.ndarray
    digest: str
    probabilities: bool = False

    def answered(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """A batch with `teacher_logits`, float32, for its `view` and `index`."""
        found = self.logits[batch["view"], batch["index"]].astype(np.float32)
        if self.probabilities:
            found = np.log(np.maximum(found, np.finfo(np.float32).tiny))
        return {**batch, "teacher_logits": found}


def read_table(path: Path, probabilities: bool) -> LogitsTable:
    """Opens a table; one in safetensors stays on the disk and is read row by row.

    Args:
        path: a `.safetensors` or `.npz` file with the logits, float16 or float32
            `[views, n, classes]` or, for one view, `[n, classes]`, as `logits`, and
            with the text `digest` (of safetensors, in the metadata).
        probabilities: whether it holds these.

    Raises:
        DataError: it is no such file.
    """
    read = _READERS.get(path.suffix)
    if read is None:
        raise DataError(
            f"teacher.logits is {path}, which is no .safetensors or .npz file; write"
            f" one with {_FORM}"
        )
    try:
        logits, digest = read(path)
    except OSError as error:
        raise DataError(
            f"teacher.logits is {path}, which cannot be read ({error.strerror})"
        ) from error
    # Damaged files are told apart by no common error of NumPy, zipfile and safetensors.
    except Exception as error:
        raise DataError(
            f"teacher.logits is {path}, which is damaged or no table of logits"
            f" ({error}); it must hold {_FORM}"
        ) from error
    if logits.ndim == 2:
        logits = logits[None]
    if logits.ndim != 3 or logits.dtype not in _TYPES.values():
        raise DataError(
            f"teacher.logits is {path}, whose 'logits' are {logits.dtype} and of shape"
            f" {logits.shape}; it must hold {_FORM}"
        )
    if not digest:
        raise DataError(
            f"teacher.logits is {path}, which has no 'digest', by which images are"
            " recognised; store the one in views.json with the logits"
        )
    return LogitsTable(logits, digest, probabilities)


def _read_safetensors(path: Path) -> tuple[np.ndarray, str]:
    # The latter checks the header.
    with path.open("rb") as content, safetensors.safe_open(path, "np") as file:
        digest = (file.metadata() or {}).get("digest", "")
        length = int.from_bytes(content.read(8), "little")
        entry = json.loads(content.read(length))["logits"]
    dtype = np.dtype(_TYPES[entry["dtype"]])
    start, shape = 8 + length + entry["data_offsets"][0], tuple(entry["shape"])
    return np.memmap(path, dtype, "r", start, shape), digest


def _read_npz(path: Path) -> tuple[np.ndarray, str]:
    # NumPy leaves a file open that it cannot read.
    with path.open("rb") as content, np.load(content, allow_pickle=False) as file:
        return file["logits"], str(file["digest"]) if "digest" in file else ""


_READERS: dict[str, Callable[[Path], tuple[np.ndarray, str]]] = {
    ".safetensors": _read_safetensors,
    ".npz": _read_npz,
}
