"""Names that people can read, for classes that are called by synset ids."""

import re

from alite_jax.data.wordnet import NAMES, readable


def test_every_class_of_tiny_imagenet_has_a_name_of_its_own() -> None:
    assert list(NAMES) == sorted(NAMES)
    assert all(re.fullmatch(r"n\d{8}", synset) for synset in NAMES)
    assert len({name.lower() for name in NAMES.values()}) == len(NAMES) == 200
    assert readable([*NAMES]) == [*NAMES.values()]
    assert (NAMES["n01443537"], NAMES["n12267677"]) == ("goldfish", "acorn")


def test_only_known_synsets_are_replaced() -> None:
    assert readable(["n01443537", "n00000001", "cat"]) == [
        "goldfish",
        "n00000001",
        "cat",
    ]
    assert readable(["n01443537", "goldfish"]) == ["n01443537", "goldfish"]
