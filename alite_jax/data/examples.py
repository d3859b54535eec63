"""The examples of a prepared split by their numbers, read, decoded and resized."""

import io
import pathlib
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from alite_jax.data.images import decode_image, decode_resized
from alite_jax.data.prepared import damaged, image_and_label, read_builder
from alite_jax.data.resize import AREA, area_average
from alite_jax.data.specs import DatasetSpec
from alite_jax.errors import ConfigError, DataError, first_line


class Examples:
    """Random access to a split, which may be handed to other processes.

    Attributes:
        shape: of an image as the networks see it, (height, width, channels).
    """

    def __init__(
        self,
        data_config: ConfigDict,
        spec: DatasetSpec,
        folder: pathlib.Path,
        field: str,
    ) -> None:
        """Opens the split.

        Args:
            data_config: the `data` section of the configuration; `image_size`, `label`
                and the split's field are used.
            spec: what is known about the data set.
            folder: of the prepared data set.
            field: `"train_split"` or `"eval_split"`.

        Raises:
            ConfigError: there is no such split, or the images need a common size.
            DataError: the data set is damaged.
        """
        self.shape = spec.seen_shape(data_config.image_size)
        self._config, self._spec, self._folder = data_config, spec, folder
        self._field = field
        self._split = data_config[field] or getattr(spec, field)
        builder = read_builder(folder, data_config)
        self._image, self._label = image_and_label(builder, data_config)
        self._source: Any = self._open(builder)
        # (numbers, examples) of the latest read: a memory of the files, no state.
        self._latest: tuple[np.ndarray, list[Any]] = (np.empty(0, int), [])

    def __len__(self) -> int:
        return len(self._source)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_source": None, "_latest": (np.empty(0, int), [])}

    def read(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns images, uint8 `[n, height, width, channels]`, and labels, int32.

        Args:
            numbers: of the examples in the split, `[n]`.

        Raises:
            DataError: the files are damaged, or hold what they must not hold.
        """
        examples = self._read(numbers)
        return self._images(numbers, examples), self._labels(numbers, examples)

    def images(self, numbers: np.ndarray) -> np.ndarray:
        """The images alone."""
        return self._images(numbers, self._read(numbers))

    def labels(self, numbers: np.ndarray) -> np.ndarray:
        """The labels alone, for which nothing is decoded."""
        return self._labels(numbers, self._read(numbers))

    def _images(self, numbers: np.ndarray, examples: list[Any]) -> np.ndarray:
        spec, (height, width, channels) = self._spec, self.shape
        resizes = bool(self._config.image_size)
        decoded = []
        for number, example in zip(numbers, examples, strict=True):
            place, file = self._place(number), io.BytesIO(example[self._image])
            if resizes and spec.resize != AREA:
                decoded.append(decode_resized(file, place, self.shape))
                continue
            image = decode_image(file, channels, place)
            # An image that may have any size has none in the specification.
            if spec.image_shape[0] and image.shape != spec.image_shape:
                raise DataError(
                    f"{place} is an image of shape {image.shape}, expected"
                    f" {spec.image_shape}; prepare the data set again in another"
                    " data_dir"
                )
            decoded.append(image)
        # Images of one size are averaged together, which is faster.
        return area_average(np.stack(decoded), height, width)

    def _labels(self, numbers: np.ndarray, examples: list[Any]) -> np.ndarray:
        found = [example[self._label] for example in examples]
        for number, label in zip(numbers, found, strict=True):
            if label == -1:
                raise DataError(
                    f"{self._place(number)} has no label, as of a competition's test"
                    f" images; choose another split with data.{self._field}"
                )
            if not 0 <= label < self._spec.num_classes:
                raise DataError(
                    f"{self._place(number)} has label {label}, expected 0 to"
                    f" {self._spec.num_classes - 1}; prepare the data set again in"
                    " another data_dir"
                )
        return np.array(found, np.int32)

    def _place(self, number: int) -> str:
        return f"example {number} of {self._spec.name} split {self._split!r}"

    def _read(self, numbers: np.ndarray) -> list[Any]:
        # Of a batch, labels are asked for right after the images.
        latest = self._latest
        if np.array_equal(numbers, latest[0]):
            return latest[1]
        if self._source is None:  # In another process.
            self._source = self._open(read_builder(self._folder, self._config))
        try:
            examples: list[Any] = self._source.__getitems__(numbers.tolist())
        # array_record checks its own checksums and raises RuntimeError.
        except (RuntimeError, IndexError) as error:
            raise damaged(self._folder, first_line(error), self._config) from error
        self._latest = (numbers, examples)
        return examples

    def _open(self, builder: Any) -> Any:
        """Returns the TFDS data source of the split, its images left encoded."""
        import tensorflow_datasets as tfds

        # Pillow decodes: TFDS would prefer OpenCV, and warn where it is missing.
        decoders = {self._image: tfds.decode.SkipDecoding()}
        try:
            source = builder.as_data_source(self._split, decoders=decoders)
            # TFDS gives a slice such as [60%:50%] a negative length, which len()
            # refuses.
            len(source)
        except ValueError as error:
            if not self._config[self._field] and "[" not in self._split:
                finding = f"it has no examples in its split {self._split!r}"
                raise damaged(self._folder, finding, self._config) from error
            sizes = ", ".join(
                f"{name!r} ({info.num_examples} examples)"
                for name, info in builder.info.splits.items()
            )
            raise ConfigError(
                f"data.{self._field} = {self._split!r} is not a split of"
                f" {self._spec.name} with examples in it; its splits are {sizes}, and"
                " parts of them are written like 'train[:90%]' or 'train[:1000]'"
            ) from error
        return source
