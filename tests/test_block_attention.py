"""The form of attention for other runtimes is the reference, whatever the sizes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alite_jax.deploy.block_attention import _sums, _tables, block_attention
from alite_jax.ops.local_attention import BORDERS, local_attention


def some(draw: np.random.Generator, *shape: int) -> np.ndarray:
    return draw.normal(size=shape).astype(np.float32)


# Height, width, heads, head_dim, kernel_size, block_size.
SIZES = [
    pytest.param(8, 8, 2, 4, 7, 4, id="blocks that divide the map"),
    pytest.param(7, 9, 1, 4, 5, 4, id="sides that no block divides"),
    pytest.param(2, 2, 1, 6, 7, 4, id="a map smaller than window and block"),
    pytest.param(1, 5, 2, 2, 3, 2, id="one row"),
    pytest.param(6, 6, 1, 2, 1, 4, id="a window of one pixel"),
    pytest.param(4, 8, 1, 2, 3, 1, id="blocks of one pixel"),
]


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize(("height", "width", "heads", "dim", "size", "block"), SIZES)
def test_it_gives_the_numbers_of_the_reference(
    border: str, height: int, width: int, heads: int, dim: int, size: int, block: int
) -> None:
    draw = np.random.default_rng(0)
    maps = [some(draw, 2, height, width, heads, dim) for _ in range(3)]
    tables = [some(draw, size, dim // 2) for _ in range(2)]
    arguments: list[Any] = [*map(jnp.asarray, (*maps, *tables))]
    wanted = local_attention(
        *arguments, kernel_size=size, border=border, method="reference"
    )
    found = block_attention(*arguments[:3], *tables, border=border, block_size=block)
    np.testing.assert_allclose(found, wanted, atol=2e-6)


def test_values_may_have_another_width_than_queries() -> None:
    draw = np.random.default_rng(1)
    queries, keys = (some(draw, 1, 5, 6, 2, 4) for _ in range(2))
    tables = [some(draw, 3, 2) for _ in range(2)]
    values = some(draw, 1, 5, 6, 2, 6)

    def attend(values: np.ndarray) -> Any:
        return block_attention(*map(jnp.asarray, (queries, keys, values)), *tables)

    # Each of the values by itself.
    both = [attend(values[..., :4]), attend(values[..., 4:])]
    np.testing.assert_allclose(attend(values), jnp.concatenate(both, -1), atol=1e-6)


def test_the_tables_by_hand() -> None:
    """A row of two queries and a window of three: keys -1, 0, 1, 2 of the halo."""
    rows, columns = np.float32([[1], [2], [3]]), np.float32([[5], [6], [7]])
    first, second = _tables(rows, columns, (1, 2))
    # Row parts of three rows, then column parts of four columns.
    assert first.tolist() == [[1, 2, 3, 0, 0, 0, 0], [0, 0, 0, 5, 6, 7, 0]]
    assert second.tolist() == [[1, 2, 3, 0, 0, 0, 0], [0, 0, 0, 0, 5, 6, 7]]
    # Parts of two rows and of three columns, added up for six keys.
    parts = np.float32([10, 20, 1, 2, 3])
    assert (parts @ _sums(2, 3)).tolist() == [11, 12, 13, 21, 22, 23]


def test_it_is_made_of_few_operations_on_logits() -> None:
    """Each would be a pass over memory: two products, a sum, a softmax, a product."""
    maps = jnp.zeros((1, 8, 8, 1, 4))
    tables = np.zeros((3, 2), np.float32)
    traced = jax.make_jaxpr(lambda x: block_attention(x, x, x, tables, tables))(maps)
    logits = 4 * 16 * 36  # Blocks, queries and keys of each.
    large = [
        str(equation.primitive)
        for equation in traced.jaxpr.eqns
        if any(getattr(v.aval, "size", 0) == logits for v in equation.outvars)
        and str(equation.primitive) != "reshape"
    ]
    assert large.count("dot_general") == 2
    assert not {"gather", "select_n", "concatenate", "transpose"} & set(large)
