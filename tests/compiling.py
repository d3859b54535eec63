"""A jit for programs that are to be compiled as users compile them."""

import functools

import jax

# XLA's defaults, whatever conftest.py sets for the other tests.
full_jit = functools.partial(
    jax.jit,
    compiler_options={
        "xla_backend_optimization_level": 3,
        "xla_cpu_use_fusion_emitters": True,
    },
)
quick_jit = jax.jit
