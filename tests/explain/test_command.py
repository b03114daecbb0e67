"""The command ``vae-attention explain``: pictures, their order, the page in a browser, and what cannot be done."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support import Fitted, make_engine
from tqdm import tqdm

from anomalib_vae_attention import EmbeddedAD, VaeAttention, cli
from anomalib_vae_attention.common.images import read_tensor, read_upright
from anomalib_vae_attention.explain.command import LINES
from anomalib_vae_attention.explain.data import find_images
from anomalib_vae_attention.explain.explainers import explain_image, false_colours, parse_latents
from anomalib_vae_attention.predict import models as predict_models

# Runs the page's own functions on its own elements, and leaves in the title what is then shown.
PROBE = """<script>
  const seen = () => [...document.querySelectorAll("article")].filter((a) => !a.hidden).map((a) => a.dataset.name);
  const report = [seen()];
  order.value = "name"; order.dispatchEvent(new Event("change")); report.push(seen());
  label.value = "crack"; label.dispatchEvent(new Event("change")); report.push(seen());
  report.push([...document.images].every((image) => image.complete && image.naturalWidth > 0));
  document.title = JSON.stringify(report);
</script></body>"""


@pytest.fixture(scope="module")
def checkpoint(small_data: EmbeddedAD, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Train a small model with an image VAE."""
    torch.manual_seed(0)
    model = VaeAttention(vae="conv", input_size=(32, 32), latent_dim=5, hidden_dim=16, visualizer=False)
    engine = make_engine(tmp_path_factory.mktemp("run"), max_epochs=2)
    engine.fit(model=model, datamodule=small_data)
    return engine.best_model_path


@pytest.fixture(scope="module")
def page(checkpoint: str, small_data: EmbeddedAD, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Explain two images of each label."""
    output = tmp_path_factory.mktemp("explained")
    folder = str(small_data.root / "washer")
    command = ["explain", "--ckpt_path", checkpoint, "--data", folder, "--limit", "2", "--latents", "top3"]
    assert cli.main([*command, "--output", str(output)]) == 0
    return output / "index.html"


def test_a_picture_an_image_and_a_page_without_other_files(page: Path) -> None:
    files = sorted(str(file.relative_to(page.parent)) for file in page.parent.rglob("*.png"))
    assert len(files) == 2 + 4 + 1
    assert "crack/000.png" in files
    content = page.read_text(encoding="utf-8")
    # 6 images: image, reconstruction, all latents, anomaly map, 3 latents.
    assert content.count("data:image/jpeg;base64,") == 6 * 7
    assert not re.findall(r'(?:src|href)="(?!data:)', content)
    told = re.findall(r'class="score (\w+)">score [\d.]+ (\w+)<', content)
    assert len(told) == 6
    assert all(colour == verdict and f".{verdict} {{ color:" in content for colour, verdict in told)
    assert "http" not in re.sub(r"base64,[^\"]*", "", content)
    HTMLParser().feed(content)


def test_images_that_cannot_be_read_are_left_out(
    checkpoint: str, small_data: EmbeddedAD, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And named; where none is left, that is an error."""
    folder = tmp_path / "parts"
    folder.mkdir()
    shutil.copy(next((small_data.root / "washer" / "test" / "good").glob("*.png")), folder / "whole.png")
    (folder / "cut.png").write_bytes((folder / "whole.png").read_bytes()[:200])
    command = ["explain", "--ckpt_path", checkpoint, "--data", str(folder), "--output", str(tmp_path / "out")]
    assert cli.main(command) == 0
    assert f"left out: {folder / 'cut.png'} cannot be read" in capsys.readouterr().err
    assert [file.name for file in (tmp_path / "out" / "parts").iterdir()] == ["whole.png"]
    # Neither another ending nor another folder of that name takes an image's picture.
    Image.open(folder / "whole.png").save(folder / "whole.bmp")
    (folder / "B" / "parts").mkdir(parents=True)
    shutil.copy(folder / "whole.png", folder / "B" / "parts" / "whole.png")
    assert cli.main([*command[:-1], str(tmp_path / "three")]) == 0
    pictures = sorted(str(file.relative_to(tmp_path / "three")) for file in (tmp_path / "three").rglob("*/*.png"))
    assert pictures == ["parts/B/parts/whole.png", "parts/whole.bmp.png", "parts/whole.png.png"]
    shutil.rmtree(folder / "B")
    (folder / "whole.bmp").unlink()
    (folder / "whole.png").unlink()
    assert cli.main(command) == 2
    assert "none of its 1 images can be read" in capsys.readouterr().err


def test_the_page_in_a_browser(page: Path) -> None:
    """Sorted by score at first, by file on demand, filtered by label; every picture loads."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium to open the page with")
    probed = page.with_name("probed.html")
    probed.write_text(page.read_text(encoding="utf-8").replace("</body>", PROBE), encoding="utf-8")
    done = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", probed.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    probed.unlink()
    (title,) = re.findall(r"<title>(.*?)</title>", done.stdout)
    by_score, by_name, cracks, loaded = json.loads(title.replace("&quot;", '"'))
    scores = dict(re.findall(r'data-score="([\d.]+)" data-name="(.*?)"', page.read_text(encoding="utf-8")))
    assert by_score == [name for _, name in sorted(scores.items(), key=lambda item: -float(item[0]))]
    assert by_name == sorted(scores.values())
    assert cracks == [name for name in by_name if name.startswith("crack/")]
    assert loaded is True


def test_latents_are_ordered_by_their_distance(checkpoint: str, small_data: EmbeddedAD) -> None:
    module = VaeAttention.load_from_checkpoint(checkpoint).eval()
    image = read_tensor(find_images(small_data.root / "washer")[0])[None]
    everything = explain_image(module, image, "all")
    assert sorted(everything.latents.number) == list(range(5))
    assert (everything.latents.distance.diff() <= 0).all()
    model = module.model
    seen = model.prepare_image(module.pre_processor(image))
    torch.testing.assert_close(
        everything.latents.distance,
        model.normal.deviations(model.vae.posterior(seen))[0].abs()[everything.latents.number],
    )
    torch.testing.assert_close(everything.latents.aggregate, everything.latents.maps.mean(0))
    some = explain_image(module, image, "3,1")
    assert some.latents.number == [latent for latent in everything.latents.number if latent in {1, 3}]
    torch.testing.assert_close(some.latents.aggregate, everything.latents.aggregate)
    assert explain_image(module, image, "top2").latents.number == everything.latents.number[:2]


def test_latents_of_the_feature_vae_add_up(fitted: Fitted, embedded: EmbeddedAD) -> None:
    """Maps of all latents of the feature VAE add up to the whole."""
    image = read_tensor(find_images(embedded.root / "washer")[0])[None]
    picture = explain_image(fitted.model, image, "all")
    assert len(picture.latents.number) == 96
    size = picture.latents.aggregate.norm()
    assert (picture.latents.maps.sum(0) - picture.latents.aggregate).norm() <= 1e-4 * size


@pytest.mark.parametrize("vae", ["feature", "conv"])
def test_map_score_and_verdict_are_those_of_predict(
    vae: str, checkpoint: str, fitted_small: Fitted, small_data: EmbeddedAD
) -> None:
    """For each test image, and above and below the threshold alike."""
    file = Path(checkpoint) if vae == "conv" else fitted_small.checkpoint
    module, model = VaeAttention.load_from_checkpoint(file, map_location="cpu").eval(), predict_models.load_model(file)
    verdicts = set()
    for path in find_images(small_data.root / "washer"):
        picture, expected = (
            explain_image(module, read_tensor(path)[None], "top1"),
            predict_models.judge(model, [read_upright(path)]),
        )
        assert picture.score == expected.score[0]
        assert picture.verdict == ("defective" if expected.defective[0] else "good")
        np.testing.assert_array_equal(picture.anomaly_map, expected.anomaly_map[0])
        verdicts.add(picture.verdict)
    assert verdicts == {"good", "defective"}


def test_each_image_is_computed_once(
    fitted_small: Fitted, small_data: EmbeddedAD, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = VaeAttention.load_from_checkpoint(fitted_small.checkpoint, map_location="cpu").eval()
    layers, seen = module.model.layers, []

    def count(image: torch.Tensor) -> list[torch.Tensor]:
        seen.append(len(image))
        return layers(image)

    monkeypatch.setattr(module.model, "layers", count)
    explain_image(module, read_tensor(find_images(small_data.root / "washer")[0])[None], "all")
    assert seen == [1]


def test_false_colours_tell_a_departure(fitted_small: Fitted, small_data: EmbeddedAD) -> None:
    """Where the image is its own counterfactual, both pictures are one; where a layer departs, they differ there."""
    module = VaeAttention.load_from_checkpoint(fitted_small.checkpoint, map_location="cpu").eval()
    image = read_tensor(find_images(small_data.root / "washer")[0])[None]
    explanation = module.model.explain(module.pre_processor(image))
    same = explanation._replace(activations=explanation.counterfactual)
    picture = false_colours(same)
    torch.testing.assert_close(picture.seen, picture.normal)
    changed = [layer.clone() for layer in explanation.counterfactual]
    for layer in changed:
        layer[..., 0, 0] += layer.std() * torch.randn(layer.shape[1]) * 9
    differs = (false_colours(same._replace(activations=changed)).seen - picture.normal).abs().sum(0) > 1e-3
    assert differs.nonzero().tolist() == [[0, 0]]


def test_the_sheet_is_ranked_and_of_a_slides_shape(page: Path) -> None:
    with Image.open(page.with_name("worst_first.png")) as sheet:
        assert abs(sheet.width / sheet.height - 16 / 9) < 0.01


def test_progress_is_lines_where_there_is_no_terminal(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    del page
    progress = tqdm(range(3), desc="images", **LINES)
    assert len(list(progress)) == 3
    assert "images: 3 of 3, 00:00 left\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "expected"), [("all", ([0, 1, 2], 3)), ("top2", ([0, 1, 2], 2)), ("2,0", ([2, 0], 2))]
)
def test_which_latents(text: str, expected: tuple[list[int], int]) -> None:
    assert parse_latents(text, 3) == expected
    assert parse_latents("top9", 3)[1] == 3


@pytest.mark.parametrize(
    ("text", "message"), [("3", r"no latent \[3\]; the model's latents are 0 to 2"), ("top", "write")]
)
def test_latents_that_are_not_there(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_latents(text, 3)


def test_folders_of_images(tmp_path: Path) -> None:
    """Labels are the names of folders, and of many images some are taken, from first to last."""
    for label, count in (("a", 9), ("b", 1)):
        (tmp_path / label).mkdir()
        for index in range(count):
            Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / label / f"{index}.png")
    found = find_images(tmp_path, limit=3)
    assert [(file.parent.name, file.name) for file in found] == [
        ("a", "0.png"),
        ("a", "4.png"),
        ("a", "8.png"),
        ("b", "0.png"),
    ]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--latents", "0,7"], "there is no latent [7]; the model's latents are 0 to 4"),
        (["--limit", "0"], "--limit must be at least 1"),
        (["--ckpt_path", "missing.ckpt"], "There is no file or folder missing.ckpt"),
        (["--data", "missing"], "--data missing: there is no such folder"),
        (["--output", "/proc/new"], "--output /proc/new cannot be written"),
    ],
)
def test_errors_name_the_argument(
    changed: list[str], message: str, checkpoint: str, small_data: EmbeddedAD, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["explain", "--ckpt_path", checkpoint, "--data", str(small_data.root / "washer")]
    assert cli.main([*command, *changed]) == 2
    assert message in capsys.readouterr().err


def test_images_that_cannot_be_read(checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["explain", "--ckpt_path", checkpoint, "--data", str(tmp_path)]
    assert cli.main(command) == 2
    assert "there is no image in it" in capsys.readouterr().err
    (tmp_path / "broken.png").write_bytes(b"no image")
    assert cli.main(command) == 2
    assert "broken.png cannot be read" in capsys.readouterr().err
