"""Compiles the attention kernels for an NVIDIA GPU, on a machine that has none.

    .venv-gpu/bin/python -m benchmarks.kernel_registers [--dtypes=bfloat16] [--limit=64]

Prints, for each kernel, the registers of a thread and the bytes that it spills into
memory for want of more. The shapes are those of the paper's student at 32x32 pixels.
The exit status is 1 if a kernel spills more bytes than the limit, since that is slow.

XLA compiles the kernels as it would in a training step, and NVIDIA's assembler counts;
`make compile-ahead` makes the environment that has both, .venv-gpu.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from functools import partial
from itertools import product
from pathlib import Path
from typing import NamedTuple

# Side of the map and channels of a head.
SHAPES = ((32, 8), (16, 16), (8, 32), (4, 64))
BATCH, HEADS, KERNEL_SIZE = 128, 8, 7
DTYPES, BORDERS = ("bfloat16", "float32"), ("zero", "mask")


class Kernel(NamedTuple):
    """What the assembler says of a kernel.

    Attributes:
        name: without `local_attention_`.
        spilled: bytes of a thread.
        registers: of a thread, which has 255.
    """

    name: str
    spilled: int
    registers: int


def main() -> None:
    """Prints a line for each kernel; exits with 1 if one spills too much."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kernel_registers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--dtypes", default=",".join(DTYPES))
    parser.add_argument("--limit", type=int, default=64, help="bytes of a thread")
    options = parser.parse_args()
    print(
        f"{'map':12}{'dtype':10}{'border':8}{'kernel':16}{'registers':>10}{'spilled':>9}"
    )
    most = 0
    with tempfile.TemporaryDirectory() as folder:
        # Read when JAX starts. What is compiled is for the described GPU, whatever
        # this machine has.
        os.environ["JAX_PLATFORMS"] = "cpu"
        os.environ["XLA_FLAGS"] = f"--xla_dump_to={folder} --xla_dump_emitter_re=.*"
        for dtype, border, (side, head_dim) in product(
            options.dtypes.split(","), BORDERS, SHAPES
        ):
            for kernel in compiled(side, head_dim, dtype, border, Path(folder)):
                shape = f"{side}x{side}, d {head_dim}"
                print(
                    f"{shape:12}{dtype:10}{border:8}{kernel.name:16}"
                    f"{kernel.registers:>10}{kernel.spilled:>9}",
                    flush=True,
                )
                most = max(most, kernel.spilled)
    sys.exit(1 if most > options.limit else 0)


def compiled(
    side: int, head_dim: int, dtype: str, border: str, folder: Path
) -> list[Kernel]:
    """Compiles attention and its gradients.

    Args:
        side: of the map.
        head_dim: channels of a head.
        dtype: of queries, keys and values.
        border: of the map.
        folder: where XLA leaves what it made.
    """
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding, PartitionSpec, use_abstract_mesh

    from alite_jax.ops.local_attention import local_attention
    from benchmarks.ahead_programs import described

    # The operator chooses kernels by what this says.
    jax.default_backend = lambda: "gpu"
    mesh = described("H100")
    placed = partial(
        jax.ShapeDtypeStruct, sharding=NamedSharding(mesh, PartitionSpec())
    )
    maps = placed((BATCH, side, side, HEADS, head_dim), jnp.dtype(dtype))
    table = placed((KERNEL_SIZE, head_dim // 2), jnp.float32)
    attend = partial(
        local_attention, kernel_size=KERNEL_SIZE, border=border, method="fused"
    )

    def run(cotangent, *inputs):
        output, pullback = jax.vjp(attend, *inputs)
        return output, pullback(cotangent)

    with use_abstract_mesh(mesh.abstract_mesh):
        jax.jit(run).lower(maps, maps, maps, maps, table, table).compile()
    found = []
    for file in sorted(folder.glob("*.ptx")):
        if "local_attention_" in file.read_text():
            found += kernels_of(assembled(file))
        file.unlink()
    assert found, "XLA has left no kernel in the folder"
    return found


def assembled(file: Path) -> str:
    """What NVIDIA's assembler says of a file."""
    import nvidia

    (tool,) = (x for path in nvidia.__path__ for x in Path(path).glob("cu*/bin/ptxas"))
    command = [tool, "--verbose", "--gpu-name=sm_90a", file, "--output-file=/dev/null"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stderr


def kernels_of(said: str) -> list[Kernel]:
    """The attention kernels in what the assembler says."""
    kernel = re.compile(
        r"Compiling entry function 'local_attention_(\w+)'.*?"
        r"(\d+) bytes spill stores.*?Used (\d+) registers",
        re.DOTALL,
    )
    return [Kernel(name, int(a), int(b)) for name, a, b in kernel.findall(said)]


if __name__ == "__main__":
    main()
