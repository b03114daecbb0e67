"""The command ``vae-attention drift``: whether and since when the share of flagged images has moved."""

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from anomalib_vae_attention.common.argument_checks import command_parser
from anomalib_vae_attention.common.atomic_files import read_json
from anomalib_vae_attention.common.folders import GOOD
from anomalib_vae_attention.common.models import TABLE

from .control_chart import BASELINE, LEVEL, draw, find_change, has_signals, make_chart
from .results import ERROR, RUN

EXIT_DRIFT = 3
EPILOG = f"""
TABLES are predictions.csv and Parquet parts of `vae-attention predict`, or its folders, in the order of the images;
Parquet is sorted by path. Flagged is what is defective or cannot be judged. The first groups say what is normal, or
--expected does. The chart is the p chart of Montgomery, Introduction to Statistical Quality Control, section 7.2, with
exact binomial limits. The exit code is 0, 2 where something is wrong with the arguments, and with --fail_on_drift
{EXIT_DRIFT} where the share has moved.

examples:
  vae-attention drift predictions/predictions.csv
  vae-attention drift days/*/predictions.csv --time modified --expected 0.01 --fail_on_drift
"""


def read_tables(sources: Sequence[Path], time: str | None = None) -> pd.DataFrame:
    """Read tables of predictions in the order of their images.

    Args:
        sources: Tables in CSV or Parquet, or folders of runs.
        time: A column to sort by: a number of nanoseconds since 1970, or a date; the order as it is for ``None``.

    Returns:
        Columns ``label`` and ``when``: the path of each image, or its time.

    Raises:
        FileNotFoundError: If there is no table.
        ValueError: If a table lacks a column.
    """
    columns = ["path", "label", *([time] if time else [])]
    frame = pd.concat([_read(_find_table(source), columns) for source in sources], ignore_index=True)
    if time:
        return frame.assign(when=pd.to_datetime(frame[time])).sort_values("when", kind="stable", ignore_index=True)
    return frame.rename(columns={"path": "when"})


def _find_table(source: Path) -> Path:
    for file in (source, source / TABLE):
        if file.is_file():
            return file
    # Parts are written in whatever order actors finish: they are one table. Beside them may lie a list of the images.
    for folder in (source / "parts", source):
        if any(folder.glob("*.parquet")):
            return folder
    msg = f"{source}: there is no table of predictions there."
    raise FileNotFoundError(msg)


def _read(file: Path, columns: list[str]) -> pd.DataFrame:
    try:
        if file.suffix == ".csv":
            return pd.read_csv(file, usecols=columns, encoding_errors="surrogateescape")
        import pyarrow.dataset

        return pyarrow.dataset.dataset(file).to_table(columns).to_pandas().sort_values("path")
    except ValueError as error:
        msg = f"{file} is no table of predictions with columns {columns}: {str(error).splitlines()[0]}"
        raise ValueError(msg) from error


def run(given: argparse.Namespace) -> bool:
    """Chart, print and draw; return whether the share has moved."""
    frame = read_tables(given.tables, given.time)
    flagged = (frame["label"] != GOOD).to_numpy()
    chart = make_chart(flagged, given.group, given.baseline, given.expected)
    change, groups = find_change(chart), len(chart.counts)
    stepped, signals = change.probability < LEVEL, has_signals(chart)
    draw(chart, change if stepped else None, given.output)
    errors = int((frame["label"] == ERROR).sum())
    source = f"the first {chart.baseline} groups" if chart.baseline else "given"
    low, high = (100 * limit / chart.size for limit in chart.limits)
    print(
        f"{len(frame)} images, {int(flagged.sum())} flagged ({errors} of them cannot be judged); "
        f"{groups} groups of {chart.size}\n"
        f"normal: {100 * chart.centre:.3g} % ({source}); limits of a group: {low:.3g} % to {high:.3g} %\n"
        f"beyond the limits: {chart.outside[chart.baseline :].sum()} of {groups - chart.baseline} groups after that"
    )
    begin = len(frame) - groups * chart.size + change.group * chart.size
    if stepped:
        print(
            f"DRIFTED since image {begin + 1}, {frame['when'][begin]}: {100 * change.share:.3g} % are flagged "
            f"(by chance: p = {change.probability:.1g})"
        )
    elif signals:
        where = ", ".join(str(group + 1) for group in np.flatnonzero(chart.outside)[:10])
        print(f"DRIFTED for a while: more groups are beyond the limits than by chance ({where})")
    else:
        print("no drift: no more than chance explains")
    print(f"chart    {given.output}")
    if stepped or signals:
        table = given.tables[-1]
        told = next((read_json(folder / RUN) for folder in (table, *table.parents) if (folder / RUN).is_file()), None)
        model = shlex.quote(told["model"]) if told else "MODEL"
        print(f"next     vae-attention calibrate {model} NEW_GOOD_IMAGES --false_positive_rate RATE")
    return stepped or signals


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = command_parser(
        "drift", "Chart the share of flagged images over time, and say whether the line has drifted.", EPILOG
    )
    parser.add_argument("tables", nargs="+", type=Path, help="tables of predictions, or folders of them")
    parser.add_argument("--time", help="column to sort by, such as modified (the order as it is)")
    parser.add_argument("--group", type=int, help="images per group (so many that five are flagged)")
    parser.add_argument("--baseline", type=int, help=f"groups that say what is normal ({BASELINE}, or half of them)")
    parser.add_argument("--expected", type=float, help="share of flagged images that is normal, in place of a baseline")
    parser.add_argument("--output", type=Path, default=Path("drift.png"), help="picture (drift.png)")
    parser.add_argument("--fail_on_drift", action="store_true", help=f"exit code {EXIT_DRIFT} if the line drifted")
    given = parser.parse_args(arguments)
    return EXIT_DRIFT if run(given) and given.fail_on_drift else 0
