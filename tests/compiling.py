"""A jit for programs that run once or twice: compiling is what such tests wait for."""

import functools

import jax

# Together seven times as quick to compile as the defaults, for slower programs. XLA's
# flags come and go with its releases, so the second is for those that know it.
_LEVEL = {"xla_backend_optimization_level": 0}
_QUICK = _LEVEL | {"xla_cpu_use_fusion_emitters": False}


@functools.cache
def _options():
    try:
        jax.jit(lambda x: x, compiler_options=_QUICK)(0.0)
    except jax.errors.JaxRuntimeError:
        return _LEVEL
    return _QUICK


def quick_jit(function, **options):
    """Like `jax.jit`; compiles in a fraction of the time."""
    return jax.jit(function, compiler_options=_options(), **options)
