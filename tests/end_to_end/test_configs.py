"""The config files and anomalib's command do what the documentation says, each in a process and a folder of its own."""

import inspect
import re
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from anomalib.data import Folder
from support import make_engine, run_anomalib, run_command

from anomalib_vae_attention import EmbeddedAD, VaeAttention
from anomalib_vae_attention.arguments import ARGUMENTS, LATENT_DIM

CONFIGS = {
    file.stem: file
    for file in (Path(__file__).parents[2] / "configs").glob("*.yaml")
    # It is no config of `anomalib train`; see benchmark/test_weights.py.
    if file.stem != "benchmark"
}

PARSE = """
import sys

from anomalib.cli import AnomalibCLI

for file in sys.argv[1:]:
    cli = AnomalibCLI(["train", "--config", file], run=False)
    print(file, type(cli.model).__name__, type(cli.datamodule).__name__)
"""


class Run(NamedTuple):
    """A command that has ended well: the folder it ran in, and all it printed."""

    folder: Path
    output: str

    @property
    def metrics(self) -> dict[str, float]:
        """Return the table of test metrics."""
        return {name: float(value) for name, value in re.findall(r"│\s+(\w+_\w+)\s+│\s+([\d.]+)\s+│", self.output)}

    def files(self, pattern: str) -> list[Path]:
        """Return the results whose path matches a pattern, each once, although ``latest`` may be a link to a run."""
        return sorted({file.resolve() for file in (self.folder / "results").rglob(pattern)})

    @property
    def checkpoint(self) -> Path:
        """Return the one checkpoint."""
        (checkpoint,) = self.files("*.ckpt")
        return checkpoint


def run(folder: Path, *command: str | Path) -> Run:
    """Run a command in a folder, without a network, and demand that it ends well."""
    return Run(folder, run_command(folder, *command))


def anomalib(folder: Path, *arguments: str | Path) -> Run:
    """Run anomalib's command likewise."""
    return Run(folder, run_anomalib(folder, *arguments))


def copy_some(source: Path, target: Path, count: int, prefix: str = "") -> None:
    """Copy the first images of a folder."""
    target.mkdir(parents=True, exist_ok=True)
    for file in sorted(source.glob("*.png"))[:count]:
        shutil.copy(file, target / (prefix + file.name))


@pytest.fixture(scope="module")
def pool() -> Iterator[ThreadPoolExecutor]:
    """Run two processes at a time: half of each one's life is spent importing, on one core."""
    with ThreadPoolExecutor(2) as executor:
        yield executor
        executor.shutdown(cancel_futures=True)


@pytest.fixture(scope="module")
def my_parts(embedded: EmbeddedAD, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Lay drawn images out as ``folder.yaml`` says; return the folder to run it in."""
    folder = tmp_path_factory.mktemp("folder")
    drawn, parts = embedded.root / "washer", folder / "datasets" / "my_parts"
    copy_some(drawn / "train" / "good", parts / "good", 60)
    for kind in sorted(folder.name for folder in (drawn / "ground_truth").iterdir()):
        copy_some(drawn / "test" / kind, parts / "defective", 8, prefix=f"{kind}_")
        copy_some(drawn / "ground_truth" / kind, parts / "masks", 8, prefix=f"{kind}_")
    return folder


@pytest.fixture(scope="module")
def runs(pool: ThreadPoolExecutor, my_parts: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Future[Run]]:
    """Start everything that needs no data from elsewhere; the tests wait for what they need."""

    def train_without_masks() -> Run:
        folder = tmp_path_factory.mktemp("without_masks")
        lines = CONFIGS["folder"].read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if "delete this line" not in line]
        assert len(kept) == len(lines) - 1
        (folder / "folder.yaml").write_text("\n".join(kept), encoding="utf-8")
        root = my_parts / "datasets" / "my_parts"
        return anomalib(folder, "train", "--config", "folder.yaml", "--data.init_args.root", root)

    def use_literal(subcommand: str, *arguments: str | Path) -> Run:
        trained = literal.result()
        model = ("--model", "vae_attention", "--ckpt_path", trained.checkpoint)
        return anomalib(tmp_path_factory.mktemp(subcommand), subcommand, *model, *arguments)

    # In this order: two at a time, so the literal command is done before anything that needs its checkpoint.
    literal = pool.submit(anomalib, tmp_path_factory.mktemp("literal"), "train", "--model", "vae_attention")
    folder = tmp_path_factory.mktemp("quickstart")
    return {
        "literal": literal,
        "quickstart": pool.submit(anomalib, folder, "train", "--config", CONFIGS["quickstart"]),
        "folder": pool.submit(anomalib, my_parts, "train", "--config", CONFIGS["folder"]),
        "folder without masks": pool.submit(train_without_masks),
        "predict": pool.submit(use_literal, "predict", "--data", my_parts / "datasets" / "my_parts" / "defective"),
        "torch": pool.submit(use_literal, "export", "--export_type", "torch"),
        "onnx": pool.submit(use_literal, "export", "--export_type", "onnx"),
        "parse": pool.submit(run, my_parts, sys.executable, "-c", PARSE, *CONFIGS.values()),
    }


@pytest.fixture(scope="module")
def mvtec(
    runs: dict[str, Future[Run]],
    pool: ThreadPoolExecutor,
    data_root: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Run:
    """Run ``mvtec.yaml`` as its comment says on a few images of MVTec AD under another category's name."""
    del runs  # They are longer, and have to be started first.
    source, folder = data_root / "mvtec_ad" / "bottle", tmp_path_factory.mktemp("mvtec")
    if not source.is_dir():
        pytest.skip(f"no category bottle of MVTec AD in {data_root}/mvtec_ad")
    copied = folder / "DIR" / "cable"
    copy_some(source / "train" / "good", copied / "train" / "good", 12)
    copy_some(source / "test" / "good", copied / "test" / "good", 4)
    copy_some(source / "test" / "broken_large", copied / "test" / "broken_large", 4)
    copy_some(source / "ground_truth" / "broken_large", copied / "ground_truth" / "broken_large", 4)
    overrides = ("--data.init_args.root", "DIR", "--data.init_args.category", "cable")
    return pool.submit(anomalib, folder, "train", "--config", CONFIGS["mvtec"], *overrides).result()


@pytest.mark.parametrize("name", CONFIGS)
def test_model_arguments_shown_are_all_there_are_with_their_defaults(name: str) -> None:
    shown = yaml.safe_load(CONFIGS[name].read_text(encoding="utf-8"))["model"]["init_args"]
    parameters = inspect.signature(VaeAttention).parameters
    ours = {argument for argument in ARGUMENTS if "feature" in ARGUMENTS[argument].vaes} - {"input_size"}
    defaults = {argument: parameters[argument].default for argument in ours} | {"latent_dim": LATENT_DIM["feature"]}
    components = {"post_processor", "evaluator", "visualizer"}
    shown = {argument: value for argument, value in shown.items() if argument not in components}
    assert {**shown, "layers": tuple(shown["layers"])} == defaults


@pytest.mark.parametrize("name", ["literal", "quickstart"])
def test_first_run_needs_nothing_and_leaves_everything(name: str, runs: dict[str, Future[Run]]) -> None:
    trained = runs[name].result()
    assert "Drew the embedded data set, category 'washer'" in trained.output
    assert "its images are drawn, not real" in trained.output
    assert trained.checkpoint.stat().st_size > 0
    assert len(trained.files("images/**/*.png")) == 44
    assert set(trained.metrics) == {"image_AUROC", "image_F1Score", "pixel_AUROC", "pixel_F1Score"}
    assert trained.metrics["image_AUROC"] > 0.9
    assert trained.metrics["pixel_AUROC"] > 0.9


def test_mvtec_with_overrides_from_the_command_line(mvtec: Run) -> None:
    assert mvtec.metrics["image_AUROC"] > 0.9
    assert mvtec.metrics["pixel_AUROC"] > 0.9
    assert mvtec.metrics["pixel_AUPRO"] > 0.8
    assert "cable" in mvtec.checkpoint.parts
    assert len(mvtec.files("images/**/*.png")) == 8


def test_folder_with_masks(runs: dict[str, Future[Run]]) -> None:
    trained = runs["folder"].result()
    assert trained.metrics["image_AUROC"] > 0.9
    assert trained.metrics["pixel_AUROC"] > 0.9
    assert trained.metrics["pixel_AUPRO"] > 0.7
    # Half of the 12 good and the 32 defective images choose the thresholds.
    assert len(trained.files("images/**/*.png")) == 22


def test_folder_without_masks_is_scored_by_image(runs: dict[str, Future[Run]]) -> None:
    trained = runs["folder without masks"].result()
    assert set(trained.metrics) == {"image_AUROC", "image_F1Score"}
    assert trained.metrics["image_AUROC"] > 0.9
    assert len(trained.files("images/**/*.png")) == 22


@pytest.mark.parametrize("name", ["quickstart", "folder", "folder without masks"])
def test_checkpoints_work_under_the_defaults(
    name: str, runs: dict[str, Future[Run]], my_parts: Path, tmp_path: Path
) -> None:
    """Prediction, test, export and explanation take a config's checkpoint, whatever metrics it was trained with."""
    checkpoint, root = runs[name].result().checkpoint, my_parts / "datasets" / "my_parts"
    model, engine = VaeAttention(visualizer=False), make_engine(tmp_path)
    batches = engine.predict(model=model, ckpt_path=checkpoint, data_path=root / "defective")
    assert sum(len(batch.pred_score) for batch in batches) == 32
    data = Folder(name="parts", root=root, normal_dir="good", abnormal_dir="defective", num_workers=0)
    (result,) = make_engine(tmp_path).test(
        model=VaeAttention(visualizer=False), datamodule=data, ckpt_path=checkpoint, verbose=False
    )
    assert result["image_AUROC"] > 0.9
    assert VaeAttention.load_from_checkpoint(checkpoint, map_location="cpu").eval().to_torch(tmp_path).is_file()


def test_predict_makes_a_heat_map_of_each_image_of_a_folder(runs: dict[str, Future[Run]]) -> None:
    assert len(runs["predict"].result().files("images/**/*.png")) == 32


def test_export_as_torch(runs: dict[str, Future[Run]]) -> None:
    (exported,) = runs["torch"].result().files("*.pt")
    assert exported.stat().st_size > 0


def test_export_as_onnx(runs: dict[str, Future[Run]]) -> None:
    onnx = pytest.importorskip("onnx")
    (exported,) = runs["onnx"].result().files("*.onnx")
    onnx.checker.check_model(exported)


def test_every_config_is_parsed(runs: dict[str, Future[Run]]) -> None:
    output = runs["parse"].result().output
    data = {"quickstart": "EmbeddedAD", "mvtec": "MVTecAD", "folder": "Folder"}
    assert set(CONFIGS) == set(data)
    for name, file in CONFIGS.items():
        assert f"{file} VaeAttention {data[name]}" in output
