"""Predictions on all cores of one or many machines: Ray Data deals images out to actors that hold the model."""

import logging
import os
import socket
import sys
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pds
import pyarrow.parquet as pq
import ray
import ray.data
from ray.data.checkpoint import CheckpointConfig

from anomalib_vae_attention.common.argument_checks import require_whole
from anomalib_vae_attention.common.machine import cores

from .inputs import PARQUET, Input, find_inputs, in_batches, read, truth_of
from .models import load_model, require_device
from .results import COLUMNS, ERROR, claim
from .run import judge_batch

PARTS, DONE, INPUTS = "parts", "done", "inputs.parquet"
"""In the folder of a run: its table in parts, which paths have their rows, and the images where a folder was named."""
PATH, BYTES = "path", "bytes"
"""Columns of a Parquet of images: the name of each, once, and, where it is not to be read from there, its content."""
ROWS_PER_PART = {PATH: 512, BYTES: 64}
"""Most images that an actor takes at a time, and that are judged again where it is lost; so many are a part."""
NUMBERS = {"score": pa.float64(), "threshold": pa.float64(), "bytes": pa.int64(), "modified": pa.int64()}
SCHEMA = pa.schema([
    (name, pa.int64() if name.startswith("defect_") else NUMBERS.get(name, pa.string())) for name in COLUMNS
])
SPARE = 2
"""Cores, most of the time idle, for the processes that read names and write rows."""
SECONDS = 5
"""How long a machine may take to answer."""


class Judge:
    """An actor: a process that holds the model and takes rows of paths or bytes to rows of predictions.

    ``device`` is torch's, for a checkpoint; paths are relative to ``base``.
    """

    def __init__(self, model: str, device: str, base: str, batch_size: int) -> None:
        # One thread, because there is an actor per core.
        self._model = load_model(Path(model), device, threads=1)
        self._base, self._batch_size = base, batch_size
        self._truths: dict[Path, bool | None] = {}

    def __call__(self, images: pa.Table) -> pa.Table:
        """Judge images; what cannot be judged is an error in its row."""
        inputs = [self._input(row) for row in images.to_pylist()]
        batches = in_batches(map(read, inputs), self._batch_size)
        judged = {one.path: row for batch in batches for row, one, _, _ in judge_batch(self._model, batch)}
        rows = [judged[one.path] for one in inputs]
        return pa.Table.from_pylist(rows, SCHEMA).set_column(0, SCHEMA.field(PATH), images[PATH].cast(pa.string()))

    def _input(self, row: dict[str, Any]) -> Input:
        path = Path(self._base, row[PATH])
        if path.parent not in self._truths:
            self._truths[path.parent] = truth_of(path.parent)
        return Input(path, row.get("name", row[PATH]), self._truths[path.parent], content=row.get(BYTES))


def predict_on_ray(
    model: Path,
    sources: Sequence[str],
    folder: Path,
    *,
    address: str | None = None,
    actors: int | None = None,
    device: str | None = None,
    batch_size: int = 8,
) -> tuple[Counter[tuple[str, str]], list[str]]:
    """Predict images that have no row yet in a folder, and write its table in parts.

    A lost actor is started again, with the images that it held. Ray Data's checkpoints tell which images have their
    rows: a run that is started again goes on with the others.

    Args:
        model: A checkpoint or an export.
        sources: As :func:`.find_inputs` takes them, or one Parquet, a file or a folder of files, with a column
            ``path`` and, for images that are not read from there, ``bytes``.
        folder: Where the table is written; on more than one machine a folder that all of them see.
        address: A cluster, ``host:port`` or ``ray://host:port``; this machine for ``None``.
        actors: How many, one per core or, for a checkpoint, per GPU for ``None``.
        device: ``"cpu"`` or ``"cuda"`` for a checkpoint; a GPU where there is one for ``None``.
        batch_size: Most images of a batch.

    Returns:
        How many rows there are in the folder of each truth and label, and a few of its errors.

    Raises:
        OSError: If the cluster cannot be reached, or there is no image.
        ValueError: If the folder belongs to another run, the images are not named once each, there is no such device,
            or the run failed.
    """
    if actors is not None:
        require_whole("--actors", actors, 1)
    _reach(address)
    given, folder = _find_parquet(sources), folder.resolve()
    inputs = [] if given else find_inputs(sources)
    total, most = _check(given) if given else (len(inputs), ROWS_PER_PART[PATH])
    # Here for its errors only: a model that does not load is told before anything is started.
    file = load_model(model, "cpu").file.resolve()
    require_device(file, device)
    with claim(folder, file, "ray"):
        images = given or _write(inputs, folder / INPUTS)
        base = images if images.is_dir() else images.parent
        _connect(address, actors)
        try:
            gpus = _gpus(file, device)
            count = actors or gpus or max(1, int(ray.cluster_resources()["CPU"]) - SPARE)
            _configure(folder)
            dataset = ray.data.read_parquet(str(images), override_num_blocks=1 if given is None else None)
            dataset.repartition(target_num_rows_per_block=min(most, -(-total // (4 * count)))).map_batches(
                Judge,
                # Ray shows each actor the one GPU that is its own.
                fn_constructor_args=(str(file), "cuda" if gpus else "cpu", str(base), batch_size),
                batch_size=batch_size,
                batch_format="pyarrow",
                compute=ray.data.ActorPoolStrategy(size=count),
                num_cpus=1,
                num_gpus=1 if gpus else 0,
            ).write_parquet(str(folder / PARTS), mode="append")
        except ray.exceptions.RayError as error:
            raise ValueError(_reason(error)) from error
        finally:
            ray.shutdown()
    return _summary(folder, images)


def _connect(address: str | None, actors: int | None) -> None:
    """Join a cluster, or start one on this machine, with a core for each actor and some for what is light."""
    # It would be sent to Ray's makers.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address is None:
        ray.init("local", num_cpus=(actors or cores()) + SPARE, include_dashboard=False, **quiet)
        return
    try:
        ray.init(address, **quiet)
    except (OSError, RuntimeError) as error:
        msg = (
            f"--address {address}: no Ray cluster takes us in there: {error}. Where it has a token, set RAY_AUTH_TOKEN "
            "to what `ray get-auth-token` prints on its head."
        )
        raise OSError(msg) from error


def _gpus(file: Path, device: str | None) -> int:
    """Return how many GPUs of the cluster a model is computed on; a ``ValueError`` where some are asked for in vain."""
    found = int(ray.cluster_resources().get("GPU", 0)) if file.suffix == ".ckpt" and device != "cpu" else 0
    if device not in {None, "cpu"} and not found:
        msg = f"--device {device}: there is no GPU that Ray knows of. Leave it out to judge on processors."
        raise ValueError(msg)
    return found


def _reach(address: str | None) -> None:
    """Raise an ``OSError`` if nothing answers at an address: Ray would try for minutes, and then end the process."""
    if address is None:
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), SECONDS).close()
    except (OSError, ValueError) as error:
        msg = f"--address {address}: no Ray cluster answers there ({error}). Start one with `ray start --head`."
        raise OSError(msg) from error


def _configure(folder: Path) -> None:
    """Let Ray Data note in a folder what is done, and be quiet."""
    context = ray.data.DataContext.get_current()
    context.checkpoint_config = CheckpointConfig(PATH, str(folder / DONE), delete_checkpoint_on_success=False)
    context.enable_progress_bars = sys.stderr.isatty()
    # The newer reader starts 32 processes to look at one file.
    context.use_datasource_v2 = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", "The minimum number of concurrent actors")


def _find_parquet(sources: Sequence[str]) -> Path | None:
    """Return the Parquet that is named, ``None`` where there are other sources."""
    paths = [Path(source).expanduser() for source in sources]
    found = [path for path in paths if path.suffix == PARQUET or (path.is_dir() and any(path.glob("*.parquet")))]
    if found and len(paths) > 1:
        msg = f"{found[0]}: a Parquet of images is named alone; put several files in one folder."
        raise ValueError(msg)
    return found[0].resolve() if found else None


def _write(inputs: Sequence[Input], file: Path) -> Path:
    """Write the paths and names of images to a Parquet, and return it."""
    try:
        table = pa.table({PATH: [str(one.path) for one in inputs], "name": [one.name for one in inputs]})
    except UnicodeEncodeError as error:
        bad = str(error.object).encode(errors="replace").decode()
        msg = f"{bad}: Parquet holds names in UTF-8 only. Rename it, or take --engine local."
        raise ValueError(msg) from error
    pq.write_table(table, file)
    return file


def _check(images: Path) -> tuple[int, int]:
    """Return how many images a Parquet names, and most of a part, by whether it holds paths or bytes."""
    try:
        dataset = pds.dataset(images)
    except (OSError, pa.ArrowInvalid) as error:
        msg = f"{images} cannot be read as Parquet: {error}"
        raise OSError(msg) from error
    if PATH not in dataset.schema.names:
        msg = f"{images}: it has no column `{PATH}`, which names each image, but {dataset.schema.names}."
        raise ValueError(msg)
    paths = dataset.to_table([PATH])[PATH]
    if len(paths) == 0:
        msg = f"{images}: it names no image."
        raise ValueError(msg)
    if (surplus := len(paths) - pc.count_distinct(paths, mode="only_valid").as_py()) > 0:
        msg = f"{images}: {surplus} of its {len(paths)} paths are missing or named more than once."
        raise ValueError(msg)
    return len(paths), ROWS_PER_PART[BYTES if BYTES in dataset.schema.names else PATH]


def _reason(error: BaseException) -> str:
    """Return what an error in an actor says in the end."""
    lines = [line for line in str(getattr(error, "cause", None) or error).splitlines() if line.strip()]
    return f"--engine ray: {lines[-1].strip()}"


def _summary(folder: Path, images: Path) -> tuple[Counter[tuple[str, str]], list[str]]:
    """Count the rows of a run by truth and label."""
    table = pds.dataset(folder / PARTS)
    groups = table.to_table(["truth", "label"]).group_by(["truth", "label"]).aggregate([([], "count_all")])
    counts = Counter({(row["truth"], row["label"]): row["count_all"] for row in groups.to_pylist()})
    if (missing := pds.dataset(images).count_rows() - counts.total()) > 0:
        msg = f"{folder}: {missing} images have no row. Give the command again."
        raise ValueError(msg)
    errors = table.head(5, columns=["error"], filter=pc.field("label") == ERROR)
    return counts, errors["error"].to_pylist()
