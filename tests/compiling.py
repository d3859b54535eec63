"""A jit for programs that run once or twice: compiling is what such tests wait for."""

import functools

import jax

# Together seven times as quick to compile as the defaults, for slower programs.
QUICK = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}

quick_jit = functools.partial(jax.jit, compiler_options=QUICK)
