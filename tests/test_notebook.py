"""The notebook from a folder to an export runs, cell by cell, in an empty folder."""

import json
import shutil
import sys
from pathlib import Path

import pandas as pd
from support import run_command

NOTEBOOK = Path(__file__).parents[1] / "docs" / "from_folder_to_export.ipynb"


def test_the_notebook(tiny_root: Path, tmp_path: Path) -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    shutil.copytree(tiny_root / "parts" / "washer", tmp_path / "parts")
    code = [
        "import matplotlib; matplotlib.use('agg')\n",
        *("".join(c["source"]) for c in cells if c["cell_type"] == "code"),
    ]
    (tmp_path / "notebook.py").write_text("\n".join(code), encoding="utf-8")
    printed = run_command(tmp_path, sys.executable, "notebook.py")
    assert "masks paired by name: 4" in printed
    exported, trained = (pd.read_csv(tmp_path / place / "predictions.csv") for place in ("checked", "trained/test"))
    assert abs(exported.score[0] - trained.score[0]) < 1e-5
    assert exported.label[0] == trained.label[0]
    # Outputs would be of another machine, and grow with each run.
    assert not any(cell.get("outputs") for cell in cells)
