"""On the accelerator that JAX finds: attention alone, and whole steps, in bfloat16.

    make bench-gpu

PyTorch is the peer on the same GPU, eager, its networks by autocast and in
channels_last. Sizes are the paper's: the maps of four stages at width 64 and window 7,
and steps of whole networks on 32x32 images. Programs of JAX that take microseconds are
repeated within one program, so that it is not the host that is timed.
"""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import torch

from alite_jax.ops.local_attention import local_attention
from benchmarks import attention as on_cpu
from benchmarks.peers import torch_resnet
from benchmarks.steps import CONFIG, DATASET, Step
from benchmarks.timing import Row, Rows, Times, interleave, ratios

DTYPE = jnp.bfloat16
STEPS = {  # Student and teacher of each.
    "teacher": ("resnet50", None),
    "convolution": ("resnet26", None),
    "attention": ("resnet26_attention", None),
    "joint": ("resnet26_attention", "resnet50"),
}
# With a peer in PyTorch.
_WITH_PEER = ("teacher", "joint")


def attention(rounds: int, batch: int = 128, repeats: int = 20) -> Rows:
    """Rows of the operator, forward and backward, against convolution and unfold.

    Args:
        rounds: in which all take turns.
        batch: images.
        repeats: of a program of JAX within one call.
    """
    rows: Rows = {}
    torch.set_default_device(_torch_device())
    for side, heads, head_dim in on_cpu.STAGES.values():
        inputs, cotangent = on_cpu.make_inputs(
            side, heads, head_dim, on_cpu.KERNEL_SIZE, batch
        )
        inputs = [x.astype(DTYPE) for x in inputs]
        cotangent = cotangent.astype(DTYPE)
        channels = heads * head_dim
        flat = (batch, side, side, channels)
        images, kernel = inputs[0].reshape(flat), jnp.ones((3, 3, channels, channels))
        given = {"convolution": (images, kernel.astype(DTYPE), cotangent.reshape(flat))}
        functions: dict[str, Callable[..., jax.Array]] = {
            "convolution": on_cpu.convolve
        }
        methods = {"ours": "auto", "blocked": "blocked"}
        if side <= 8:  # On larger maps it needs the memory of all pairs.
            methods["all_pairs"] = "all_pairs"
        for name, method in methods.items():
            functions[name] = functools.partial(
                local_attention, kernel_size=on_cpu.KERNEL_SIZE, method=method
            )
            given[name] = (*inputs, cotangent)
        calls: dict[str, Callable[[], Any]] = {
            name: _repeated(on_cpu.with_gradients(function), repeats, given[name])
            for name, function in functions.items()
        }
        for name, windows in on_cpu.TORCH_WINDOWS.items():
            calls[name] = _torch_attention(windows, inputs, cotangent)
        times = interleave(calls, rounds)
        for name in functions:
            times[name] = [seconds / repeats for seconds in times[name]]
        where = f"{side}x{side}, {heads} heads of {head_dim}, batch {batch}, {_where()}"
        for name, seconds in times.items():
            rows[f"gpu_attention_{side}_{name}"] = Row.of(
                [1e6 * s for s in seconds], "us", f"forward and backward, {where}"
            )
        rows[f"gpu_attention_{side}_over_convolution"] = Row.of(
            ratios(times["ours"], times["convolution"]), "x", where
        )
        eager = [times[name] for name in on_cpu.TORCH_WINDOWS]
        best = [min(of_round) for of_round in zip(*eager, strict=True)]
        rows[f"gpu_attention_{side}_vs_torch"] = Row.of(
            ratios(best, times["ours"]), "x", f"the faster unfold / ours, {where}"
        )
    return rows


def steps(rounds: int, width: int = 64, batch: int = 256) -> Rows:
    """Rows of whole training steps, and of compiling them.

    Args:
        rounds: in which all take turns.
        width: of all networks.
        batch: images.
    """
    rows: Rows = {}
    torch.set_default_device(_torch_device())
    what = f"width {width}, batch {batch}, 32x32, {_where()}"
    calls: dict[str, Callable[[], Any]] = {}
    for name, (student, teacher) in STEPS.items():
        step = Step(student, teacher, width, batch, DTYPE)
        calls[name] = step.start()
        start = time.perf_counter()
        jax.block_until_ready(calls[name]())
        rows[f"gpu_{name}_compile"] = Row.one(
            time.perf_counter() - start, "s", f"first step, {what}"
        )
        if name in _WITH_PEER:
            calls[f"torch_{name}"] = _torch_step(step, student, teacher, width)
    times = interleave(calls, rounds)
    for name, seconds in times.items():
        rows[f"gpu_step_{name}"] = Row.of(
            [1e3 * s for s in seconds], "ms", f"training step, {what}"
        )
        rows[f"gpu_step_{name}_images"] = Row.of(
            [batch / s for s in seconds], "images/s", f"training step, {what}"
        )
    rows["gpu_attention_step_over_conv_step"] = _ratio(
        times, "attention", "convolution", what
    )
    for name in _WITH_PEER:
        rows[f"gpu_{name}_vs_torch"] = _ratio(times, f"torch_{name}", name, what)
    return rows


def _ratio(times: dict[str, Times], slow: str, fast: str, what: str) -> Row:
    return Row.of(ratios(times[slow], times[fast]), "x", f"{slow} / {fast}, {what}")


def _where() -> str:
    return f"bfloat16, {jax.devices()[0].device_kind}, jax {jax.__version__}"


def _torch_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _repeated(
    function: Callable[..., Any], repeats: int, arguments: tuple[jax.Array, ...]
) -> Callable[[], Any]:
    """A call of one program that computes a function so many times."""

    def body(_: jax.Array, arguments: Any) -> Any:
        # Nothing of it may be left out, or moved out of the loop.
        return jax.lax.optimization_barrier((arguments, function(*arguments)))[0]

    def run(*arguments: jax.Array) -> Any:
        return jax.lax.fori_loop(0, repeats, body, arguments)

    return functools.partial(on_cpu.compiled(run, *arguments), *arguments)


def _waiting(call: Callable[[], Any]) -> Callable[[], Any]:
    """A call of PyTorch that ends when the GPU has done it."""

    def run() -> Any:
        result = call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return result

    return run


def _torch_attention(
    windows: Callable[..., torch.Tensor], inputs: Any, cotangent: jax.Array
) -> Callable[[], Any]:
    floats = [x.astype(jnp.float32) for x in (*inputs, cotangent)]
    peer = on_cpu.TorchPeer(windows, floats[:-1], floats[-1])
    peer.to(_torch_device(), torch.bfloat16)
    return _waiting(peer.both)


def _torch_step(
    step: Step, student: str, teacher: str | None, width: int
) -> Callable[[], Any]:
    """The same step in eager PyTorch, from random weights."""

    def network(name: str) -> torch_resnet.ResNet:
        model = torch_resnet.create_model(
            name, num_classes=DATASET.num_classes, width=width
        )
        return model.to(memory_format=torch.channels_last)

    peer = torch_resnet.JointStep(
        network(student),
        network(teacher) if teacher else None,
        {},  # Masks cost a product each, which is nothing beside the rest.
        objective=step.objective,
        optimizer=CONFIG.student.optimizer,
        dataset=DATASET,
        memory_format=torch.channels_last,
    )

    def run() -> float:
        with torch.autocast(_torch_device(), torch.bfloat16):
            return peer.step(step.images["image"], step.images["label"])

    return _waiting(run)
