"""Ranks and margins of a comparison, by hand."""

from pathlib import Path

import pandas as pd
import pytest
import ranking

from anomalib_vae_attention.common.measures import MAIN


def summary(values: dict[tuple[str, str], tuple[float, float, float]]) -> pd.DataFrame:
    """Make a table of medians up."""
    rows = [dict(zip(("category", "model", *MAIN), (*key, *scores), strict=True)) for key, scores in values.items()]
    return pd.DataFrame(rows)


def test_ours_is_compared_with_the_better_peer_on_its_better_layers(tmp_path: Path) -> None:
    """Three models on two categories; PaDiM ran on two sets of layers, each better in one measure."""
    table = summary({
        ("a", "backbone"): (float("nan"),) * 3,
        ("a", "vae_attention"): (0.9, 0.8, 0.7),
        ("a", "padim"): (0.8, 0.85, 0.5),
        ("a", "padim@y"): (0.95, 0.6, 0.6),
        ("a", "patchcore"): (0.7, 0.7, 0.65),
        ("b", "vae_attention"): (0.9, 0.9, 0.9),
        ("b", "padim"): (0.5, 0.5, 0.5),
        ("b", "padim@y"): (0.4, 0.4, 0.4),
        ("b", "patchcore"): (0.6, 0.9, 0.6),
    })
    table.to_csv(tmp_path / "summary.csv", index=False)
    ranking.main([str(tmp_path)])
    rows = pd.read_csv(tmp_path / "comparison.csv").set_index(["category", "model"])
    assert list(rows.loc["a"].index) == ["vae_attention", "padim", "patchcore"]
    assert rows.loc[("a", "padim"), MAIN].tolist() == [0.95, 0.85, 0.6]
    margins, ranks = [f"margin_{name}" for name in MAIN], [f"rank_{name}" for name in MAIN]
    assert rows.loc[("a", "vae_attention"), margins].tolist() == pytest.approx([-0.05, -0.05, 0.05])
    assert rows.loc[("b", "vae_attention"), margins].tolist() == pytest.approx([0.3, 0.0, 0.3])
    assert rows.loc[("a", "padim"), margins].isna().all()
    assert rows.loc[("a", "vae_attention"), ranks].tolist() == [2, 2, 1]
    assert rows.loc[("b", "vae_attention"), ranks].tolist() == [1, 1.5, 1]
    ranked = pd.read_csv(tmp_path / "ranking.csv").set_index("model")
    assert ranked.loc["vae_attention", "mean_rank"] == pytest.approx((2 + 1 + 2 + 1.5 + 1 + 1) / 6)
    worst = ranked.loc["vae_attention", ["worst_margin", "where", "categories"]].tolist()
    assert worst == [pytest.approx(-0.05), "a", 2]
    assert ranked.loc[["padim", "patchcore"], "worst_margin"].isna().all()


def test_peers_alone_are_ranked_without_margins() -> None:
    ranked = ranking.ranking_table(ranking.comparison_table(summary({("a", "padim"): (0.5, 0.5, 0.5)})))
    assert ranked["mean_rank"].tolist() == [1]
    assert ranked["worst_margin"].isna().all()
