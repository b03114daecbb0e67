"""A trained model on the line: examples of the documentation, other thresholds, files that are not what they seem."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import int8_onnx
import numpy as np
import onnx
import onnx_runtime
import open_vino
import openvino
import openvino_inferencer
import pytest
import torch
import torch_inferencer
import traced
from anomalib.data.utils import read_image
from lightning.pytorch import seed_everything
from PIL import Image
from support import SIZE, make_engine, small_model

from anomalib_vae_attention import EmbeddedAD, NormalQuantile, VaeAttention, cli
from anomalib_vae_attention.anomalib_support.openvino_ir import quantise_backbone
from anomalib_vae_attention.common.images import read_upright


class Line(NamedTuple):
    """What is on the line: a checkpoint and its exports, and a folder of good images."""

    checkpoint: Path
    onnx: Path
    openvino: Path
    torch: Path
    good: Path


@pytest.fixture(scope="module")
def line(small_data: EmbeddedAD, tmp_path_factory: pytest.TempPathFactory) -> Line:
    """Fit a small model with thresholds for a rate, and export it, the size of images left open."""
    root = tmp_path_factory.mktemp("line")
    seed_everything(0)
    model, engine = small_model(post_processor=NormalQuantile(0.4, 0.3, held_out=0.4)), make_engine(root)
    engine.fit(model=model, datamodule=small_data)
    checkpoint = Path(engine.best_model_path)
    exports = [export(root) for export in (model.to_onnx, model.to_openvino, model.to_torch)]
    return Line(checkpoint, *exports, small_data.root / "washer" / "test" / "good")


def judge(checkpoint: Path, image: torch.Tensor) -> tuple[float, bool, np.ndarray]:
    """Return score, label and map of an image in eager PyTorch."""
    with torch.no_grad():
        result = VaeAttention.load_from_checkpoint(checkpoint).eval()(image)
    return result.pred_score.item(), result.pred_label.item(), result.anomaly_map.squeeze().numpy()


def judge_file(checkpoint: Path, file: Path) -> tuple[float, bool, np.ndarray]:
    """Return score, label and map of an image file in eager PyTorch."""
    return judge(checkpoint, read_image(file, as_tensor=True)[None])


def same(ours: tuple, theirs: tuple) -> None:
    """Demand one verdict, and scores and maps within 1e-5."""
    assert ours[1] is theirs[1]
    assert ours[0] == pytest.approx(theirs[0], abs=1e-5)
    np.testing.assert_allclose(ours[2], theirs[2], atol=1e-5)


def test_examples(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each example gives PyTorch's verdict of a file, in a folder that nothing can be written to."""
    monkeypatch.setenv("TRUST_REMOTE_CODE", "1")
    monkeypatch.chdir("/proc")
    for file in (*line.good.glob("*.png"), next(line.good.parent.glob("[!g]*/*.png"))):
        expected = judge_file(line.checkpoint, file)
        same(onnx_runtime.main(line.onnx, file), expected)
        same(open_vino.main(line.openvino, file), expected)
        same(openvino_inferencer.main(line.openvino, file), expected)
        same(torch_inferencer.main(line.torch, file), expected)


def test_cpp_example(line: Line, tmp_path: Path) -> None:
    """It compiles with the headers of OpenVINO's wheel, and judges bytes as PyTorch does; too few are an error."""
    compiler, runtime = shutil.which("g++"), Path(openvino.__file__).parent
    if compiler is None or not (runtime / "include" / "openvino").is_dir():
        pytest.skip("needs g++ and a wheel of OpenVINO with its headers")
    source = Path(__file__).parents[2] / "docs" / "examples" / "open_vino.cpp"
    libraries = [str(next((runtime / "libs").glob("libopenvino.so*"))), f"-Wl,-rpath,{runtime / 'libs'}"]
    judge = tmp_path / "judge"
    command = [compiler, "-std=c++17", str(source), f"-I{runtime / 'include'}", *libraries, "-o", str(judge)]
    subprocess.run(command, check=True)
    for file in line.good.glob("*.png"):
        pixels = np.asarray(Image.open(file).convert("RGB"))
        score, label, _ = judge_file(line.checkpoint, file)
        command = [str(judge), str(line.openvino), *map(str, pixels.shape[:2])]
        answer = subprocess.run(command, input=pixels.tobytes(), capture_output=True, check=True).stdout.split()
        assert float(answer[0]) == pytest.approx(score, abs=0.02)
        assert answer[1] == (b"defective" if label else b"good")
        short = subprocess.run(command, input=pixels.tobytes()[:-1], capture_output=True, check=False)
        assert (short.returncode, short.stderr) == (1, b"too few pixels\n")


def test_a_backbone_of_integers(line: Line, tmp_path: Path) -> None:
    """In both runtimes only convolutions compute in integers, and thresholds calibrated anew part the good images."""
    pytest.importorskip("nncf")
    files = sorted(line.good.glob("*.png"))
    model = openvino.Core().read_model(line.openvino)
    quantised = quantise_backbone(model, [read_image(file, as_tensor=True)[None].numpy() for file in files])
    openvino.save_model(quantised, tmp_path / "model.xml", compress_to_fp16=False)
    int8_onnx.main(line.onnx, line.good, tmp_path / "model.onnx")
    fed = [
        target.get_node().get_type_name()
        for node in quantised.get_ops()
        if node.get_type_name() == "FakeQuantize" and "weights" not in node.get_friendly_name()
        for target in node.output(0).get_target_inputs()
    ]
    assert fed
    assert set(fed) <= {"Convolution", "GroupConvolution"}
    for file, run in ((tmp_path / "model.xml", open_vino.main), (tmp_path / "model.onnx", onnx_runtime.main)):
        assert cli.main(["calibrate", str(file), str(line.good), "--false_positive_rate", "0.6"]) == 0
        assert sum(run(file, image)[1] for image in files) == 1


def test_arrays_of_any_kind(line: Line) -> None:
    """Bytes, floats, grey, transparent and OpenCV's order become one input, and what is none of these is refused."""
    file = next(line.good.glob("*.png"))
    pixels, expected = np.asarray(Image.open(file).convert("RGB")), read_image(file, as_tensor=True)[None].numpy()
    opaque = np.dstack([pixels, np.full(pixels.shape[:2], 9, np.uint8)])
    blue_first = pixels[..., ::-1]
    for array in (pixels, pixels / 255, (pixels / 255).astype(np.float32), opaque, blue_first[..., ::-1]):
        np.testing.assert_allclose(onnx_runtime.to_input(array), expected, atol=1e-6)
    grey = pixels[..., 0]
    np.testing.assert_allclose(onnx_runtime.to_input(grey), np.repeat(expected[:, :1], 3, 1), atol=1e-6)
    for wrong in (pixels.transpose(2, 0, 1), pixels.astype(np.float32), pixels[None], pixels / 255 * np.nan):
        with pytest.raises(ValueError, match=r"an image has the shape|floats must be from 0 to 1"):
            onnx_runtime.to_input(wrong)


def test_image_files_of_any_mode(tmp_path: Path) -> None:
    """As predictions read them: of a palette, in printing inks, turned by EXIF; more than 8 bits are refused."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (6, 9, 3), np.uint8))
    turned = Image.Exif()
    turned[0x0112] = 6
    picture.quantize(8).save(tmp_path / "palette.png")
    picture.convert("CMYK").save(tmp_path / "inks.jpg")
    picture.save(tmp_path / "turned.jpg", exif=turned)
    picture.convert("LA").save(tmp_path / "grey.png")
    for file in tmp_path.iterdir():
        expected = read_upright(file)[None].transpose(0, 3, 1, 2) / 255
        np.testing.assert_allclose(onnx_runtime.to_input(Image.open(file)), expected, atol=1e-6)
    with pytest.raises(ValueError, match="bytes of type uint8"):
        onnx_runtime.to_input(Image.fromarray(np.full((4, 4), 999, np.uint16)))


@pytest.mark.filterwarnings("ignore")
def test_tracing(line: Line, tmp_path: Path) -> None:
    """The wrapper makes a traced model that judges as the checkpoint does, whatever the number of images."""
    traced.main(line.checkpoint, tmp_path / "traced.pt", (80, 60))
    model, image = torch.jit.load(tmp_path / "traced.pt"), torch.rand(3, 3, 80, 60)
    with torch.no_grad():
        expected = VaeAttention.load_from_checkpoint(line.checkpoint).eval()(image)
        score, label, anomaly_map, mask = model(image)
    torch.testing.assert_close(score, expected.pred_score)
    torch.testing.assert_close(anomaly_map, expected.anomaly_map)
    assert torch.equal(label, expected.pred_label)
    assert torch.equal(mask, expected.pred_mask)


@pytest.mark.parametrize("new_images", [False, True])
def test_calibration_is_the_same_everywhere(
    new_images: bool, line: Line, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Another rate, from the scores that travel or from new images, gives checkpoint and exports one verdict."""
    arguments = [str(line.good)] if new_images else []
    arguments += ["--false_positive_rate", "0.6", "--pixel_false_positive_rate", "0.45"]
    written = {}
    for file in (line.checkpoint, line.onnx, line.openvino):
        written[file.suffix] = tmp_path / f"new{file.suffix}"
        assert cli.main(["calibrate", str(file), *arguments, "--output", str(written[file.suffix])]) == 0
    # Once each: nothing is said of thresholds that are not set.
    assert sum(record.message.startswith("Thresholds for") for record in caplog.records) == 3
    before = VaeAttention.load_from_checkpoint(line.checkpoint)
    after = VaeAttention.load_from_checkpoint(written[".ckpt"]).eval()
    for name, tensor in before.model.state_dict().items():
        assert torch.equal(tensor, after.model.state_dict()[name]), name
    assert after.post_processor.false_positive_rate == pytest.approx(0.6)
    assert after.post_processor.image_threshold != before.post_processor.image_threshold
    told = {entry.key: entry.value for entry in onnx.load(written[".onnx"]).metadata_props}
    assert "rates of 0.6 (images) and 0.45 (pixels)" in told["thresholds_from"]
    thresholds = json.loads(told["raw_thresholds"])
    assert thresholds["image_threshold"] == pytest.approx(after.post_processor.image_threshold.item(), abs=1e-5)
    model = openvino.Core().read_model(written[".xml"])
    assert model.get_rt_info(["vae_attention", "thresholds_from"]).astype(str) == told["thresholds_from"]
    labels = []
    for file in line.good.glob("*.png"):
        expected = judge_file(written[".ckpt"], file)
        labels.append(expected[1])
        same(onnx_runtime.main(written[".onnx"], file), expected)
        same(open_vino.main(written[".xml"], file), expected)
    if new_images:
        # Of three images a rate of .6 lets floor(3 (1.4 / 3)) exceed the threshold, which is a score of theirs.
        assert sum(labels) == 1


def test_an_export_is_calibrated_in_its_place(line: Line, tmp_path: Path) -> None:
    """Without --output the files are replaced, and a second time, back, gives the first verdicts."""
    folder = shutil.copytree(line.openvino.parent, tmp_path / "copy")
    file = next(line.good.glob("*.png"))
    expected = open_vino.main(line.openvino, file)
    rates = ["--false_positive_rate", "0.4", "--pixel_false_positive_rate", "0.3"]
    assert cli.main(["calibrate", str(folder / "model.xml"), "--false_positive_rate", "0.9"]) == 0
    assert open_vino.main(folder / "model.xml", file)[0] != pytest.approx(expected[0], abs=1e-3)
    assert cli.main(["calibrate", str(folder), *rates]) == 0
    same(open_vino.main(folder / "model.xml", file), expected)
    assert {part.name for part in folder.iterdir()} == {"model.xml", "model.bin"}


@pytest.mark.parametrize("kind", ["cut", "renamed", "text", "missing", "pt"])
@pytest.mark.parametrize("name", ["checkpoint", "onnx", "openvino"])
def test_what_is_not_what_it_seems(
    name: str, kind: str, line: Line, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that is cut off, renamed, something else or not there is one error that names it."""
    source = getattr(line, name)
    file = tmp_path / f"model{source.suffix if kind != 'pt' else '.pt'}"
    if kind == "cut":
        file.write_bytes(source.read_bytes()[:-1000])
    elif kind == "renamed":
        shutil.copy(line.onnx if name != "onnx" else line.checkpoint, file)
    elif kind == "text":
        file.write_text("text")
    elif kind == "pt":
        shutil.copy(line.torch, file)
    assert cli.main(["calibrate", str(file), "--false_positive_rate", "0.1"]) == 2
    told = capsys.readouterr().err
    assert str(file) in told
    assert told.count("\n") == 1


def test_checkpoints_of_other_models(line: Line, tmp_path: Path) -> None:
    """A checkpoint of another model, and an export under a checkpoint's name, are refused by name by all that load."""
    other, renamed = tmp_path / "other.ckpt", tmp_path / "renamed.ckpt"
    torch.save({"state_dict": {}, "hyper_parameters": {"backbone": "resnet18"}}, other)
    shutil.copy(line.torch, renamed)
    for file in (other, renamed):
        with pytest.raises(ValueError, match=f"{file.name} is not a checkpoint"):
            VaeAttention.load_from_checkpoint(file)
        with pytest.raises(ValueError, match=f"{file.name} is not a checkpoint"):
            make_engine(tmp_path).predict(model=small_model(), ckpt_path=file, data_path=line.good)


def test_a_newer_export_is_warned_of(line: Line, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """By the file's name."""
    model = onnx.load(line.onnx)
    for entry in model.metadata_props:
        if entry.key == "version_anomalib_vae_attention":
            entry.value = "99.0"
    onnx.save(model, tmp_path / "newer.onnx")
    assert cli.main(["calibrate", str(tmp_path / "newer.onnx"), "--false_positive_rate", "0.4"]) == 0
    assert "newer.onnx was made by anomalib_vae_attention 99.0" in caplog.text


def test_what_the_user_asks_for_wins(line: Line, caplog: pytest.LogCaptureFixture) -> None:
    """Rates of one's own take thresholds from the checkpoint's scores; where these are missing a warning says so."""
    asked = VaeAttention.load_from_checkpoint(line.checkpoint, post_processor=NormalQuantile(0.8))
    assert asked.post_processor.false_positive_rate == pytest.approx(0.8)
    expected = NormalQuantile(0.8)
    expected.calibration = VaeAttention.load_from_checkpoint(line.checkpoint).post_processor.calibration
    expected.recompute()
    for name in ("image_threshold", "pixel_threshold", "image_min", "pixel_max"):
        assert torch.equal(getattr(asked.post_processor, name), getattr(expected, name)), name
    engine = make_engine(line.good.parents[2] / "results")
    model = small_model(post_processor=NormalQuantile(0.8))
    engine.predict(model=model, ckpt_path=line.checkpoint, data_path=line.good)
    assert torch.equal(model.post_processor.image_threshold, expected.image_threshold)
    checkpoint = torch.load(line.checkpoint, weights_only=True)
    del checkpoint["anomalib_post_processor_config"]["calibration"]
    old = line.checkpoint.with_name("old.ckpt")
    torch.save(checkpoint, old)
    caplog.clear()
    loaded = VaeAttention.load_from_checkpoint(old, post_processor=NormalQuantile(0.4, 0.3))
    assert not caplog.text
    loaded = VaeAttention.load_from_checkpoint(old, post_processor=NormalQuantile(0.8)).eval()
    assert "Thresholds stay those of the checkpoint, which are not for false_positive_rate=0.8" in caplog.text
    assert loaded(torch.rand(1, 3, *SIZE)) is not None
    old.unlink()
