"""Byte streams, compressed by zlib, that cannot grow when they are read.

Only Huffman coding is used, without zlib's search for repetitions: masks and weights
have none to speak of, and no byte can then stand for more than eight.
"""

import zlib

from alite_jax.errors import PackedFileError


def deflate(data: bytes, strategy: int = zlib.Z_HUFFMAN_ONLY) -> bytes:
    """Compresses a stream; an empty one stays empty."""
    if not data:
        return b""
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15, 9, strategy)
    return compressor.compress(data) + compressor.flush()


def inflate(compressed: bytes, most: int) -> bytes:
    """Decompresses a stream that is not empty.

    Raises:
        ValueError: it is damaged, or would take more than `most` bytes.
    """
    decompressor = zlib.decompressobj(-15)
    try:
        data = decompressor.decompress(compressed, most)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if not decompressor.eof or decompressor.unused_data:
        raise ValueError("it is cut off or too long")
    return data


def largest(compressed_size: int) -> int:
    """The most bytes that a stream of this many compressed ones can stand for."""
    # A Huffman code has at least one bit for a byte; the rest is some slack.
    return 8 * compressed_size + 64


def read_stream(compressed: bytes, size: int, name: str) -> bytes:
    """Reads a stream of `size` bytes that `deflate` wrote; errors give its `name`.

    Raises:
        PackedFileError: it is damaged, or not of this size; nothing larger than `size`
            or `largest(len(compressed))` is allocated.
    """
    if size > largest(len(compressed)):
        raise PackedFileError(
            f"its {name} would take {size} bytes, which {len(compressed)} cannot stand"
            " for"
        )
    try:
        data = inflate(compressed, size + 1) if compressed else b""
        if len(data) != size:
            raise ValueError(f"it has {len(data)}")
    except ValueError as error:
        raise PackedFileError(
            f"its {name} do not have the {size} bytes that they need ({error})"
        ) from error
    return data
