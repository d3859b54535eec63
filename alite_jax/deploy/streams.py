"""Byte streams, entropy-coded by zlib, that cannot grow when they are read.

Only Huffman coding is used, without zlib's search for repetitions: masks and weights
have none to speak of, and no byte can then stand for more than eight.
"""

import zlib

from alite_jax.errors import PackedFileError

# A Huffman code has at least one bit for a byte.
_GROWTH = 8
# What a stream may take besides: tables of codes, ends of blocks.
_OVERHEAD = 64


def encode(data: bytes) -> bytes:
    """Codes a stream; an empty one stays empty."""
    if not data:
        return b""
    coder = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_HUFFMAN_ONLY)
    return coder.compress(data) + coder.flush()


def largest(coded_size: int) -> int:
    """The most bytes that a coded stream of this many bytes can stand for."""
    return _GROWTH * coded_size + _OVERHEAD


def decode(coded: bytes, size: int, name: str) -> bytes:
    """Reads what `encode` wrote.

    Args:
        coded: the stream.
        size: bytes that it must have.
        name: of the stream, for the error.

    Raises:
        PackedFileError: it is damaged, or not of this size; nothing larger than `size`
            or `largest(len(coded))` is allocated.
    """
    if size > largest(len(coded)):
        raise PackedFileError(
            f"its {name} would take {size} bytes, which {len(coded)} cannot stand for"
        )
    if not coded and not size:
        return b""
    coder = zlib.decompressobj(-15)
    try:
        data = coder.decompress(coded, size + 1)
    except zlib.error as error:
        raise PackedFileError(f"its {name} cannot be decoded ({error})") from error
    if len(data) != size or not coder.eof or coder.unused_data:
        raise PackedFileError(f"its {name} do not have the {size} bytes that they need")
    return data
