"""Accuracy against costs."""

from pathlib import Path

import pandas as pd
import pytest
from benchmark_plots import accuracy_plot
from matplotlib.figure import Figure

from anomalib_vae_attention.common.measures import MAIN


def test_axes_of_accuracy_end_at_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a model at 1 is drawn whole."""
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_args, **_options: drawn.append(figure))
    columns = {"category": "parts", "model": ["a", "b"], "fit_seconds": [1.0, 2.0]}
    summary = pd.DataFrame({**columns, **{measure: [0.5, 1.0] for measure in MAIN}})
    assert accuracy_plot(summary, "fit_seconds", "seconds", tmp_path / "a.png")
    for axes in drawn[0].axes:
        assert axes.get_ylim()[1] == 1
        assert not any(line.get_clip_on() for line in axes.lines)
