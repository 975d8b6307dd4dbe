"""Executes a notebook and fails when a cell does, or when it is committed with outputs.

Usage: execute.py NOTEBOOK
"""

import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from traitlets.config import Config

# For the kernel's start and for each cell. They take seconds; a busy machine must
# not pass for a hang.
TIMEOUT_S = 300


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def stripped(notebook) -> bool:
    cells = code_cells(notebook)
    return not any(cell.outputs or cell.execution_count for cell in cells)


def pictures(notebook) -> int:
    outputs = (output for cell in code_cells(notebook) for output in cell.outputs)
    return sum("image/png" in output.get("data", {}) for output in outputs)


def main(path: Path) -> int:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    if not stripped(notebook):
        print(f"{path}: has outputs\nhint: clear them before committing", file=sys.stderr)
        return 1
    drawing = sum("plt.subplots" in cell.source for cell in code_cells(notebook))
    with tempfile.TemporaryDirectory() as sockets:
        # Sockets of files, at one path for both sides whatever their folders.
        ipc = {"transport": "ipc", "ip": f"{sockets}/kernel"}
        client = NotebookClient(
            notebook,
            timeout=TIMEOUT_S,
            startup_timeout=TIMEOUT_S,
            resources={"metadata": {"path": path.parent}},
            config=Config({"KernelManager": ipc}),
        )
        try:
            client.execute()
        except CellExecutionError as error:
            print(f"{path}: {error}", file=sys.stderr)
            return 1
    if pictures(notebook) != drawing:
        print(f"{path}: {pictures(notebook)} of {drawing} figures were drawn", file=sys.stderr)
        return 1
    print(f"{path}: executed, {drawing} figures drawn")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
