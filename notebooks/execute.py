"""Run every notebook beside this file and keep its outputs: `make notebooks`, or with names, only those.

Only what the notebooks print and draw is kept: no log lines of Lightning, no paths of the machine, no timestamps.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent
CHATTER = re.compile(r"GPU available|TPU available|HPU available|Tip: For seamless|`Trainer.fit` stopped|Seed set to")


def main(names: list[str]) -> int:
    """Execute; raises the first error of a cell."""
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH")]))
    for path in sorted(HERE.glob("*.ipynb")):
        if names and path.name not in names:
            continue
        notebook = nbformat.read(path, as_version=4)
        with tempfile.TemporaryDirectory() as folder:
            resources = {"metadata": {"path": folder}}
            NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
        for cell in notebook.cells:
            if cell.cell_type != "code":
                continue
            cell.metadata = {}
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
            for output in cell.outputs:
                if "text" in output:
                    lines = output["text"].splitlines(keepends=True)
                    output["text"] = "".join(line for line in lines if not CHATTER.search(line))
            cell.outputs = [o for o in cell.outputs if o.get("text", "-")]
        notebook.metadata.pop("language_info", None)
        nbformat.write(notebook, path)
        print(path.name)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
