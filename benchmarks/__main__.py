"""Runs the benchmarks: one table on the terminal, one JSON file.

    python -m benchmarks [--out=runs/bench/bench.json] [--sections=attention,steps]

Each section runs in a process of its own, with the allocator settings that `launch.py`
sets; attention and steps once more with those of the system. All peers of a comparison
share a process, so they share its settings and its moment.
"""

import argparse
import importlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from alite_jax.allocator import VARIABLE, tuned_environment
from benchmarks.targets import TARGETS

SYSTEM = "_system_allocator"


# What can be run, each a function of this package with its arguments.
SECTIONS: dict[str, tuple[str, dict[str, int]]] = {
    "attention": ("attention.compare", {"rounds": 3}),
    "attention" + SYSTEM: ("attention.compare", {"rounds": 2}),
    "growth": ("attention.growth", {"rounds": 7}),
    "steps": ("steps.compare", {"rounds": 4}),
    "steps" + SYSTEM: ("steps.compare", {"rounds": 2}),
    "compilation": ("steps.compilation", {}),
    "devices": ("devices.compare", {"rounds": 3}),
    "streams": ("streams.compare", {"rounds": 4}),
    "feeding": ("streams.feeding", {"rounds": 3}),
    "streaming_memory": ("streams.memory", {}),
    "structure": ("structure.compare", {"rounds": 15}),
    "runtimes": ("runtimes.compare", {"rounds": 7}),
    "pruner": ("pruner.compare", {"rounds": 15}),
    "methods": ("attention.methods", {"rounds": 5}),
    "pointwise": ("pointwise.compare", {"rounds": 5}),
    "torch_weights": ("torch_weights.compare", {}),
    "gpu_attention": ("accelerator.attention", {"rounds": 15}),
    "gpu_steps": ("accelerator.steps", {"rounds": 9}),
}
# The first two are behind decisions, not behind claims; the others want a GPU.
_ASKED_FOR = ("methods", "pointwise", "gpu_attention", "gpu_steps")
DEFAULT = [name for name in SECTIONS if name not in _ASKED_FOR]


def main() -> None:
    """Runs the sections one after another and reports them together."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/bench/bench.json"))
    parser.add_argument("--sections", default=",".join(DEFAULT))
    parser.add_argument("--section", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.section:
        path, arguments = SECTIONS[options.section]
        module, function = path.split(".")
        section = importlib.import_module(f"benchmarks.{module}")
        rows = getattr(section, function)(**arguments)
        options.out.write_text(json.dumps({k: vars(row) for k, row in rows.items()}))
        return
    options.out.parent.mkdir(parents=True, exist_ok=True)
    names = options.sections.split(",")
    for name in names:
        if name not in SECTIONS:
            valid = ", ".join(SECTIONS)
            parser.error(f"unknown section {name!r}; valid names: {valid}")
    rows = {}
    with tempfile.TemporaryDirectory() as programs:
        for name in names:
            rows |= run(name, options.out.with_name(f"{name}.json"), programs)
    result = {"machine": machine(), "rows": rows}
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    print(table(rows))
    print(f"\nwritten to {options.out}")


def run(name: str, out: Path, programs: str) -> dict[str, Any]:
    """Runs one section in a process of its own and returns its rows.

    Args:
        name: a key of `SECTIONS`.
        out: a file to be used for a moment.
        programs: folder of compiled programs, which a section with the system's
            allocator takes from its twin.
    """
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": programs}
    # Threads of a peer that wait must not take a core from the other.
    environment["OMP_WAIT_POLICY"] = "PASSIVE"
    environment.pop(VARIABLE, None)
    if not name.endswith(SYSTEM):
        environment = tuned_environment(environment) or environment
    if name.startswith("steps"):
        environment |= one_device_a_core()
    print(f"{name} ...", end=" ", flush=True, file=sys.stderr)
    start = time.monotonic()
    command = [sys.executable, "-m", "benchmarks", f"--section={name}", f"--out={out}"]
    subprocess.run(command, env=environment, check=True)
    print(f"{time.monotonic() - start:.0f} s", file=sys.stderr)
    rows: dict[str, Any] = json.loads(out.read_text())
    out.unlink()
    if not name.endswith(SYSTEM):
        return rows
    return {row + SYSTEM: value for row, value in rows.items()}


def one_device_a_core() -> dict[str, str]:
    """Settings with which JAX computes on as many devices as there are cores."""
    cores = len(os.sched_getaffinity(0))
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false"
    return {"JAX_NUM_CPU_DEVICES": str(cores), "XLA_FLAGS": flags.strip()}


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    packages = ("jax", "jaxlib", "flax", "torch", "torchvision", "timm")
    packages += ("jax2onnx", "onnxruntime", "ai_edge_litert")
    processor = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                processor = line.split(":", 1)[1].strip()
                break
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)),
        "system": platform.system(),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in packages if find_spec(name)},
        "date": time.strftime("%Y-%m-%d"),
    }


def table(rows: dict[str, Any]) -> str:
    """The rows for the terminal, with the targets of those that have one."""
    lines = [f"{'':46} {'value':>10} {'low':>10} {'high':>10}  unit      target"]
    for name, row in rows.items():
        target = ""
        if name in TARGETS:
            relation, limit = TARGETS[name]
            reached = (
                row["value"] >= limit if relation == ">=" else row["value"] <= limit
            )
            target = f"{relation} {limit:g} {'reached' if reached else 'missed'}"
        figures = " ".join(f"{row[key]:10.4g}" for key in ("value", "low", "high"))
        lines.append(f"{name:46} {figures}  {row['unit']:9} {target}".rstrip())
    return "\n".join(lines)


if __name__ == "__main__":
    main()
