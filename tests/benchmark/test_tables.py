"""Tables and the report, of results made up."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from anomalib_vae_attention.benchmark.plan import BACKBONE, Cell
from anomalib_vae_attention.benchmark.report import make_tables, write_results
from anomalib_vae_attention.common.measures import MAIN, MEASURES

PLAIN = Cell("parts", "/data/parts", "vae_attention", 0, "net", ("x",), 32, keep=True, export=True)
ODD = "<b>x"


def done(value: float, fit: float = 1.0) -> dict[str, object]:
    """Make a result up."""
    sizes = {"checkpoint_mib": 1.0, "onnx_mib": 2.0, "openvino_mib": 4.0}
    memory = {"memory_before_mib": 500.0, "memory_peak_mib": 500.0 + fit}
    return {"status": "done", **dict.fromkeys(MEASURES, value), "fit_seconds": fit, **memory, **sizes}


CELLS = [
    replace(PLAIN, model=BACKBONE),
    PLAIN,
    replace(PLAIN, seed=1, keep=False),
    replace(PLAIN, seed=2, keep=False),
    replace(PLAIN, model="padim"),
    replace(PLAIN, category=ODD),
]
RESULTS = [
    {"status": "done", "input_size": [32, 32], "onnx_mib": 1.0},
    done(0.9, 3.0),
    done(0.7, 5.0),
    done(0.8, 1.0),
    {"status": "failed", "error": "ValueError: <i>no</i>", "log": "log.txt"},
    done(0.5),
]
MEASURED = [
    {
        "category": "parts",
        "runtime": "eager",
        "status": "done",
        "latency": {
            BACKBONE: {
                way: {"median_ms": 2.0, "q25_ms": 1.0, "q75_ms": 3.0, "calls": 9} for way in ("batch 1", "file")
            },
            "vae_attention": {
                "batch 1": {"median_ms": 5.0, "q25_ms": 4.0, "q75_ms": 6.0, "calls": 9},
                "batch 16": {"median_ms": 40.0, "q25_ms": 30.0, "q75_ms": 50.0, "calls": 9},
                "file": {"error": "RuntimeError: broken"},
            },
        },
    },
    {"category": "parts", "runtime": "openvino", "status": "failed", "error": "ended by signal 9"},
]


def test_medians_are_over_the_seeds_that_were_done() -> None:
    summary = make_tables(CELLS, RESULTS, MEASURED)["summary"].set_index(["category", "model"])
    ours = summary.loc["parts", "vae_attention"]
    assert ours["seeds"] == 3
    assert ours["pixel_AUPRO"] == pytest.approx(0.8)
    assert ours[["fit_seconds", "memory_fit_mib"]].tolist() == [3, 3]
    assert ours["onnx_mib"] == pytest.approx(2.0)
    assert ("parts", "padim") not in summary.index
    assert summary.loc["parts", BACKBONE]["onnx_mib"] == pytest.approx(1.0)


def test_latencies_are_compared_with_the_backbone_in_the_same_runtime() -> None:
    tables = make_tables(CELLS, RESULTS, MEASURED)
    table = tables["latencies"]
    rows = table.set_index(["runtime", "model", "measured"])
    assert rows.loc["eager", "vae_attention", "batch 1"]["ratio_to_backbone"] == pytest.approx(2.5)
    assert rows.loc["eager", "vae_attention", "batch 1"]["images_per_second"] == 200
    assert rows.loc["eager", "vae_attention", "batch 16"]["images_per_second"] == 400
    # The backbone was not measured in this way, and the model not in that.
    assert pd.isna(rows.loc["eager", "vae_attention", "batch 16"]["ratio_to_backbone"])
    assert rows.loc["eager", "vae_attention", "file"]["error"] == "RuntimeError: broken"
    assert table[table["runtime"] == "openvino"]["error"].tolist() == ["ended by signal 9"]
    summary = tables["summary"].set_index(["category", "model"])
    assert summary.loc["parts", "vae_attention"]["eager_ratio"] == pytest.approx(2.5)
    assert summary.loc["parts", BACKBONE]["eager_ms"] == pytest.approx(2.0)


def test_results_are_written_and_html_escapes_what_was_given(tmp_path: Path) -> None:
    examples = {
        "path": np.array(["/data/test/<u>/0.png"]),
        "image": np.zeros((1, 8, 8, 3), np.uint8),
        "mask": np.zeros((1, 8, 8), bool),
        "map": np.zeros((1, 8, 8), np.float32),
        "range": np.array([0.0, 1.0]),
    }
    folder = tmp_path / "cells" / CELLS[-1].key
    folder.mkdir(parents=True)
    np.savez(folder / "examples.npz", **examples)
    settings = {"backbone": "net", "layers": ["x"], "image_size": [32], "seeds": [0, 1, 2], "threads": 1}
    description = {"command": f"vae-attention benchmark --categories '{ODD}'", "settings": settings}
    shown = write_results(tmp_path, CELLS, make_tables(CELLS, RESULTS, MEASURED), description)
    assert "0.8" in shown
    assert "ValueError: <i>no</i>" in shown
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert ODD not in page
    assert "&lt;b&gt;x" in page
    assert "<i>no</i>" not in page
    assert "<u>" not in page
    assert "ended by signal 9" in page
    assert page.count("data:image/jpeg") == 3
    assert "http" not in page.replace("http-equiv", "")
    assert len(pd.read_csv(tmp_path / "cells.csv")) == len(CELLS)
    stored = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert stored["machine"]["cores"] >= 1
    assert stored["command"].endswith("'<b>x'")
    assert len(stored["cells"]) == len(CELLS)


def test_nothing_but_failures_is_a_report_too(tmp_path: Path) -> None:
    settings = {"backbone": "net", "layers": ["x"], "image_size": [32], "seeds": [0], "threads": 1}
    tables = make_tables(CELLS[4:5], RESULTS[4:5], [])
    write_results(tmp_path, CELLS[4:5], tables, {"command": "command", "settings": settings})
    assert "padim" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_ours_is_compared_with_the_better_peer_on_its_better_layers() -> None:
    """By hand: three models on two categories; PaDiM ran on two sets of layers, each better in one measure."""
    other = {"layers": ("y",), "own_layers": True}
    names = {"vae_attention": {}, "padim": {}, "padim@y": other, "patchcore": {}}
    cells, results = [], []
    values = {
        ("a", "vae_attention"): (0.9, 0.8, 0.7),
        ("a", "padim"): (0.8, 0.85, 0.5),
        ("a", "padim@y"): (0.95, 0.6, 0.6),
        ("a", "patchcore"): (0.7, 0.7, 0.65),
        ("b", "vae_attention"): (0.9, 0.9, 0.9),
        ("b", "padim"): (0.5, 0.5, 0.5),
        ("b", "padim@y"): (0.4, 0.4, 0.4),
        ("b", "patchcore"): (0.6, 0.9, 0.6),
    }
    for (category, name), scores in values.items():
        cells.append(replace(PLAIN, category=category, model=name.partition("@")[0], **names[name]))
        results.append({**done(0.5), **dict(zip(MAIN, scores, strict=True))})
    tables = make_tables(cells, results, [])
    rows = tables["comparison"].set_index(["category", "model"])
    assert list(rows.loc["a"].index) == ["vae_attention", "padim", "patchcore"]
    assert rows.loc[("a", "padim"), MAIN].tolist() == [0.95, 0.85, 0.6]
    margins, ranks = [f"margin_{name}" for name in MAIN], [f"rank_{name}" for name in MAIN]
    assert rows.loc[("a", "vae_attention"), margins].tolist() == pytest.approx([-0.05, -0.05, 0.05])
    assert rows.loc[("b", "vae_attention"), margins].tolist() == pytest.approx([0.3, 0.0, 0.3])
    assert rows.loc[("a", "padim"), margins].isna().all()
    assert rows.loc[("a", "vae_attention"), ranks].tolist() == [2, 2, 1]
    assert rows.loc[("b", "vae_attention"), ranks].tolist() == [1, 1.5, 1]
    ranking = tables["ranking"].set_index("model")
    assert ranking.loc["vae_attention", "mean_rank"] == pytest.approx((2 + 1 + 2 + 1.5 + 1 + 1) / 6)
    assert ranking.loc["vae_attention", ["worst_margin", "where", "categories"]].tolist() == [
        pytest.approx(-0.05),
        "a",
        2,
    ]
    assert ranking.loc[["padim", "patchcore"], "worst_margin"].isna().all()


def test_peers_alone_are_ranked_without_margins() -> None:
    ranking = make_tables([replace(PLAIN, model="padim")], [done(0.5)], [])["ranking"]
    assert ranking["mean_rank"].tolist() == [1]
    assert ranking["worst_margin"].isna().all()
