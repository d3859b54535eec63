"""Runs the notebook from top to bottom, as it is, and keeps what it shows.

python tests/executed_notebook.py    # a quarter of an hour on two cores
"""

import os
import re
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "notebooks" / "alite_jax.ipynb"


def executed() -> Any:
    """Returns the notebook with the outputs of its cells, none of the progress."""
    import nbclient
    import nbformat

    # What the kernel inherits: as on Colab, and not as tests compile.
    os.environ |= {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    with TemporaryDirectory() as folder:
        nbclient.NotebookClient(
            notebook,
            timeout=900,
            kernel_name="python3",
            resources={"metadata": {"path": folder}},
        ).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [
                out
                for out in cell.outputs
                if out.get("name") != "stderr"
                # A report is larger than all else, and not shown by viewers.
                and "text/html" not in out.get("data", {})
            ]
            for out in cell.outputs:
                if "text" in out:  # Folders of this machine are nobody else's.
                    out.text = re.sub(rf"{gettempdir()}/\w+", "RUNS", out.text)
    return notebook


if __name__ == "__main__":
    import nbformat

    nbformat.write(executed(), NOTEBOOK)
