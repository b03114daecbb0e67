r"""How good each attention and layer of trained image VAEs is on test images: AUROC and best IoU.

    python docs/studies/attentions.py --config configs/paper/mvtec.yaml --ckpt_path a.ckpt b.ckpt c.ckpt \
        --layers conv1 layer1 layer2.1.conv1 layer3 layer4 data.init_args.root=DIR

All test images count, the good ones included. Best IoU is the greatest intersection over union of true and predicted
pixels, pooled over all images, over all thresholds: it is chosen on the test images, as in the paper. Nothing else is.
"""

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pandas as pd
import torch
from anomalib.data import AnomalibDataModule, ImageBatch
from lightning.pytorch.utilities import move_data_to_device
from torch.utils.data import DataLoader
from tqdm import tqdm

from anomalib_vae_attention.common.argument_checks import take_overrides
from anomalib_vae_attention.common.atomic_files import write_table
from anomalib_vae_attention.common.models import find_model
from anomalib_vae_attention.explain.data import read_datamodule
from anomalib_vae_attention.explain.scores import score
from anomalib_vae_attention.image_vae.attention_maps import ATTENTIONS, Explained, explain, join
from anomalib_vae_attention.image_vae.encoder_gradients import EncoderGradients, encode_in_parts
from anomalib_vae_attention.image_vae.model import ImageVaeModel
from anomalib_vae_attention.lightning_model import VaeAttention

COLUMNS = ("image_AUROC", "pixel_AUROC", "best_IoU")


class SharedGradients(EncoderGradients):
    """The same as its base, with the gradients of all parameters computed once, for several layers and attentions."""

    def __init__(self, seen: EncoderGradients) -> None:
        self.__dict__.update(vars(seen))
        every = seen.by_parameters(range(2 * seen.latent_dim))
        self.jacobian = dict(zip(seen.layers, every, strict=True))

    def by_parameters(self, parameters: Sequence[int]) -> list[torch.Tensor]:
        """Look gradients of some parameters up."""
        return [self.jacobian[name][:, list(parameters)] for name in self.layers]

    def by_mean(self, gradient: torch.Tensor) -> list[torch.Tensor]:
        """Weigh the gradients of the means, instead of carrying their sum back."""
        weights = torch.cat([gradient, torch.zeros_like(gradient)], dim=1)
        return [torch.einsum("bk,bk...->b...", weights, self.jacobian[name]) for name in self.layers]


def training_images(module: VaeAttention, datamodule: AnomalibDataModule) -> Iterator[torch.Tensor]:
    """Read the training images in order and without augmentation, in batches as the model's ``collect`` takes them."""
    model, dataset = image_model(module), cast("Any", datamodule.train_data)
    loader = DataLoader(dataset, cast("Any", datamodule).eval_batch_size, collate_fn=dataset.collate_fn)
    return (model.prepare_image(batch.image) for batch in prepared(module, loader, "training images"))


def prepared(module: VaeAttention, loader: DataLoader, title: str) -> Iterator[Any]:
    """Pre-process batches as the engine does: masks are resized with the images."""
    for loaded in tqdm(loader, desc=title, disable=None):
        batch = move_data_to_device(loaded, module.device)
        cast("Any", module.pre_processor).on_test_batch_start(None, None, batch, 0)
        yield batch


@torch.no_grad()
def explain_all(
    model: ImageVaeModel,
    image: torch.Tensor,
    layers: Sequence[str],
    attentions: Sequence[str] = tuple(ATTENTIONS),
    at_once: int = 1,
) -> dict[tuple[str, str], Explained]:
    """Do ``model.explain`` for each of some layers and attentions, by default all, which share the gradients.

    Args:
        model: The model, in evaluation mode.
        image: Images as for ``model.explain``.
        layers: Names of the encoder's layers.
        attentions: Names of attentions.
        at_once: How many times as many images to carry gradients back for at once as ``model.explain`` does.

    Returns:
        Maps ``(B, H, W)`` and scores ``(B,)`` by attention and layer; the layer's name is empty for attentions that use
        none.

    Raises:
        ValueError: If there is no such layer.
    """
    names = dict(zip(layers, model.find_layers(layers), strict=True))
    most = model.latent_dim * max(ATTENTIONS[attention].gradients_per_latent for attention in attentions)
    found: dict[tuple[str, str], list[Explained]] = {}
    for part in encode_in_parts(model.vae, image, list(names.values()), max(1, most // at_once)):
        seen = SharedGradients(part) if most else part
        for attention in attentions:
            for layer in layers if ATTENTIONS[attention].uses_layers else [""]:
                seen.layers = [names[layer]] if layer else []
                one = explain(seen, model.normal, attention)
                found.setdefault((attention, layer), []).append(one)
    return {key: join(parts) for key, parts in found.items()}


def collect(
    module: VaeAttention, datamodule: AnomalibDataModule, attentions: Sequence[str], layers: Sequence[str]
) -> dict[tuple[str, str], list[ImageBatch]]:
    """Compute the maps and scores of all test images; see :func:`explain_batches`.

    Raises:
        ValueError: If the model has no image VAE, or there is no such layer.
    """
    model = image_model(module)
    if any(ATTENTIONS[attention].uses_residuals for attention in attentions):
        model.collect(training_images(module, datamodule), layers)
    batches = prepared(module, cast("Any", datamodule.test_dataloader()), "test images")
    return explain_batches(model, batches, attentions, layers)


@torch.no_grad()
def explain_batches(
    model: ImageVaeModel,
    batches: Iterable[Any],
    attentions: Sequence[str],
    layers: Sequence[str],
    at_once: int = 1,
) -> dict[tuple[str, str], list[ImageBatch]]:
    """Compute the maps and scores of images with some of the :data:`ATTENTIONS` and layers of the encoder.

    Args:
        model: The model, in evaluation mode; it has observed the layers where an attention uses residuals.
        batches: Batches of images with their truth, pre-processed.
        attentions: Names of attentions.
        layers: Names of the encoder's layers.
        at_once: See :func:`explain_all`.

    Returns:
        By attention and layer, the batches with maps ``(B, H, W)``, scores ``(B,)`` and truth, without the images.

    Raises:
        ValueError: If there is no such layer.
    """
    predicted: dict[tuple[str, str], list[ImageBatch]] = {}
    for batch in batches:
        image = model.prepare_image(batch.image)
        for key, (maps, scores) in explain_all(model, image, layers, attentions, at_once).items():
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="config of the run, for its data")
    parser.add_argument(
        "--ckpt_path", type=Path, nargs="+", required=True, help="checkpoints; of several, mean and deviation"
    )
    parser.add_argument("--layers", nargs="+", help="layers of the encoder, one at a time (those of the model)")
    parser.add_argument(
        "--attentions", nargs="+", default=list(ATTENTIONS), choices=list(ATTENTIONS), metavar="ATTENTION"
    )
    parser.add_argument("--output", type=Path, default=Path("results/attentions.csv"), help="CSV file to write")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="such as data.init_args.root=DIR")
    return parser


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parse the command's arguments; overrides may stand anywhere, where a list such as --layers would take them."""
    overrides, rest = take_overrides(arguments)
    return make_parser().parse_intermixed_args([*overrides, *rest])


def run(arguments: argparse.Namespace) -> pd.DataFrame:
    """Measure all checkpoints and write the table of all figures."""
    datamodule = read_datamodule(arguments.config, arguments.overrides)
    rows = []
    for checkpoint in arguments.ckpt_path:
        file = find_model(checkpoint, (".ckpt",))
        module = VaeAttention.load_from_checkpoint(file, map_location="cpu").eval()
        layers = arguments.layers or image_model(module).attention_layers
        rows += [
            {"checkpoint": str(checkpoint), **row}
            for row in measure(collect(module, datamodule, arguments.attentions, layers))
        ]
    table = pd.DataFrame(rows)
    write_table(arguments.output, table)
    return table


def main(arguments: list[str] | None = None) -> int:
    """Run the study; return its exit code, 1 after an error in arguments or data."""
    parsed = parse(sys.argv[1:] if arguments is None else arguments)
    try:
        table = run(parsed)
    except (OSError, ValueError) as error:
        print(f"attentions.py: {error}", file=sys.stderr)
        return 1
    print(summarise(table).to_string(index=False))
    print(f"Written to {parsed.output}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
