"""The folder of a run of predictions: its table, its pictures, and where an interrupted one goes on."""

import csv
import hashlib
import io
from collections import Counter
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import filelock

from anomalib_vae_attention.common.atomic_files import explaining, read_json, replacing, write_json
from anomalib_vae_attention.common.folders import DEFECTIVE, GOOD
from anomalib_vae_attention.common.models import TABLE

from .inputs import Input

REPORT, RUN = "report.html", "run.json"
OVERLAYS, PARTS = "pictures", "report_files"
"""Folders of what people look at, and of what the report is made of."""
COLUMNS = (
    "path",
    "score",
    "label",
    "threshold",
    "defect_x",
    "defect_y",
    "defect_width",
    "defect_height",
    "defect_area",
    "truth",
    "error",
    "name",
    "bytes",
    "modified",
)
"""Columns of the table: label is good, defective or error; pixels count from the left top corner; the last three are
what the run is resumed by."""
ERROR = "error"


class Slips(NamedTuple):
    """What verdicts got wrong of images whose truth is known: how many, and of how many."""

    missed: int
    defective: int
    alarms: int
    good: int

    @classmethod
    def of(cls, counts: Counter[tuple[str, str]]) -> "Slips":
        """Count them, from the number of images of each truth and label; errors are neither."""
        missed, alarms = counts[DEFECTIVE, GOOD], counts[GOOD, DEFECTIVE]
        return cls(missed, missed + counts[DEFECTIVE, DEFECTIVE], alarms, alarms + counts[GOOD, GOOD])

    def __str__(self) -> str:
        """Say it in words."""
        return (
            f"missed: {self.missed} of {self.defective} defective images; "
            f"false alarms: {self.alarms} of {self.good} good images"
        )


def fingerprint(file: Path) -> str:
    """Return the SHA-256 of a model's file, and of the weights beside it."""
    digest = hashlib.sha256()
    for part in (file, file.with_suffix(".bin")):
        if part.is_file():
            digest.update(part.read_bytes())
    return digest.hexdigest()


@contextmanager
def claim(folder: Path, model: Path, engine: str = "local") -> Generator[None, None, None]:
    """Make a folder, which is made if it is missing, one model's and engine's own, and keep other processes out.

    Raises:
        OSError: If the folder cannot be written.
        ValueError: If the folder holds something else, or another process writes to it.
    """
    told = {"model": str(model.resolve()), "sha256": fingerprint(model), "engine": engine}
    with explaining(f"--output {folder} cannot be written", "name a folder that can, or make room there"):
        before = read_json(folder / RUN)
        if before is None and folder.exists() and any(folder.iterdir()):
            msg = f"--output {folder}: the folder holds files that are no predictions. Choose another."
            raise ValueError(msg)
        if before is not None and not same_run(before, told):
            same_model = before["sha256"] == told["sha256"]
            of = f"the {before.get('engine', 'local')} engine" if same_model else "another model"
            msg = f"--output {folder}: it holds predictions of {of}, {before['model']}. Choose another folder."
            raise ValueError(msg)
        write_json(folder / RUN, told)
        try:
            held = filelock.FileLock(folder / ".lock", timeout=0).acquire()
        except filelock.Timeout as error:
            msg = f"--output {folder}: another process writes to it."
            raise ValueError(msg) from error
        with held:
            yield


def same_run(before: dict[str, str], told: dict[str, str]) -> bool:
    """Say whether two runs are of one model and one engine."""
    return before["sha256"] == told["sha256"] and before.get("engine", "local") == told["engine"]


class Results:
    """The table of a run in a folder, which :func:`claim` has made its own: an interrupted one is continued."""

    def __init__(self, folder: Path) -> None:
        self.table = folder / TABLE
        self.rows = {row["path"]: row for row in read_rows(self.table)}
        # The rest of a line that a kill cut off must not become part of the next one.
        self._rewrite()

    def is_done(self, one: Input) -> bool:
        """Say whether an image has its row, and is still the file that it was."""
        row = self.rows.get(str(one.path))
        return row is not None and (row["bytes"], row["modified"]) == stamp(one.path)

    def named(self, inputs: Iterable[Input]) -> list[Input]:
        """Give images names that no other image of the folder has."""
        taken = {row["name"]: path for path, row in self.rows.items()}
        chosen = []
        for one in inputs:
            name, count = one.name, 1
            while taken.setdefault(name, str(one.path)) != str(one.path):
                count += 1
                name = f"{count}/{one.name}"
            chosen.append(one._replace(name=name))
        return chosen

    def append(self, rows: Iterable[dict[str, Any]]) -> None:
        """Add rows to the table."""
        added = {row["path"]: row for row in rows}
        self.rows |= added
        _write(self.table, "a", added.values())

    def finish(self) -> dict[str, dict[str, Any]]:
        """Write the table whole, a row per image, and return its rows by path."""
        self._rewrite()
        return self.rows

    def _rewrite(self) -> None:
        with replacing(self.table) as temporary:
            _write(temporary, "w", [dict(zip(COLUMNS, COLUMNS, strict=True)), *self.rows.values()])


def _write(table: Path, mode: str, rows: Iterable[dict[str, Any]]) -> None:
    with table.open(mode, encoding="utf-8", errors="surrogateescape", newline="") as file:
        csv.DictWriter(file, COLUMNS, lineterminator="\n").writerows(rows)


def read_rows(table: Path) -> list[dict[str, Any]]:
    """Read the whole rows of a table of predictions, the later one of an image that has several."""
    if not table.is_file():
        return []
    text = table.read_bytes().decode("utf-8", errors="surrogateescape")
    rows = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1], newline=""))
    return [_typed(row) for row in rows if None not in row and None not in row.values()]


def _typed(row: dict[str, Any]) -> dict[str, Any]:
    numbers = {name: float(row[name]) if row[name] else None for name in ("score", "threshold")}
    whole = [name for name in COLUMNS if name.startswith("defect_")] + ["bytes", "modified"]
    return {**row, **numbers, **{name: int(row[name]) if row[name] else None for name in whole}}


def stamp(file: Path) -> tuple[int, int]:
    """Return the size in bytes and the time of change, in nanoseconds, of a file; zeros where there is none."""
    try:
        status = file.stat()
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns
