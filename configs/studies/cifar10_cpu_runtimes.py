"""Students of cifar10_cpu where people run models: their files and their speed there.

    python launch.py --config=configs/cifar10_cpu.py --job=prepare
    pip install -r requirements-onnx.txt -r requirements-tflite.txt
    pip install litert-converter==0.5.0
    pip install --no-deps jax2onnx==0.17.1
    python launch.py --job=study --study=configs/studies/cifar10_cpu_runtimes.py

Each student is trained, exported to every runtime and timed there beside its teacher.
One thread computes, whatever the machine has.

Cost: about 2 hours on 2 CPU cores, 20 minutes where the runs of cifar10_cpu are taken
over by --workdir=runs/studies/cifar10_cpu.
Expected: see results/cifar10_cpu_runtimes.
"""

from dataclasses import replace

from alite_jax.study.declaration import Study
from alite_jax.study.declaration import get_study as declared

ROWS = (
    *("dense_kd", "joint_0.1", "joint_0.075", "structured_0.5", "mixed_0.3"),
    "mixed_0.5_gradual",
)


def get_study() -> Study:
    """Returns the study."""
    whole = declared("cifar10_cpu")
    return replace(
        whole,
        name="cifar10_cpu_runtimes",
        title="CIFAR-10, reduced: the students in each runtime",
        description=(
            "Rows of `cifar10_cpu`, one seed each, exported for JAX, ONNX Runtime"
            " (float32 and int8) and LiteRT, measured on one core beside the teacher."
        ),
        rows={name: replace(whole.rows[name], seeds=(0,)) for name in ROWS},
        formats=("onnx", "onnx_int8", "tflite:1"),
    )
