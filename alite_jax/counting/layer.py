"""What one layer of a network is, however it was found."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Layer:
    """What one layer is and does for one image.

    Attributes:
        path: of the module, such as `"stage1_block1/spatial/query"`; empty for
            parameters that are in no module.
        shapes: of its own parameters, by name, such as `{"kernel": (64, 64)}`.
        products: MACs of its parameters, by name; none for those without.
        core: MACs of its attention core.
        outputs: elements of its output, 0 for a part of another layer.
    """

    path: str
    shapes: Mapping[str, Shape]
    products: Mapping[str, int] = field(default_factory=dict)
    core: int = 0
    outputs: int = 0

    @property
    def weight(self) -> int:
        """MACs of all its parameters."""
        return sum(self.products.values())

    @property
    def parameters(self) -> dict[str, Shape]:
        """The shapes of its parameters, by their whole paths."""
        return {self.parameter(name): shape for name, shape in self.shapes.items()}

    @property
    def sizes(self) -> dict[str, int]:
        """The sizes of its parameters, by their whole paths."""
        return {path: math.prod(shape) for path, shape in self.parameters.items()}

    def parameter(self, name: str) -> str:
        """The whole path of one of its parameters."""
        return f"{self.path}/{name}" if self.path else name
