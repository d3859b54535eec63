"""How much XLA is to optimise: little in tests, or as for users."""

import functools

import jax

# The one that newer versions of XLA no longer know, at which they would abort.
_FUSION = (
    {"xla_cpu_use_fusion_emitters": True} if jax.__version_info__ < (0, 11) else {}
)

# Tests wait for programs that are compiled to run a few times: these flags of XLA save
# two thirds of that.
QUICK_FLAGS = " ".join(
    ["--xla_backend_optimization_level=0", *(f"--{name}=false" for name in _FUSION)]
)

# XLA's defaults, whatever conftest.py sets for the other tests.
full_jit = functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 3, **_FUSION}
)
quick_jit = jax.jit
