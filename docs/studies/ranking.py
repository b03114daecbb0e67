"""Ranks of models and our margins over several categories: ``python docs/studies/ranking.py results/benchmark``.

From the folder that ``vae-attention benchmark`` has written to. There it writes ``comparison.csv``, our margin to the
better peer per category and measure, and ``ranking.csv``, mean ranks and worst margins.
"""

import argparse
from pathlib import Path

import pandas as pd

from anomalib_vae_attention.benchmark.plan import BACKBONE, OURS
from anomalib_vae_attention.benchmark.tables import KEYS
from anomalib_vae_attention.common.atomic_files import replacing
from anomalib_vae_attention.common.measures import MAIN


def comparison_table(summary: pd.DataFrame) -> pd.DataFrame:
    """Put ours beside the better peer, per category.

    Args:
        summary: The table of medians, ``summary.csv``.

    Returns:
        A row per category and model: the main measures; ``rank_<measure>`` within the category, 1 for the best; and for
        ours ``margin_<measure>`` to the best peer. A peer that ran on several sets of layers is one row, which has the
        better of them in each measure.
    """
    models = summary[summary["model"] != BACKBONE]
    plain = models["model"].map(lambda name: name.partition("@")[0])
    is_ours = plain.map(lambda name: name.partition(":")[0] == OURS).astype(bool)
    table = models.assign(model=models["model"].where(is_ours, plain), ours=is_ours)
    table = table.groupby([*KEYS, "ours"], sort=False)[MAIN].max().reset_index("ours")
    best = table.loc[~table["ours"], MAIN].groupby("category").max().reindex(table.index.get_level_values("category"))
    margins = (table[MAIN] - best.to_numpy()).where(table["ours"])
    ranks = table.groupby("category")[MAIN].rank(ascending=False)
    return table[MAIN].join(ranks.add_prefix("rank_")).join(margins.add_prefix("margin_")).reset_index()


def ranking_table(comparison: pd.DataFrame) -> pd.DataFrame:
    """Rank the models over all categories, from :func:`comparison_table`.

    Returns:
        A row per model, the best first: number of ``categories``, mean ranks, and of ours the worst margins, the worst
        of all and ``where`` it is.
    """
    by_model = comparison.groupby("model", sort=False)
    ranks, margins = [f"rank_{name}" for name in MAIN], [f"margin_{name}" for name in MAIN]
    table = by_model[ranks].mean()
    table.insert(0, "categories", by_model.size())
    table.insert(1, "mean_rank", table[ranks].mean(axis=1))
    table = table.join(by_model[margins].min().add_prefix("worst_"))
    table["worst_margin"] = table[[f"worst_{name}" for name in margins]].min(axis=1)
    places = comparison.set_index(KEYS)[margins].min(axis=1).dropna()
    lowest = places.groupby("model").idxmin().map(lambda place: place[0])
    return table.assign(where=lowest.astype(object)).sort_values("mean_rank", kind="stable").reset_index()


def main(arguments: list[str] | None = None) -> None:
    """Print both tables and write them; the arguments are those of the command line by default."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="output of vae-attention benchmark")
    folder: Path = parser.parse_args(arguments).folder
    comparison = comparison_table(pd.read_csv(folder / "summary.csv"))
    for name, table in (("comparison", comparison), ("ranking", ranking_table(comparison))):
        with replacing(folder / f"{name}.csv") as temporary:
            table.to_csv(temporary, index=False)
        print(f"{table.round(4).to_string(index=False, na_rep='-')}\n\nWritten to {folder / f'{name}.csv'}\n")


if __name__ == "__main__":
    main()
