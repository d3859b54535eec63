"""Named arrays of a file of weights: safetensors or NumPy's .npz."""

from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import safetensors

from alite_jax.errors import CheckpointError

Arrays = dict[str, np.ndarray]

# The numbers that can be read, by their names in a header; others are no weights.
_FLOATS = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": jnp.bfloat16,
}
_CONVERSION = (
    "of what torch.save wrote, make a file with"
    " `state = torch.load('weights.pth', map_location='cpu', weights_only=True)` and"
    " `safetensors.torch.save_file(state, 'weights.safetensors')`"
)


def read_arrays(path: Path) -> tuple[Arrays, dict[str, str]]:
    """Reads a file of weights; nothing in it is executed.

    BatchNorm's `num_batches_tracked`, which PyTorch counts for itself, is left out.

    Args:
        path: a `.safetensors` or `.npz`, of float64, float32, float16 or (the former)
            bfloat16.

    Returns:
        The arrays by name, as float32, and the strings in the file's header, which an
        `.npz` has none of.

    Raises:
        CheckpointError: the file is not there, is no such file or is damaged, or an
            array holds other numbers.
    """
    read = _READERS.get(path.suffix)
    if read is None:
        raise CheckpointError(
            f"{path} is no .safetensors or .npz file of weights; {_CONVERSION}"
        )
    try:
        stored, metadata = read(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    # Damaged files are told apart by no common error of NumPy, zipfile and zlib.
    except Exception as error:
        raise CheckpointError(
            f"{path} is damaged or no {path.suffix} file ({error}); {_CONVERSION}"
        ) from error
    stored = {
        name: array
        for name, array in stored.items()
        if not name.endswith("num_batches_tracked")
    }
    others = sorted(
        name
        for name, array in stored.items()
        if not jnp.issubdtype(array.dtype, jnp.floating)
    )
    if others:
        raise CheckpointError(
            f"{path}: {', '.join(others)} must hold floating-point numbers of 16, 32 or"
            " 64 bits; save the weights as float32"
        )
    with np.errstate(over="ignore"):  # What becomes infinite is for the reader to find.
        arrays = {name: array.astype(np.float32) for name, array in stored.items()}
    return arrays, metadata


def _read_safetensors(path: Path) -> tuple[Arrays, dict[str, str]]:
    content = path.read_bytes()
    with safetensors.safe_open(path, framework="np") as file:
        metadata = file.metadata() or {}
    arrays = {}
    for name, stored in safetensors.deserialize(content):
        dtype = _FLOATS.get(stored["dtype"])
        if dtype is None:
            arrays[name] = np.frombuffer(stored["data"], np.uint8)
        else:
            arrays[name] = np.frombuffer(stored["data"], dtype).reshape(stored["shape"])
    return arrays, metadata


def _read_npz(path: Path) -> tuple[Arrays, dict[str, str]]:
    # NumPy leaves a file open that it cannot read.
    with path.open("rb") as content, np.load(content, allow_pickle=False) as file:
        # Of what is no array, NumPy gives the bytes.
        return {name: np.asarray(file[name]) for name in file.files}, {}


_READERS: dict[str, Callable[[Path], tuple[Arrays, dict[str, str]]]] = {
    ".safetensors": _read_safetensors,
    ".npz": _read_npz,
}
