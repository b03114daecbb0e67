"""What the page shows of an image: predict's verdicts, moved thresholds without the model, and why there is none."""

import errno
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import Fitted

from anomalib_vae_attention import EmbeddedAD, cli
from anomalib_vae_attention.common.images import read_upright
from anomalib_vae_attention.common.mvtec_layout import list_images
from anomalib_vae_attention.predict.models import Model, judge, load_model
from anomalib_vae_attention.serve import command, shown
from anomalib_vae_attention.serve.shown import Shown, look, write_counterfactual, write_verdict


@pytest.fixture(scope="module")
def model(fitted_small: Fitted) -> Model:
    return load_model(fitted_small.checkpoint)


@pytest.fixture(scope="module")
def image(small_data: EmbeddedAD) -> Path:
    return list_images(small_data.root / "washer" / "test" / "crack")[0]


@pytest.fixture
def seen(model: Model, image: Path) -> Shown:
    return look(model, image, "<b>1.png")


def test_verdict_score_and_mask_are_those_of_predict(model: Model, image: Path, seen: Shown) -> None:
    """To the last bit, by another way: the network runs once for verdict and counterfactual."""
    expected = judge(model, [read_upright(image)])
    for field, value in zip(expected, seen.verdict, strict=True):
        np.testing.assert_array_equal(field[0], value)
    runs: list[int] = []
    counting = model.module.model.backbone.register_forward_hook(lambda *_: runs.append(1))
    look(model, image, "1.png")
    counting.remove()
    assert len(runs) == 1
    card, pictures = write_verdict(seen, model.thresholds)
    assert ("DEFECTIVE" if expected.defective[0] else "GOOD") in card
    assert f"<strong>{expected.score[0]:.3f}</strong>" in card
    assert "&lt;b&gt;1.png" in card
    assert pictures.count("data:image/jpeg;base64,") == 3


def test_thresholds_move_without_the_model(seen: Shown) -> None:
    """A shown image holds no model; a verdict flips at the score, a mask empties and fills."""
    score, greatest = float(seen.verdict.score), float(seen.verdict.anomaly_map.max())
    above, below = (write_verdict(seen, (score + step, -1.0))[0] for step in (0.01, -0.01))
    assert "GOOD" in above
    assert "the model's own is" in above
    assert "DEFECTIVE" in below
    assert f"the largest defect is {seen.size[0]} x {seen.size[1]} pixels" in below
    assert "the largest defect" not in write_verdict(seen, (score - 0.01, greatest))[0]


def test_what_a_good_part_would_have_shown(model: Model, image: Path, seen: Shown) -> None:
    """A checkpoint tells it, an export does not, and the page says so."""
    assert write_counterfactual(seen).count("data:image/jpeg;base64,") == 2
    exported = look(model._replace(module=None), image, "1.png")
    assert exported.verdict.score == seen.verdict.score
    assert "Serve the checkpoint" in write_counterfactual(exported)


@pytest.mark.parametrize("kind", ["grey.png", "alpha.png", "turned.jpg"])
def test_images_of_other_kinds_are_read_as_predict_does(kind: str, model: Model, image: Path, tmp_path: Path) -> None:
    with Image.open(image) as opened:
        if kind == "turned.jpg":
            exif = Image.Exif()
            exif[0x0112] = 6
            opened.crop((0, 0, 60, 40)).save(tmp_path / kind, exif=exif)
        else:
            opened.convert("L" if kind == "grey.png" else "RGBA").save(tmp_path / kind)
    seen = look(model, tmp_path / kind, kind)
    pixels = read_upright(tmp_path / kind)
    assert seen.size == (pixels.shape[1], pixels.shape[0])
    assert seen.verdict.score == judge(model, [pixels]).score[0]


def write_file(kind: str, file: Path, source: Path) -> None:
    frame = Image.new("L", (8, 8))
    match kind:
        case "a page":
            file.write_text("<html><script>alert(1)</script>", encoding="utf-8")
        case "a drawing":
            file.write_text("<svg xmlns='http://www.w3.org/2000/svg'/>", encoding="utf-8")
        case "nothing":
            file.touch()
        case "a part":
            file.write_bytes(source.read_bytes()[:2000])
        case "several":
            frame.save(file, format="GIF", save_all=True, append_images=[Image.new("L", (8, 8), 9)])
        case "16 bits":
            Image.fromarray(np.full((8, 8), 60000, np.uint16)).save(file)
        case _:
            Image.new("1", (10_000, 10_000)).save(file)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("a page", "is no image that can be read"),
        ("a drawing", "is no image that can be read"),
        ("nothing", "is no image that can be read"),
        ("a part", "truncated"),
        ("several", "2 pages or frames"),
        ("16 bits", "8 bits per channel"),
        ("a bomb", "at most 50 million"),
    ],
)
def test_why_there_is_no_verdict(kind: str, message: str, model: Model, image: Path, tmp_path: Path) -> None:
    """One sentence that names the file, and no folder of this machine."""
    file = tmp_path / "part.png"
    write_file(kind, file, image)
    with pytest.raises(ValueError, match=message) as error:
        look(model, file, "part.png")
    assert str(error.value).startswith("part.png ")
    assert str(tmp_path) not in str(error.value)
    assert "part.png" in shown.write_error(str(error.value))


@pytest.mark.parametrize("size", [(1, 1), (3000, 3)])
def test_odd_sizes(size: tuple[int, int], model: Model, tmp_path: Path) -> None:
    Image.new("RGB", size, "grey").save(tmp_path / "odd.png")
    seen = look(model, tmp_path / "odd.png", "odd.png")
    assert 0 <= float(seen.verdict.score) <= 1
    assert write_verdict(seen, (0.0, 0.0))[1].count("base64") == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], "--host 0.0.0.0 lets others in: set a --password."),
        (["--host", "0.0.0.0", "--password", "", "--port", "1"], "--port 1"),
        (["--port", "0"], "--port must be from 1 to 65535"),
        (["--host", "localhost", "--port", "7860"], "--port 7860 is taken: name another."),
    ],
)
def test_arguments_that_cannot_be(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def taken(*_: object, **__: object) -> None:
        raise OSError(errno.EADDRINUSE, "Address already in use")

    monkeypatch.setattr(command.socket, "create_server", taken)
    assert cli.main(["serve", "model.ckpt", *arguments]) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1


def test_without_gradio_one_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "anomalib_vae_attention.serve.page", raising=False)
    monkeypatch.setattr(command, "require_free", lambda *_: None)
    monkeypatch.setattr(command, "close_gradio", lambda _: None)
    assert cli.main(["serve", "model.ckpt"]) == 2
    assert capsys.readouterr().err == "vae-attention serve: gradio is not installed: pip install '.[web]'\n"
