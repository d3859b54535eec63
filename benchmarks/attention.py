"""Local attention alone: against two unfolds, against the convolution it replaces.

Shapes are those of the four stages of a SASA ResNet-26 on CIFAR-size images, batch 32,
kernel size 7. Before anything is timed, all peers must agree in value and gradients.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from alite_jax.ops.local_attention import local_attention
from benchmarks.peers import jax_unfold, torch_attention
from benchmarks.timing import Row, Rows, interleave, milliseconds, ratios, total

# Side of the map, heads and head_dim of each stage.
STAGES = {1: (32, 8, 8), 2: (16, 8, 16), 3: (8, 8, 32), 4: (4, 8, 64)}
BATCH = 32
KERNEL_SIZE = 7

TORCH_WINDOWS = {
    "torch_unfold": torch_attention.unfold,
    "torch_im2col": torch_attention.im2col,
}

Arrays = Sequence[jax.Array]


def make_inputs(
    side: int, heads: int, head_dim: int, kernel_size: int, batch: int
) -> tuple[Arrays, jax.Array]:
    """Random queries, keys, values and both embeddings, and a cotangent."""
    shape = (batch, side, side, heads, head_dim)
    table = (kernel_size, head_dim // 2)
    keys = jax.random.split(jax.random.key(0), 6)
    shapes = (shape, shape, shape, table, table)
    inputs = [
        jax.random.normal(key, of) * of[-1] ** -0.25
        for key, of in zip(keys, shapes, strict=False)
    ]
    return inputs, jax.random.normal(keys[5], shape)


def convolve(inputs: jax.Array, kernel: jax.Array) -> jax.Array:
    """The 3x3 convolution that attention replaces, NHWC."""
    return jax.lax.conv_general_dilated(
        inputs, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def with_gradients(function: Callable[..., jax.Array]) -> Callable[..., Any]:
    """Output and gradients, given inputs and the cotangent last."""

    def run(*arguments: jax.Array) -> Any:
        *inputs, cotangent = arguments
        output, pullback = jax.vjp(function, *inputs)
        return output, pullback(cotangent)

    return run


def compiled(function: Callable[..., Any], *arguments: jax.Array) -> Any:
    """The compiled program for these arguments."""
    return jax.jit(function).lower(*arguments).compile()


def to_torch(maps: jax.Array) -> torch.Tensor:
    """`[batch, height, width, heads, head_dim]` in torch's own order."""
    maps = np.array(maps)
    if maps.ndim == 5:
        maps = np.ascontiguousarray(maps.transpose(0, 3, 4, 1, 2))
    return torch.from_numpy(maps)


class TorchPeer:
    """The eager peer on given inputs, with one of its ways to lay out windows."""

    def __init__(
        self, windows: Callable[..., torch.Tensor], inputs: Arrays, cotangent: jax.Array
    ) -> None:
        self._attend = functools.partial(
            torch_attention.local_attention, windows=windows
        )
        self._inputs = [to_torch(x).requires_grad_() for x in inputs]
        self._cotangent = to_torch(cotangent)

    def to(self, device: str, dtype: torch.dtype) -> None:
        """Has it compute somewhere, in some dtype."""
        with torch.no_grad():
            moved = [x.to(device, dtype) for x in self._inputs]
        self._inputs = [x.requires_grad_() for x in moved]
        self._cotangent = self._cotangent.to(device, dtype)

    def forward(self) -> torch.Tensor:
        """The output, without what a backward pass would need."""
        with torch.no_grad():
            return self._attend(*self._inputs)

    def both(self) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Output and gradients."""
        output = self._attend(*self._inputs)
        return output, torch.autograd.grad(output, self._inputs, self._cotangent)


def check_agreement(side: int, heads: int, head_dim: int) -> None:
    """Asserts that all peers give the same output and gradients."""
    inputs, cotangent = make_inputs(side, heads, head_dim, KERNEL_SIZE, batch=2)
    ours = with_gradients(functools.partial(local_attention, kernel_size=KERNEL_SIZE))
    found = jax.tree.leaves(jax.jit(ours)(*inputs, cotangent))
    unfold = jax.jit(with_gradients(jax_unfold.local_attention))(*inputs, cotangent)
    eager = []
    for windows in TORCH_WINDOWS.values():
        output, gradients = TorchPeer(windows, inputs, cotangent).both()
        arrays = [x.detach().numpy() for x in (output, *gradients)]
        eager.append([x.transpose(0, 3, 4, 1, 2) if x.ndim == 5 else x for x in arrays])
    for other in (jax.tree.leaves(unfold), *eager):
        for one, two in zip(found, other, strict=True):
            scale = max(1.0, float(jnp.max(jnp.abs(one))))
            np.testing.assert_allclose(one / scale, two / scale, atol=1e-5)


def compare(rounds: int) -> Rows:
    """All rows of the four stages."""
    rows: Rows = {}
    times: dict[str, list[list[float]]] = {}
    ours = functools.partial(local_attention, kernel_size=KERNEL_SIZE)
    for stage, (side, heads, head_dim) in STAGES.items():
        check_agreement(side, heads, head_dim)
        inputs, cotangent = make_inputs(side, heads, head_dim, KERNEL_SIZE, BATCH)
        channels = heads * head_dim
        images = inputs[0].reshape(BATCH, side, side, channels)
        kernel = jnp.ones((3, 3, channels, channels)) / channels
        eager = {
            name: TorchPeer(windows, inputs, cotangent)
            for name, windows in TORCH_WINDOWS.items()
        }
        arguments = {
            "ours": (ours, inputs, cotangent),
            "jax_unfold": (jax_unfold.local_attention, inputs, cotangent),
            "conv": (convolve, (images, kernel), cotangent.reshape(images.shape)),
        }
        where = f"{side}x{side}, {heads} heads of {head_dim}, batch {BATCH}"
        memory = {}
        for mode in ("forward", "both"):
            calls: dict[str, Callable[[], Any]] = {}
            for name, (function, given, tangent) in arguments.items():
                given = tuple(given)
                if mode == "both":
                    function, given = with_gradients(function), (*given, tangent)
                program = compiled(function, *given)
                memory[name] = program.memory_analysis().temp_size_in_bytes / 2**20
                calls[name] = functools.partial(program, *given)
            for name, peer in eager.items():
                calls[name] = peer.forward if mode == "forward" else peer.both
            for name, found in interleave(calls, rounds).items():
                rows[f"stage{stage}_{mode}_{name}"] = milliseconds(
                    found, f"{where}, {_MODES[mode]}, {_PEERS[name]}"
                )
                times.setdefault(f"{mode}_{name}", []).append(found)
        for name in arguments:
            detail = f"temporary memory, {where}, {_MODES['both']}, {_PEERS[name]}"
            rows[f"stage{stage}_memory_{name}"] = Row.one(memory[name], "MiB", detail)
        if stage == 1:
            ratio = memory["ours"] / memory["jax_unfold"]
            rows["attention_stage1_memory_vs_jax_unfold"] = Row.one(
                ratio, "x", f"temporary memory of ours / unfold, {where}"
            )
    sums = {name: total(of_stages) for name, of_stages in times.items()}
    for mode, suffix in (("both", ""), ("forward", "_forward")):
        for name in ("jax_unfold", *TORCH_WINDOWS, "conv"):
            rows[f"attention_vs_{name}{suffix}"] = Row.of(
                ratios(sums[f"{mode}_{name}"], sums[f"{mode}_ours"]),
                "x",
                f"time of {_PEERS[name]} / ours, sum of four stages, {_MODES[mode]}",
            )
    return rows


_MODES = {"forward": "forward", "both": "forward and backward"}
_PEERS = {
    "ours": "this project",
    "jax_unfold": "unfold in JAX",
    "torch_unfold": "unfold (a view) in eager PyTorch",
    "torch_im2col": "F.unfold (copies) in eager PyTorch",
    "conv": "3x3 convolution in XLA",
}


def methods(rounds: int) -> Rows:
    """Each method of `local_attention` on the maps between which `auto` chooses."""
    rows: Rows = {}
    for kernel_size, side, head_dim in METHOD_CASES:
        inputs, cotangent = make_inputs(side, 8, head_dim, kernel_size, batch=16)
        calls = {}
        for method in ("rows", "blocked", "all_pairs"):
            function = functools.partial(
                local_attention, kernel_size=kernel_size, method=method
            )
            program = compiled(with_gradients(function), *inputs, cotangent)
            calls[method] = functools.partial(program, *inputs, cotangent)
        for method, found in interleave(calls, rounds).items():
            rows[f"method_window{kernel_size}_{side}x{side}_{method}"] = milliseconds(
                found, f"8 heads of {head_dim}, batch 16, {_MODES['both']}"
            )
    return rows


# Kernel size, side of the map, head_dim.
METHOD_CASES = (
    *((3, 8, 32), (3, 16, 16)),
    *((5, 8, 32), (5, 12, 16), (5, 16, 16)),
    *((7, 8, 32), (7, 10, 16), (7, 12, 16), (7, 16, 16)),
    *((11, 8, 32), (11, 14, 16), (11, 16, 16)),
)


def growth(rounds: int) -> Rows:
    """How the time grows with batch, side of the map and kernel size."""
    base = {"batch": 8, "side": 32, "kernel_size": KERNEL_SIZE}
    cases = {
        "base": {},
        "batch_16": {"batch": 16},
        "batch_32": {"batch": 32},
        "side_64": {"side": 64},
        "side_128": {"side": 128},
        "kernel_3": {"kernel_size": 3},
        "kernel_5": {"kernel_size": 5},
        "kernel_11": {"kernel_size": 11},
    }
    calls = {}
    for name, change in cases.items():
        setting = base | change
        inputs, cotangent = make_inputs(heads=8, head_dim=8, **setting)
        function = with_gradients(
            functools.partial(local_attention, kernel_size=setting["kernel_size"])
        )
        program = compiled(function, *inputs, cotangent)
        calls[name] = functools.partial(program, *inputs, cotangent)
    times = interleave(calls, rounds)
    what = "8 heads of 8, forward and backward"
    rows = {
        f"attention_growth_{name}": Row.of(
            ratios(found, times["base"]), "x", f"time / that of {base}, {what}"
        )
        for name, found in times.items()
        if name != "base"
    }
    steps = [
        ratios(times["side_64"], times["base"]),
        ratios(times["side_128"], times["side_64"]),
    ]
    rows["attention_growth_double_side"] = Row.of(
        max(steps, key=max), "x", f"the worse of sides 32 to 64 and 64 to 128, {what}"
    )
    rows["attention_growth_kernel_11_over_7"] = Row.of(
        ratios(times["kernel_11"], times["base"]), "x", f"32x32, batch 8, {what}"
    )
    return rows
