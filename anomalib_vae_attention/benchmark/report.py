"""The report of a comparison: one HTML page that needs no other file."""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd

from anomalib_vae_attention.common.atomic_files import replacing

from .plan import BACKBONE, Cell
from .plots import heat_map, jpeg, outline

TEMPLATE = Path(__file__).with_name("report.html.j2")
HIGHER_IS_BETTER = {"image_AUROC", "pixel_AUROC", "pixel_AUPRO", "image_AP", "pixel_AP", "image_F1", "pixel_F1"}
ACCURACY = {
    "image_AUROC": "image AUROC",
    "pixel_AUROC": "pixel AUROC",
    "pixel_AUPRO": "AUPRO",
    "image_AP": "image AP",
    "pixel_AP": "pixel AP",
    "image_F1": "image F1",
    "pixel_F1": "pixel F1",
}
COST = {
    "fit_seconds": "fit, s",
    "memory_fit_mib": "memory of the fit, MiB",
    "memory_peak_mib": "peak of the process, MiB",
    "checkpoint_mib": "checkpoint, MiB",
    "onnx_mib": "ONNX, MiB",
    "openvino_mib": "OpenVINO, MiB",
}


def _inline(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _text(value: float, digits: int) -> str:
    return "-" if pd.isna(value) else f"{value:,.{digits}f}"


def _grouped(frame: pd.DataFrame, columns: dict[str, str], digits: int) -> list[dict[str, Any]]:
    """Make the rows of a table for the template, a group a category, the best of each column marked."""
    groups = []
    for category, part in frame.groupby("category", sort=False):
        rows = []
        for _, row in part.iterrows():
            values = []
            for column in columns:
                value = row[column]
                compared = part[column][part["model"] != BACKBONE].round(digits)
                best = compared.max() if column in HIGHER_IS_BETTER else compared.min()
                is_best = row["model"] != BACKBONE and len(compared) > 1 and round(value, digits) == best
                values.append({"text": _text(value, digits), "best": is_best})
            rows.append({"model": row["model"], "values": values})
        groups.append({"category": category, "rows": rows})
    return groups


def _latencies(latencies: pd.DataFrame) -> list[dict[str, Any]]:
    groups = []
    for (category, runtime), part in latencies.groupby(["category", "runtime"], sort=False):
        rows = [
            {
                "model": row["model"],
                "measured": row["measured"],
                "error": None if pd.isna(row["error"]) else row["error"],
                **{
                    name: _text(row[name], digits)
                    for name, digits in [
                        ("median_ms", 2),
                        ("q25_ms", 2),
                        ("q75_ms", 2),
                        ("images_per_second", 1),
                        ("ratio_to_backbone", 2),
                    ]
                },
            }
            for _, row in part.sort_values("measured", kind="stable").iterrows()
        ]
        if len(set(part["error"])) == 1 and part["error"].notna().all():
            rows = [{**rows[0], "model": "all", "measured": ""}]
        groups.append({"category": category, "runtime": runtime, "rows": rows})
    return groups


def _example_rows(cells: Sequence[Cell], output: Path) -> list[dict[str, Any]]:
    """Lay the example maps of all models of a category side by side, those of the first seed."""
    groups: dict[str, dict[str, Any]] = {}
    first = cells[0].seed
    for cell in cells:
        file = output / "cells" / cell.key / "examples.npz"
        if cell.seed != first or cell.model == BACKBONE or not file.exists():
            continue
        with np.load(file) as loaded:
            stored = dict(loaded)
        group = groups.setdefault(cell.category, {"category": cell.category, "models": [], "rows": []})
        if not group["rows"]:
            group["rows"] = [
                {"name": "/".join(Path(str(path)).parts[-2:]), "images": [jpeg(image), jpeg(outline(image, mask))]}
                for path, image, mask in zip(stored["path"], stored["image"], stored["mask"], strict=True)
            ]
        group["models"].append(cell.model)
        limits = (float(stored["range"][0]), float(stored["range"][1]))
        for row, values in zip(group["rows"], stored["map"], strict=True):
            row["images"].append(jpeg(heat_map(values, limits)))
    for group in groups.values():
        for row in group["rows"]:
            row["images"] = [_inline(image, "jpeg") for image in row["images"]]
    return list(groups.values())


def write_report(
    file: Path,
    cells: Sequence[Cell],
    tables: dict[str, pd.DataFrame],
    description: dict[str, Any],
    plots: dict[str, Path],
) -> None:
    """Write the report.

    Args:
        file: HTML file to write, in the folder of the comparison.
        cells: The cells.
        tables: ``cells``, ``latencies`` and ``summary``.
        description: ``machine``, ``command`` and ``settings``, plain data.
        plots: Caption and PNG file of each plot.
    """
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    failed = tables["cells"][tables["cells"]["status"] != "done"]
    content = template.render(
        **description,
        accuracy_columns=list(ACCURACY.values()),
        accuracy=_grouped(tables["summary"][tables["summary"]["model"] != BACKBONE], ACCURACY, 3),
        cost_columns=list(COST.values()),
        cost=_grouped(tables["summary"], COST, 1),
        latencies=_latencies(tables["latencies"]),
        failed=failed[["category", "model", "seed", "error", "log"]].to_dict("records"),
        plots=[(caption, _inline(plot.read_bytes(), "png")) for caption, plot in plots.items()],
        examples=_example_rows(cells, file.parent),
    )
    with replacing(file) as temporary:
        temporary.write_text(content, encoding="utf-8")
