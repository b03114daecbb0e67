"""The command ``vae-attention evaluate``: how good each attention and layer of trained image VAEs is."""

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pandas as pd
import torch
from anomalib.data import AnomalibDataModule, ImageBatch
from lightning.pytorch.utilities import move_data_to_device
from torch.utils.data import DataLoader
from tqdm import tqdm

from anomalib_vae_attention.common.atomic_files import replacing
from anomalib_vae_attention.image_vae.attention_maps import ATTENTIONS
from anomalib_vae_attention.image_vae.model import ImageVaeModel
from anomalib_vae_attention.lightning_model import VaeAttention

from .data import read_datamodule
from .explainers import load_model
from .scores import score

COLUMNS = ("image_AUROC", "pixel_AUROC", "best_IoU")
OVERRIDE = re.compile(r"[A-Za-z_][\w.]*=")
EPILOG = """
All test images count, the good ones included. Best IoU is the greatest intersection over union of true and predicted
pixels, pooled over all images, over all thresholds: it is chosen on the test images, as in the paper. Nothing else is.

example:
  vae-attention evaluate --config configs/paper/mvtec.yaml --ckpt_path a.ckpt b.ckpt c.ckpt \\
      --layers conv1 layer1 layer2.1.conv1 layer3 layer4 data.init_args.root=DIR
"""


def observe(module: VaeAttention, datamodule: AnomalibDataModule, layers: Sequence[str]) -> None:
    """Have a model learn from the training images what attentions must know of layers."""
    model, dataset = image_model(module), cast("Any", datamodule.train_data)
    loader = DataLoader(dataset, cast("Any", datamodule).eval_batch_size, collate_fn=dataset.collate_fn)

    def images() -> Iterator[torch.Tensor]:
        for loaded in tqdm(loader, desc="training images", disable=None):
            batch = move_data_to_device(loaded, module.device)
            cast("Any", module.pre_processor).on_test_batch_start(None, None, batch, 0)
            yield model.prepare_image(batch.image)

    model.observe(images(), layers)


@torch.no_grad()
def collect(
    module: VaeAttention, datamodule: AnomalibDataModule, attentions: Sequence[str], layers: Sequence[str]
) -> dict[tuple[str, str], list[ImageBatch]]:
    """Compute the maps and scores of all test images, with some of the :data:`ATTENTIONS` and layers of the encoder.

    Returns:
        By attention and layer, the batches with maps ``(B, H, W)``, scores ``(B,)`` and truth, without the images.

    Raises:
        ValueError: If the model has no image VAE, or there is no such attention or layer.
    """
    model = image_model(module)
    if any(ATTENTIONS[attention].uses_residuals for attention in attentions):
        observe(module, datamodule, layers)
    predicted: dict[tuple[str, str], list[ImageBatch]] = {}
    for loaded in tqdm(datamodule.test_dataloader(), desc="test images", disable=None):
        batch = move_data_to_device(loaded, module.device)
        # The engine's own way: masks are resized with the images.
        cast("Any", module.pre_processor).on_test_batch_start(None, None, batch, 0)
        image = model.prepare_image(batch.image)
        for key, (maps, scores) in model.explain_all(image, layers, attentions).items():
            found = batch.update(in_place=False, image=batch.image[:, :, :1, :1], anomaly_map=maps, pred_score=scores)
            predicted.setdefault(key, []).append(found)
    return predicted


def image_model(module: VaeAttention) -> ImageVaeModel:
    """Return a model's image VAE, or raise a ``ValueError`` if it has none."""
    if not isinstance(module.model, ImageVaeModel):
        msg = "ckpt_path: the model has vae='feature'; attentions and layers are compared for image VAEs."
        raise ValueError(msg)  # noqa: TRY004 - it is the value of an argument that is wrong
    return module.model


def measure(predicted: dict[tuple[str, str], list[ImageBatch]]) -> list[dict[str, object]]:
    """Return a row of figures per attention and layer; those of pixels only where there are masks."""
    rows: list[dict[str, object]] = []
    for (attention, layer), batches in predicted.items():
        figures = score(batches, (*COLUMNS[:2], "pixel_F1"))
        f1 = figures.pop("pixel_F1", None)
        # Of one threshold: F1 = 2 TP / (2 TP + FP + FN), IoU = TP / (TP + FP + FN).
        best = {} if f1 is None else {COLUMNS[2]: f1 / (2 - f1)}
        rows.append({"attention": attention, "layer": layer, **figures, **best})
    return rows


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Write mean and standard deviation over checkpoints as text, a row per attention and layer."""
    groups = table.groupby(["attention", "layer"], sort=False)[[name for name in COLUMNS if name in table]]
    mean, deviation, count = groups.mean(), groups.std(), groups.count().max().max()
    text = mean.map("{:.3f}".format)
    return (text if count < 2 else text + " +- " + deviation.map("{:.3f}".format)).reset_index()


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command's arguments."""
    parser = argparse.ArgumentParser(
        prog="vae-attention evaluate",
        description="Measure each attention and layer of trained image VAEs on test images: AUROC and best IoU.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, required=True, help="config of the run, for its data")
    parser.add_argument(
        "--ckpt_path", type=Path, nargs="+", required=True, help="checkpoints; of several, mean and deviation"
    )
    parser.add_argument("--layers", nargs="+", help="layers of the encoder, one at a time (those of the model)")
    parser.add_argument(
        "--attentions", nargs="+", default=list(ATTENTIONS), choices=list(ATTENTIONS), metavar="ATTENTION"
    )
    parser.add_argument("--output", type=Path, default=Path("results/evaluate.csv"), help="CSV file to write")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="such as data.init_args.root=DIR")
    return parser


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parse the command's arguments; overrides may stand anywhere, where a list such as --layers would take them."""
    overrides = [word for word in arguments if OVERRIDE.match(word)]
    rest = [word for word in arguments if not OVERRIDE.match(word)]
    return make_parser().parse_intermixed_args([*overrides, *rest])


def run(arguments: argparse.Namespace) -> pd.DataFrame:
    """Measure all checkpoints and write the table of all figures."""
    datamodule = read_datamodule(arguments.config, arguments.overrides)
    rows = []
    for checkpoint in arguments.ckpt_path:
        module = load_model(checkpoint)
        layers = arguments.layers or image_model(module).attention_layers
        rows += [
            {"checkpoint": str(checkpoint), **row}
            for row in measure(collect(module, datamodule, arguments.attentions, layers))
        ]
    table = pd.DataFrame(rows)
    with replacing(arguments.output) as temporary:
        table.to_csv(temporary, index=False)
    return table


def main(arguments: list[str]) -> int:
    """Run the command; return its exit code, 1 after an error in arguments or data."""
    parsed = parse(arguments)
    try:
        table = run(parsed)
    except (OSError, ValueError) as error:
        print(f"vae-attention evaluate: {error}", file=sys.stderr)
        return 1
    print(summarise(table).to_string(index=False))
    print(f"Written to {parsed.output}")
    return 0
