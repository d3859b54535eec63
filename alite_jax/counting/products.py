"""The layers of any network, from its computation alone: shapes only.

Every matrix product and convolution of the traced program is counted, whoever wrote the
module that it comes from. A value that follows from parameters and constants only, such
as a reshaped or standardised kernel, or several concatenated, still is those
parameters; what depends on the image is an activation. So there are three kinds of
products:

- of an activation and a parameter: weight MACs of the parameter. Concatenated ones
  share them in proportion to their sizes. One that is used twice is counted twice.
- of two activations, or of an activation and a constant (a fixed filter, the product of
  two parameters): core MACs, which no absent weight saves.
- in which no image takes part: none, they can be computed beforehand.

Elementwise products have no MACs, even if their sums amount to a matrix product, nor
has what a kernel written for a device computes inside.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import chex
import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var

from alite_jax.counting.layer import Layer, Shape
from alite_jax.trees import named_leaves

CORE = "(core)"  # the layer of all core MACs


class _Parameter(NamedTuple):
    path: str
    size: int


# The parameters that a value is made of, none for a constant; None for an activation.
_Origin = frozenset[_Parameter] | None
_CONSTANT: _Origin = frozenset()


class _Tally:
    """MACs and elements of outputs, by the path of the parameter or `CORE`."""

    def __init__(self) -> None:
        self.macs: Counter[str] = Counter()
        self.outputs: Counter[str] = Counter()

    def add(self, other: "_Tally", times: int = 1) -> None:
        self.macs.update({path: times * n for path, n in other.macs.items()})
        self.outputs.update({path: times * n for path, n in other.outputs.items()})


_Counted = tuple[list[_Origin], _Tally]


def trace_products(
    forward: Callable[[chex.ArrayTree, jax.Array], chex.ArrayTree],
    params: chex.ArrayTree,
    image_shape: tuple[int, int, int],
) -> list[Layer]:
    """Counts the products of a network for one image.

    A loop counts as often as it runs, or once if that depends on its values; of
    branches, the one with the most MACs counts.

    Args:
        forward: `(params, images) -> logits`, with images `[1, *image_shape]` in
            float32.
        params: any pytree of arrays, or their shapes (`jax.ShapeDtypeStruct`).
        image_shape: (height, width, channels).

    Returns:
        One layer for each module, which is a path without its last component, with all
        its parameters, in the order in which they meet the image; those that never do
        come last. `outputs` are elements of the outputs of its products. What belongs
        to no parameter is in a last layer, `CORE`, if there is any.
    """
    named = named_leaves(params)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    program = jax.make_jaxpr(forward)(shapes, images)
    origins = [frozenset({_Parameter(p, math.prod(x.shape))}) for p, x in named]
    _, tally = _count(program, [*origins, None])
    return _layers({path: leaf.shape for path, leaf in named}, tally)


def _layers(shapes: dict[str, Shape], tally: _Tally) -> list[Layer]:
    met = [path for path in tally.macs if path != CORE]
    modules: dict[str, list[str]] = {path.rpartition("/")[0]: [] for path in met}
    for path in shapes:
        modules.setdefault(path.rpartition("/")[0], []).append(path)
    layers = []
    for module, paths in modules.items():
        names = {path: path.rpartition("/")[2] for path in paths}
        layers.append(
            Layer(
                module,
                {name: shapes[path] for path, name in names.items()},
                {names[path]: tally.macs[path] for path in paths if tally.macs[path]},
                outputs=sum(tally.outputs[path] for path in paths),
            )
        )
    if core := tally.macs[CORE]:
        layers.append(Layer(CORE, {}, core=core, outputs=tally.outputs[CORE]))
    return layers


def _count(program: ClosedJaxpr | Jaxpr, inputs: Sequence[_Origin]) -> _Counted:
    """What the outputs of a program are made of, and the products in it."""
    jaxpr = _open(program)
    known: dict[Var, _Origin] = dict.fromkeys(jaxpr.constvars, _CONSTANT)
    known.update(zip(jaxpr.invars, inputs, strict=True))

    def origins(values: Sequence[Var | Literal]) -> list[_Origin]:
        return [_CONSTANT if isinstance(v, Literal) else known[v] for v in values]

    tally = _Tally()
    for equation in _needed(jaxpr):
        outputs, found = _count_equation(equation, origins(equation.invars))
        known.update(zip(equation.outvars, outputs, strict=True))
        tally.add(found)
    return origins(jaxpr.outvars), tally


def _open(program: ClosedJaxpr | Jaxpr) -> Jaxpr:
    return program.jaxpr if isinstance(program, ClosedJaxpr) else program


def _needed(jaxpr: Jaxpr) -> list[JaxprEqn]:
    """The equations that an output depends on; a compiler leaves out the others."""
    values = {v for v in jaxpr.outvars if not isinstance(v, Literal)}
    equations = []
    for equation in reversed(jaxpr.eqns):
        if not values.isdisjoint(equation.outvars):
            equations.append(equation)
            values.update(v for v in equation.invars if not isinstance(v, Literal))
    return equations[::-1]


def _count_equation(equation: JaxprEqn, operands: list[_Origin]) -> _Counted:
    params = equation.params
    match equation.primitive.name:
        case "dot_general" | "conv_general_dilated":
            return _product(equation, operands)
        case "concatenate":
            return [_any_of(operands)], _Tally()
        case "scan":
            fixed, varied = _fixed_and_varied(equation)
            return _loop(params["jaxpr"], operands, fixed, varied, params["length"])
        case "while":
            operands = operands[params["cond_nconsts"] :]
            fixed = params["body_nconsts"]
            return _loop(params["body_jaxpr"], operands, fixed, len(operands) - fixed)
        case "cond":
            return _branches(params["branches"], operands)
    inner = params.get("jaxpr", params.get("call_jaxpr"))
    if inner is not None and len(_open(inner).invars) == len(operands):
        return _count(inner, operands)
    tally = _Tally()
    if None in operands:
        for parameter in _any_of([x for x in operands if x]) or ():
            tally.macs[parameter.path] += 0  # Keeps the order.
    return [_elementwise(operands)] * len(equation.outvars), tally


def _fixed_and_varied(scan: JaxprEqn) -> tuple[int, int]:
    """How many constants a scan has, and how many values it carries."""
    params = scan.params
    if "ft_in" in params:  # JAX 0.12: trees of the constants, the carry and the rest.
        fixed, varied, _ = params["ft_in"].unpack()
        return len(list(fixed)), len(list(varied))
    return params["num_consts"], params["num_carry"]


def _any_of(origins: Sequence[_Origin]) -> _Origin:
    """Of what may be any of some values, or has them side by side."""
    made_of: set[_Parameter] = set()
    for origin in origins:
        if origin is None:
            return None
        made_of |= origin
    return frozenset(made_of)


def _elementwise(operands: Sequence[_Origin]) -> _Origin:
    """Of what follows from some values: a kernel with its scale is that kernel."""
    known = [x for x in operands if x is not None]
    if len(known) < len(operands):
        return None
    largest = max(map(_size, known), default=0)
    return _any_of([x for x in known if _size(x) == largest])


def _size(origin: frozenset[_Parameter]) -> int:
    return sum(parameter.size for parameter in origin)


def _product(equation: JaxprEqn, operands: list[_Origin]) -> _Counted:
    tally = _Tally()
    if None not in operands:
        return [_CONSTANT], tally
    macs, outputs = _macs(equation), math.prod(_shape(equation.outvars[0]))
    weights = sorted(_any_of([x for x in operands if x]) or ())
    if not weights:
        weights = [_Parameter(CORE, 1)]
    before, total = 0, sum(weight.size for weight in weights)
    for path, size in weights:
        after = before + size
        # So that the shares add up to the whole.
        for counter, whole in ((tally.macs, macs), (tally.outputs, outputs)):
            counter[path] = whole * after // total - whole * before // total
        before = after
    return [None], tally


def _shape(value: Var | Literal) -> Shape:
    return cast(jax.ShapeDtypeStruct, value.aval).shape


def _macs(equation: JaxprEqn) -> int:
    """MACs of a product; pixels of the padding count, inserted zeros do not."""
    left, right, output = map(_shape, [*equation.invars, *equation.outvars])
    numbers = equation.params["dimension_numbers"]
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = numbers
        return math.prod(output) * math.prod(left[axis] for axis in contracted)
    pixels = [output[axis] for axis in numbers.out_spec[2:]]
    dilation = equation.params["lhs_dilation"]
    for i, axis in enumerate(numbers.lhs_spec[2:]):
        # A transposed convolution takes each weight once for each pixel of its input.
        if dilation[i] > 1:
            pixels[i] = min(pixels[i], left[axis])
    images = output[numbers.out_spec[0]]
    return images * math.prod(pixels) * math.prod(right)


def _loop(
    body: ClosedJaxpr, operands: list[_Origin], fixed: int, varied: int, times: int = 1
) -> _Counted:
    """A loop whose body takes what is fixed, what it changes, and slices."""
    constants, slices = operands[:fixed], operands[fixed + varied :]
    carried = operands[fixed : fixed + varied]
    while True:
        outputs, once = _count(body, [*constants, *carried, *slices])
        pairs = zip(carried, outputs, strict=False)  # Then come stacked outputs.
        joined = [_any_of(pair) for pair in pairs]
        if joined == carried:
            break
        carried = joined
    tally = _Tally()
    tally.add(once, times)
    return [*carried, *outputs[varied:]], tally


def _branches(branches: Sequence[ClosedJaxpr], operands: list[_Origin]) -> _Counted:
    choice, *arguments = operands
    counted = [_count(branch, arguments) for branch in branches]
    _, largest = max(counted, key=lambda branch: branch[1].macs.total())
    columns = zip(*(outputs for outputs, _ in counted), strict=True)
    # A value that the image chooses is an activation.
    chosen = [None if choice is None else _any_of(column) for column in columns]
    return chosen, largest
