"""How much XLA is to optimise: little in tests, or as for users."""

import functools

import jax

# Tests wait for programs that are compiled to run a few times: these flags of XLA save
# two thirds of that.
QUICK_FLAGS = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"

# XLA's defaults, whatever conftest.py sets for the other tests.
full_jit = functools.partial(
    jax.jit,
    compiler_options={
        "xla_backend_optimization_level": 3,
        "xla_cpu_use_fusion_emitters": True,
    },
)
quick_jit = jax.jit
