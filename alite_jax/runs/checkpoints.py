"""Checkpoints of one run: Orbax behind a few calls, plus the checks that it lacks.

A checkpoint is an Orbax composite of three items. `model` holds the parameters, the
BatchNorm statistics and the masks (all that evaluation and a teacher need), `train` the
rest of the training state, `meta` a JSON document with the identity of the model, the
caller's extra values and the dtype, shape and SHA-256 of every leaf. Orbax casts to
another dtype and returns flipped bytes without a word, so every leaf is compared with
`meta` when it is read, and `meta` with its own digest.

Arrays are stored flat under their tree path (`opt_state/1/trace/stem/kernel`) and put
back into the caller's template: named tuples, `None` and empty states then come back as
they were, whatever Orbax makes of such containers.

Saving blocks, and what was written is read back before anything older goes: it takes
well under a second for small models (3 s for 300 MB on 2 cores), and a full disk is
reported by the save that met it, not by a later one.
"""

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from absl import logging

from alite_jax.errors import CheckpointError
from alite_jax.runs.manifest import as_json, blank, describe, digest, like, named_arrays
from alite_jax.runs.orbax_store import OrbaxStore, reason
from alite_jax.runs.processes import by_first

State = TypeVar("State")
_MODEL_FIELDS = ("params", "batch_stats", "masks")
# What identities from before a field existed mean by its absence.
_ABSENT = {"stem": "conv"}


class _DamagedError(Exception):
    """One checkpoint cannot be read or fails a digest; an older one may do."""


class Checkpoints:
    """The checkpoints below one directory, all of one model.

    Reading never writes to the directory, so a finished run can be opened as a teacher
    while it is read-only. Of several processes the first one reads and writes, and all
    of them must make the same calls.

    Args:
        directory: where the steps are stored; made by the first save.
        keep: number of newest checkpoints that stay on disk, at least 1; with 2 or
            more, a damaged one has another behind it.
        identity: JSON values that tell this model from others; stored with each
            checkpoint and compared before anything is restored.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        keep: int,
        identity: Mapping[str, Any],
    ) -> None:
        if keep < 1:
            raise CheckpointError(f"checkpoint.keep is {keep}: set it to 1 or more")
        self.directory = os.path.abspath(directory)
        self._keep = keep
        self._identity = as_json(identity)
        self._store = OrbaxStore(self.directory)
        # What this object knows of the steps on disk: a whole one is not written twice,
        # a damaged one goes with the next save.
        self._whole: dict[int, Any] = {}
        self._damaged: set[int] = set()

    @by_first
    def latest_step(self) -> int | None:
        """Returns the newest finished checkpoint's step, or `None` without any."""
        return max(self._store.steps(), default=None)

    @by_first
    def save(
        self,
        step: int,
        state: Any,
        *,
        extra: Mapping[str, Any],
    ) -> None:
        """Writes the checkpoint of `step`, and returns once it is on disk.

        Checkpoints of later steps are removed first, since they belong to a course that
        the run has left (it went back to `step` or before), as are those that a restore
        found damaged. An equal checkpoint that this object wrote or restored is kept.

        Args:
            step: training steps done, at least 0.
            state: pytree dataclass with the fields `params`, `batch_stats`, `masks` and
                any others, its leaves numpy arrays or numbers.
            extra: JSON values that `restore` hands back, such as the seconds so far.

        Raises:
            CheckpointError: it cannot be written; older checkpoints are as they were.
        """
        model, train = _split(state)
        arrays = {
            "model": named_arrays(model),
            "train": named_arrays(train),
        }
        leaves = {item: describe(flat) for item, flat in arrays.items()}
        if self._whole.get(step) == leaves:
            return
        meta = {"identity": self._identity, "leaves": leaves, "extra": extra}
        meta = as_json(meta)
        try:
            for old in self._store.steps():
                if old >= step or old in self._damaged:
                    self._store.delete(old)
                    self._whole.pop(old, None)
            self._store.write(step, arrays, {**meta, "digest": digest(meta)})
            self._check_written(step, arrays, leaves)
            for old in self._store.steps()[: -self._keep]:
                self._store.delete(old)
        except Exception as error:  # TensorStore reports a full disk as a ValueError.
            self.close()  # The next save opens anew and sweeps what this one left.
            raise CheckpointError(
                f"cannot write checkpoint {self._path(step)} ({reason(error)}): "
                "free space or make the folder writable and start again, or use "
                "another --workdir"
            ) from error
        self._whole[step] = leaves

    @by_first
    def restore(
        self, template_state: State, step: int | None = None
    ) -> tuple[State, dict[str, Any]]:
        """Returns the newest whole checkpoint, or that of `step`.

        Args:
            template_state: a state like the one saved, for its structure, dtypes and
                shapes; its values are not used (`jax.ShapeDtypeStruct` leaves do).
            step: the only step to accept; `None` takes the newest that is whole.

        Returns:
            `template_state` with the stored leaves as numpy arrays (Python and numpy
            scalars where the template has them), and the saved `extra`.

        Raises:
            CheckpointError: there is none, it is of another model, or none is whole.
        """
        model, train = _split(template_state)
        found, meta, items = self._newest_whole({"model": model, "train": train}, step)
        self._whole[found] = meta["leaves"]
        state = dataclasses.replace(
            template_state,  # type: ignore[type-var]
            **items["model"],
            **items["train"],
        )
        return state, meta["extra"]

    @by_first
    def restore_model(
        self, template: Mapping[str, Any], step: int | None = None
    ) -> dict[str, Any]:
        """Returns the item `model` alone; `train` is not even read.

        Args:
            template: `{"params": ..., "batch_stats": ..., "masks": ...}`, a template as
                in `restore`.
            step: as in `restore`.

        Raises:
            CheckpointError: as in `restore`.
        """
        return self._newest_whole({"model": dict(template)}, step)[2]["model"]

    def close(self) -> None:
        """Ends Orbax's threads; the object may be used again."""
        self._store.close()

    def _check_written(
        self, step: int, arrays: Mapping[str, Any], leaves: Mapping[str, Any]
    ) -> None:
        """Raises where a step that was just written does not read as it should."""
        try:
            self._read_meta(step)
            for item, flat in arrays.items():
                self._read_item(step, item, flat, leaves[item])
        except _DamagedError:
            self._damaged.add(step)  # It goes with the next save.
            raise

    def _path(self, step: int) -> str:
        return f"{self.directory}/{step}"

    def _newest_whole(
        self, templates: dict[str, Any], step: int | None
    ) -> tuple[int, dict[str, Any], dict[str, Any]]:
        steps = self._store.steps()[::-1]
        wanted = steps if step is None else [s for s in steps if s == step]
        if not wanted:
            which = "" if step is None else f" of step {step}"
            there = f"it has {', '.join(map(str, steps))}" if steps else "it has none"
            raise CheckpointError(
                f"no checkpoint{which} in {self.directory} ({there}): check --workdir, "
                "or train the model there first"
            )
        for candidate in wanted:
            try:
                return candidate, *self._read(candidate, templates)
            except _DamagedError as error:
                self._damaged.add(candidate)
                path, damage = self._path(candidate), str(error)
                logging.warning("checkpoint %s is damaged (%s): skipped", path, damage)
        raise CheckpointError(
            f"no checkpoint in {self.directory} can be read: {self._path(wanted[-1])} "
            f"is damaged ({damage}) and there is no other to take: restore the folder "
            "from a copy, or train in another --workdir"
        )

    def _read(
        self, step: int, templates: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        meta = self._read_meta(step)
        self._check_identity(meta["identity"])
        items = {}
        for item, template in templates.items():
            stored = meta["leaves"][item]
            wanted = named_arrays(template, read=blank)
            self._check_structure(step, stored, wanted)
            flat = self._read_item(step, item, wanted, stored)
            leaves, treedef = jax.tree.flatten(template)
            arrays = [flat[name] for name in wanted]  # Orbax sorts; leaves do not.
            items[item] = jax.tree.unflatten(treedef, map(like, leaves, arrays))
        return meta, items

    def _read_meta(self, step: int) -> dict[str, Any]:
        with _damage_told("meta"):
            meta = self._store.read_document(step)
        if not isinstance(meta, dict) or meta.pop("digest", None) != digest(meta):
            raise _DamagedError("meta differs from its digest")
        return meta

    def _read_item(
        self,
        step: int,
        item: str,
        wanted: Mapping[str, np.ndarray],
        stored: Mapping[str, Any],
    ) -> dict[str, np.ndarray]:
        """Reads arrays like those wanted, which must be as `stored` describes them."""
        with _damage_told(item):
            flat = self._store.read(step, item, wanted)
        for name, found in describe(flat).items():
            if found != stored[name]:
                raise _DamagedError(f"{name} differs from its digest")
        return flat

    def _check_identity(self, stored: dict[str, Any]) -> None:
        for field in {**self._identity, **stored}:
            theirs, ours = (
                identity.get(field, _ABSENT.get(field))
                for identity in (stored, self._identity)
            )
            if theirs != ours:
                raise CheckpointError(
                    f"the checkpoints in {self.directory} are of another model, with "
                    f"{field} = {theirs!r} where this run has {ours!r}: use another "
                    "--workdir or the same model"
                )

    def _check_structure(
        self, step: int, stored: dict[str, Any], wanted: dict[str, np.ndarray]
    ) -> None:
        for name in {**wanted, **stored}:
            theirs, ours = "absent", "absent"
            if name in stored:
                theirs = f"{stored[name]['dtype']} {tuple(stored[name]['shape'])}"
            if name in wanted:
                ours = f"{wanted[name].dtype} {wanted[name].shape}"
            if theirs != ours:
                raise CheckpointError(
                    f"checkpoint {self._path(step)} does not fit this run: {name} is "
                    f"{theirs} there and {ours} here: use another --workdir, or the "
                    "model and optimizer settings of that run"
                )


@contextlib.contextmanager
def _damage_told(item: str) -> Iterator[None]:
    """Turns whatever a read of damaged files raises into one error."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # Orbax raises plain `Exception` for some damage.
        raise _DamagedError(f"{item}: {reason(error)}") from error


def _split(state: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits a pytree dataclass into the fields of the model and the other ones."""
    fields = {
        field.name: getattr(state, field.name)
        for field in dataclasses.fields(state)
        if field.metadata.get("pytree_node", True)
    }
    return {name: fields.pop(name) for name in _MODEL_FIELDS}, fields
