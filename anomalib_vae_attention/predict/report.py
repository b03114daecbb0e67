"""The report of a run of predictions: one page beside its pictures, which needs no network and nothing else."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from anomalib_vae_attention.common.pictures import write_page

from .pictures import legend
from .results import OVERLAYS, PARTS

TEMPLATE = Path(__file__).with_name("report.html.j2")


def write_report(file: Path, rows: Sequence[dict[str, Any]], threshold: float, title: str, note: str = "") -> None:
    """Write the report of rows (see :data:`.COLUMNS`) of a table of predictions, whose pictures lie beside it.

    The threshold is that of image scores; the note is what else is to be said, under the title.
    """
    write_page(
        file,
        TEMPLATE,
        title=title,
        note=note,
        threshold=threshold,
        images=[_shown(file.parent, row) for row in rows],
        **legend(),
    )


def _shown(folder: Path, row: dict[str, Any]) -> dict[str, Any]:
    """Return what the page shows of a row, with addresses relative to it."""
    name, parts = row["name"], PARTS
    mask = f"{parts}/{name}.mask.png"
    return {
        # Names of files need not be valid text.
        "name": name.encode(errors="replace").decode(),
        "score": row["score"],
        "truth": row["truth"],
        "error": row["error"].encode(errors="replace").decode(),
        "photo": _address(f"{parts}/{name}.jpg"),
        "map": _address(f"{parts}/{name}.map.png"),
        "mask": _address(mask) if (folder / mask).is_file() else "",
        "overlay": _address(f"{OVERLAYS}/{name}.jpg"),
        "defect": [row[f"defect_{field}"] for field in ("x", "y", "width", "height", "area")],
    }


def _address(path: str) -> str:
    return quote(os.fsencode(path))
