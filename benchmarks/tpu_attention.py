"""Compiles attention and its gradients for TPUs, on a machine that has none.

    .venv-tpu/bin/python -m benchmarks.tpu_attention [--targets=v5e:2x2,v5p:2x2x1]

Prints for each method the seconds of compiling, the bytes that the program accesses,
and the temporary memory that it takes on a chip. The shapes are those of the paper's
student at 32x32 pixels. Bytes are the compiler's own count; a kernel of `lanes` counts
with all its inputs and outputs, which it reads and writes once. The exit status is 1
if `lanes` accesses more than a tenth of what `blocked` does on the largest map.

`make compile-ahead TARGET=tpu` makes the environment that has the compiler.
"""

import argparse
import sys
import time
from functools import partial
from itertools import product
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec, use_abstract_mesh

from alite_jax.ops.local_attention import local_attention
from benchmarks.ahead_programs import described

# Side of the map and channels of a head.
SHAPES = ((32, 8), (16, 16), (8, 32), (4, 64))
METHODS = ("lanes", "blocked", "all_pairs")
BATCH, HEADS, KERNEL_SIZE = 128, 8, 7


class Program(NamedTuple):
    """What the compiler says of attention and its gradients.

    Attributes:
        seconds: of compiling.
        accessed: bytes read and written.
        temporary: bytes on a chip.
    """

    seconds: float
    accessed: float
    temporary: int


def main() -> None:
    """Prints a line for each program; exits with 1 if `lanes` accesses too much."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tpu_attention",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--targets", default="v5e:2x2,v5p:2x2x1")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--dtypes", default="bfloat16")
    options = parser.parse_args()
    # Elsewhere the operator runs kernels in the interpreter.
    jax.default_backend = lambda: "tpu"
    columns = "target", "map", "dtype", "method", "seconds", "GB accessed", "MiB"
    print("{:11}{:14}{:10}{:10}{:>8}{:>13}{:>8}".format(*columns))
    found = {}
    for target, shape, dtype, method in product(
        options.targets.split(","),
        SHAPES,
        options.dtypes.split(","),
        options.methods.split(","),
    ):
        program = compiled(target, *shape, dtype, method)
        found[target, shape, dtype, method] = program
        side, head_dim = shape
        print(
            f"{target:11}{f'{side}x{side}, d {head_dim}':14}{dtype:10}{method:10}"
            f"{program.seconds:8.0f}{program.accessed / 1e9:13.2f}"
            f"{program.temporary / 2**20:8.0f}",
            flush=True,
        )
    too_much = [
        place
        for (*place, method), program in found.items()
        if method == "lanes"
        and place[1] == SHAPES[0]
        and (*place, "blocked") in found
        and program.accessed > found[*place, "blocked"].accessed / 10
    ]
    sys.exit(1 if too_much else 0)


def compiled(target: str, side: int, head_dim: int, dtype: str, method: str) -> Program:
    """Compiles attention and its gradients for one chip.

    Args:
        target: chips, by generation and arrangement, such as `v5e:2x2`.
        side: of the map.
        head_dim: channels of a head.
        dtype: of queries, keys and values.
        method: of `local_attention`.
    """
    mesh = Mesh(described(target).devices.ravel()[:1], ("chip",))
    placed = partial(
        jax.ShapeDtypeStruct, sharding=NamedSharding(mesh, PartitionSpec())
    )
    maps = placed((BATCH, side, side, HEADS, head_dim), jnp.dtype(dtype))
    table = placed((KERNEL_SIZE, head_dim // 2), jnp.float32)
    attend = partial(local_attention, kernel_size=KERNEL_SIZE, method=method)

    def run(cotangent, *inputs):
        output, pullback = jax.vjp(attend, *inputs)
        return output, pullback(cotangent)

    # Kernels ask what they are compiled for.
    with use_abstract_mesh(mesh.abstract_mesh):
        lowered = jax.jit(run).lower(maps, maps, maps, maps, table, table)
    start = time.perf_counter()
    program = lowered.compile()
    return Program(
        time.perf_counter() - start,
        program.cost_analysis()["bytes accessed"],
        program.memory_analysis().temp_size_in_bytes,
    )


if __name__ == "__main__":
    main()
