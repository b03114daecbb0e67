"""The engine on Ray: the local engine's rows, each image once, whatever is lost or interrupted."""

import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from anomalib_vae_attention import cli

pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="Ray comes with the extra ray")

CLUSTER = """
import sys, ray
context = ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
print(context.address_info["gcs_address"], flush=True)
sys.stdin.read()
"""
ACTOR = b"ray::MapWorker(MapBatches(Judge))"
IMAGES = 24


@pytest.fixture(scope="module", autouse=True)
def environment() -> Iterator[None]:
    """Set what Ray reads when it is imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", uuid.uuid4().hex)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        # By default workers get a priority lower by 15, which starves them beside other tests.
        patch.setenv("RAY_worker_niceness", "0")
        yield


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Start a cluster of one machine, which several commands use."""
    command = [sys.executable, "-c", CLUSTER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process.stdout.readline().strip()
        process.communicate()


@pytest.fixture(scope="module")
def images(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Vary a few images, in folders and two sizes, with one that cannot be read."""
    folder = tmp_path_factory.mktemp("images")
    sources = sorted((tiny_root / "parts" / "washer" / "test").rglob("*.png"))
    random = np.random.default_rng(0)
    for index in range(IMAGES):
        source = sources[index % len(sources)]
        target = folder / ("good" if source.parent.name == "good" else "ng") / f"{index:02}.png"
        target.parent.mkdir(exist_ok=True)
        pixels = np.asarray(Image.open(source).convert("RGB"), np.int16)[: 96 - 8 * (index % 5 == 0)]
        noisy = (pixels + random.integers(-5, 6, pixels.shape)).clip(0, 255)
        if target.parent.name == "ng":
            noisy[30:60, 40:70] = random.integers(0, 256, (30, 30, 3))
        Image.fromarray(noisy.astype(np.uint8)).save(target)
    (folder / "good" / "cut.png").write_bytes(target.read_bytes()[:300])
    return folder


def predict(*arguments: object) -> int:
    return cli.main(["predict", *map(str, arguments)])


def parts(folder: Path) -> pd.DataFrame:
    """Read the table of a run, which names each image once."""
    frame = pd.read_parquet(folder / "parts").set_index("path", verify_integrity=True).sort_index()
    return frame.astype({"error": str, "truth": str})


def kill_an_actor(done: Path, killed: list[int]) -> None:
    """Kill a process that holds the model, when the first part of the table is there."""
    end = time.monotonic() + 300
    while not killed and time.monotonic() < end:
        time.sleep(0.05)
        if any(done.glob("*.parquet")):
            for process in Path("/proc").glob("[0-9]*"):
                try:
                    found = (process / "cmdline").read_bytes().startswith(ACTOR)
                except OSError:
                    continue
                if found:
                    os.kill(int(process.name), signal.SIGKILL)
                    killed.append(int(process.name))
                    return


def test_the_local_engines_rows_though_an_actor_is_killed(
    checkpoint: Path, images: Path, address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Then more images come in, of which alone rows are added; and another model is refused."""
    out, killed = tmp_path / "ray", []
    on_ray = ("--engine", "ray", "--address", address, "--actors", 2, "--output", out)
    thread = threading.Thread(target=kill_an_actor, args=(out / "done", killed), daemon=True)
    thread.start()
    assert predict(checkpoint, images, *on_ray, "--batch_size", 4, "--fail_on_defect") == 3
    assert killed
    thread.join()
    printed = capsys.readouterr().out
    assert predict(checkpoint, images, "--output", tmp_path / "local") == 0
    expected = pd.read_csv(tmp_path / "local" / "predictions.csv", keep_default_na=False, na_values={"score": ""})
    expected = expected.set_index("path").sort_index()
    found = parts(out)
    # Ray says on the output, too, that a worker was killed.
    assert set(capsys.readouterr().out.splitlines()[:2]) <= set(printed.splitlines())
    assert found.index.tolist() == expected.index.tolist()
    assert len(found) == IMAGES + 1
    assert {"good", "defective", "error"} == set(found["label"])
    np.testing.assert_allclose(found["score"], expected["score"], rtol=0, atol=1e-6)
    for column in set(expected.columns) - {"score"}:
        values = pd.to_numeric(expected[column]) if column.startswith("defect") else expected[column]
        assert found[column].fillna(-1).tolist() == values.fillna(-1).tolist(), column

    before = {file: file.stat().st_mtime_ns for file in (out / "parts").iterdir()}
    # As a run that was cut off between a part and its commit leaves it: the part is written again.
    committed = sorted((out / "done").glob("*.parquet"))[0]
    committed.rename(committed.with_name(f"{committed.stem}.pending.parquet"))
    (again,) = [file for file in before if file.name.startswith(committed.stem)]
    more = tmp_path / "list.csv"
    names = [*images.rglob("*.png"), images / "gone.png"]
    more.write_text("\n".join(["path", *map(str, names)]), encoding="utf-8")
    assert predict(checkpoint, more, *on_ray) == 0
    assert len(parts(out)) == IMAGES + 2
    kept = {file: file.stat().st_mtime_ns for file in before if file.exists()}
    assert kept == {file: at for file, at in before.items() if file != again}

    capsys.readouterr()
    assert predict(checkpoint, more, *on_ray, "--device", "cuda") == 2
    assert "--device cuda: there is no GPU that Ray knows of" in capsys.readouterr().err.splitlines()[0]
    torch.save({**torch.load(checkpoint, weights_only=True), "epoch": 5}, tmp_path / "other.ckpt")
    assert predict(tmp_path / "other.ckpt", images, *on_ray) == 2
    assert "predictions of another model" in capsys.readouterr().err
    assert predict(checkpoint, images, "--output", out) == 2
    assert "predictions of the ray engine" in capsys.readouterr().err


def test_a_parquet_of_bytes(checkpoint: Path, images: Path, address: str, tmp_path: Path) -> None:
    """Files of a folder, named by what is not a path on this machine."""
    some = sorted(images.rglob("*.png"))[:10]
    frame = pd.DataFrame({
        "path": [f"camera/{file.parent.name}/{file.name}" for file in some],
        "bytes": [file.read_bytes() for file in some],
        "line": 3,
    })
    (tmp_path / "given").mkdir()
    frame[:6].to_parquet(tmp_path / "given" / "0.parquet")
    frame[6:].to_parquet(tmp_path / "given" / "1.parquet")
    on_ray = ("--engine", "ray", "--address", address, "--actors", 1, "--output", tmp_path / "out")
    assert predict(checkpoint, tmp_path / "given", *on_ray) == 0
    predict(checkpoint, *some, "--output", tmp_path / "local")
    found, expected = parts(tmp_path / "out"), pd.read_csv(tmp_path / "local" / "predictions.csv")
    assert found.index.tolist() == sorted(frame["path"])
    expected = expected.set_index(expected["name"].radd("camera/")).sort_index()
    np.testing.assert_allclose(found["score"], expected["score"], rtol=0, atol=1e-6)
    assert found["truth"].tolist() == expected["truth"].tolist()
    assert found["bytes"].tolist() == expected["bytes"].tolist()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["images", "--address", "127.0.0.1:1"], "--address 127.0.0.1:1: no Ray cluster answers there"),
        (["images", "--address", "nowhere"], "--address nowhere: no Ray cluster answers there"),
        (["images", "--actors", "0"], "--actors must be at least 1"),
        (["images", "twice.parquet"], "twice.parquet: a Parquet of images is named alone"),
        (["twice.parquet"], "1 of its 2 paths are missing or named more than once"),
        (["nameless.parquet"], "it has no column `path`"),
        (["text.parquet"], "cannot be read as Parquet"),
        (["nothing"], "there is no image there"),
        (["images"], "is not a model of OpenVINO"),
    ],
)
def test_errors_name_what_is_wrong(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("images").mkdir()
    Path("model.xml").touch()
    Image.new("RGB", (8, 8)).save("images/1.png")
    pd.DataFrame({"path": ["a.png", "a.png"]}).to_parquet("twice.parquet")
    pd.DataFrame({"file": ["a.png"]}).to_parquet("nameless.parquet")
    Path("text.parquet").write_text("path", encoding="utf-8")
    assert predict("model.xml", *arguments, "--engine", "ray") == 2
    shown = capsys.readouterr().err
    assert message in shown.splitlines()[0]
    assert "Traceback" not in shown
    assert not Path("predictions").exists()


def test_arguments_of_ray_need_ray(capsys: pytest.CaptureFixture[str]) -> None:
    assert predict("model.xml", "images", "--actors", 2) == 2
    assert "--actors is an argument of --engine ray" in capsys.readouterr().err
