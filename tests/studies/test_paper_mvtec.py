"""The paper's set-up side by side: augmentations against torchvision's, losses against the model's, one small run."""

from pathlib import Path

import numpy as np
import pandas as pd
import paper_mvtec
import pytest
import torch
import yaml
from paper.augmentation import Augmentation, read_augmentation, rotate
from paper.runs import PRECISIONS, Category, Run
from PIL import Image
from support import small_image_model
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import rotate as rotate_one

from anomalib_vae_attention.image_vae.attention_maps import ATTENTIONS

CONFIG = Path(__file__).parents[2] / "configs" / "paper" / "mvtec.yaml"


@pytest.mark.parametrize("size", [(20, 20), (12, 31)])
def test_images_are_turned_as_by_torchvision(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    images, degrees = torch.rand(4, 3, *size), torch.tensor([-10.0, 0.5, 7.0, 100.0])
    expected = [
        rotate_one(image, float(angle), InterpolationMode.BILINEAR, fill=0.9)
        for image, angle in zip(images, degrees, strict=True)
    ]
    torch.testing.assert_close(rotate(images, degrees, 0.9), torch.stack(expected), atol=1e-4, rtol=0)


def test_each_image_is_drawn_for_by_itself() -> None:
    """About half of the images are mirrored, and angles are spread over their range."""
    image = torch.linspace(0, 1, 16).expand(400, 3, 16, 16)
    mirrored = Augmentation(flip=0.5).apply(image, torch.Generator().manual_seed(0))
    flipped = mirrored[:, 0, 8, 0] > 0.5
    assert 0.4 < float(flipped.float().mean()) < 0.6
    torch.testing.assert_close(mirrored[flipped], image[flipped].flip(3), atol=1e-4, rtol=0)
    turned = Augmentation(degrees=(-10, 10), fill=1.0).apply(image, torch.Generator().manual_seed(0))
    assert len(turned[:, 0].unique(dim=0)) == 400


def test_augmentations_of_the_config() -> None:
    config = yaml.safe_load(CONFIG.read_text())
    assert read_augmentation(config) == Augmentation(0.5, (-10, 10), 1.0)
    transforms = config["data"]["init_args"]["train_augmentations"]["init_args"]["transforms"]
    transforms.append({"class_path": "torchvision.transforms.v2.RandomVerticalFlip"})
    with pytest.raises(ValueError, match=r"train_augmentations: .*RandomVerticalFlip"):
        read_augmentation(config)
    assert read_augmentation({"data": {}}) == Augmentation()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_loss_is_the_models_and_falls(precision: str) -> None:
    torch.manual_seed(0)
    module, images = small_image_model("resnet18"), torch.rand(8, 3, 32, 32)
    run = Run(module, Category("noise", list(images.split(4)), [], 4), Augmentation(0.5), 0, precision)
    noise = torch.randn(4, run.model.latent_dim)
    expected = run.model.vae.elbo_terms(images[:4], noise)
    close = {"rtol": 1e-5, "atol": 1e-4} if precision == "single" else {"rtol": 0.05, "atol": 1.0}
    torch.testing.assert_close(
        run.terms(images[:4], noise), torch.stack([*map(torch.mean, expected.values())]), **close
    )
    found = []
    for _ in range(12):
        run.advance()
        found.append(float(run.totals.sum()))
    assert found[-1] < found[0]


def test_run(tiny_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two seeds, measured on the way and, as it is late at once, after the first epoch of four."""
    given = [
        "--config",
        str(CONFIG),
        "--categories",
        "washer",
        "--seeds",
        "0",
        "1",
        "--layers",
        "conv1",
        "layer4",
    ]
    given += [f"data.init_args.root={tiny_root / 'parts'}", "data.init_args.train_batch_size=3", "--device", "cpu"]
    given += ["model.init_args.input_size=[32,32]", "model.init_args.latent_dim=4", "--output", str(tmp_path)]
    assert paper_mvtec.main([*given, "--epochs", "2", "--evaluate_at", "1"]) == 0
    results = pd.read_csv(tmp_path / "results.csv")
    rows = sum(3 if attention.uses_layers else 1 for attention in ATTENTIONS.values())
    # On the way the config's own layer only.
    assert results.groupby(["epoch", "seed"]).size().tolist() == [*2 * [len(ATTENTIONS)], *2 * [rows]]
    assert results[["image_AUROC", "pixel_AUROC", "best_IoU"]].apply(lambda column: column.between(0, 1)).all().all()
    losses = pd.read_csv(tmp_path / "losses.csv")
    assert losses.notna().drop(columns="squared_error").all().all()
    assert len(losses) == 2 * 2 * 3
    assert "after 2 epochs, seeds 0, 1" in capsys.readouterr().out
    assert np.asarray(Image.open(tmp_path / "washer.png")).std() > 0
    assert paper_mvtec.main([*given, "--epochs", "4", "--minutes", "0"]) == 0
    assert set(pd.read_csv(tmp_path / "results.csv").epoch) == {1}


@pytest.mark.gpu
def test_a_graph_of_an_epoch_does_what_its_steps_do() -> None:
    """With the last batch smaller than others, and measured in between, as a run is on the way."""
    if not torch.cuda.is_available():
        pytest.skip("PyTorch finds no CUDA device")
    found = []
    for is_graph in (True, False):
        torch.manual_seed(0)
        images = torch.rand(7, 3, 64, 64).cuda()
        module = small_image_model("resnet18", input_size=(64, 64)).cuda()
        run = Run(module, Category("noise", list(images.split(4)), [], 4), Augmentation(0.5, (-5, 5)), 0)
        found.append([])
        for epoch in range(4):
            run.advance()
            run.wait()
            found[-1].append(float(run.totals.sum()))
            if epoch == 2:
                run.model.eval()
                with torch.no_grad():
                    paper_mvtec.elbo(run, images)
                run.model.train()
            run.epochs = run.epochs if is_graph else 0
    assert found[0] == pytest.approx(found[1], rel=1e-2)
    assert found[0][-1] < found[0][0]


def test_a_warm_up_is_refused() -> None:
    module = small_image_model("resnet18", kl_warmup_steps=3)
    with pytest.raises(ValueError, match="kl_warmup_steps"):
        Run(module, Category("noise", [torch.rand(4, 3, 32, 32)], [], 4), Augmentation(), 0)
