"""Converts data sets that TFDS prepared as tfrecord to array_record.

TFDS reads tfrecord through TensorFlow alone. Both formats hold the same serialized
examples in other frames: a tfrecord is a row of records, each its length, a checksum of
that, its bytes, and a checksum of them. The new files lie beside the old ones, as a
second format of the same data set.
"""

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from alite_jax.errors import DataError, first_line

_HEAD = struct.Struct("<QI")  # Length and its checksum, little-endian.
_CHECKSUM = struct.Struct("<I")


def read_records(path: Path) -> Iterator[bytes]:
    """Yields the records of a tfrecord file, their checksums checked.

    Raises:
        DataError: the file is missing, cut short or damaged.
    """
    try:
        with path.open("rb") as file:
            number = 0
            while head := file.read(_HEAD.size):
                yield _record(head, file, f"{path} is damaged at its record {number}")
                number += 1
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror}); prepare or copy that data set"
            " again"
        ) from error


def _record(head: bytes, file: IO[bytes], damage: str) -> bytes:
    if len(head) == _HEAD.size:
        length, checksum = _HEAD.unpack(head)
        if _masked(head[:8]) == checksum:
            content = file.read(length)
            tail = file.read(_CHECKSUM.size)
            if len(tail) == _CHECKSUM.size and _CHECKSUM.unpack(tail) == (
                _masked(content),
            ):
                return content
    raise DataError(f"{damage}, or cut short; prepare or copy that data set again")


def _masked(content: bytes) -> int:
    # Imported here: only this one conversion needs it.
    import google_crc32c

    checksum = google_crc32c.value(content)
    rotated = (checksum >> 15 | checksum << 17) & 0xFFFFFFFF
    return (rotated + 0xA282EAD8) & 0xFFFFFFFF


def convert(folder: Path, builder: Any) -> None:
    """Writes the array_record files of a data set beside its tfrecord files, once.

    Args:
        folder: of the prepared data set.
        builder: TFDS's; it reads the new files from then on.

    Raises:
        DataError: the files are in another format, damaged, or cannot be written.
    """
    from tensorflow_datasets.core import file_adapters

    kind = builder.info.file_format
    if kind.value != "tfrecord":
        raise DataError(
            f"the data set in {folder} is stored as {kind.value}, but only array_record"
            " and tfrecord are read; set data.data_dir to another folder and prepare it"
            " there"
        )
    wanted = file_adapters.FileFormat.ARRAY_RECORD
    writer = file_adapters.ADAPTER_FOR_FORMAT[wanted]
    files = [
        Path(path) for split in builder.info.splits.values() for path in split.filepaths
    ]
    try:
        for path in tqdm(files, f"converting {builder.name}", disable=None):
            new = path.with_name(path.name.replace(".tfrecord", f".{wanted.value}"))
            if new.exists():  # Whole, since the last conversion was interrupted.
                continue
            # Several processes may convert at once.
            unfinished = new.with_name(f"{new.name}.{os.getpid()}.tmp")
            try:
                writer.write_examples(unfinished, enumerate(read_records(path)))
                unfinished.replace(new)
            finally:
                unfinished.unlink(missing_ok=True)
        builder.info.add_alternative_file_format(wanted)
        builder.info.write_to_directory(folder, all_metadata=False)
    except DataError:
        raise
    except Exception as error:  # array_record has errors of its own.
        raise DataError(
            f"the tfrecord files in {folder} cannot be converted to array_record there"
            f" ({first_line(error)}); copy the data set to a folder that can be written"
            " and set data.data_dir to where it is then"
        ) from error
