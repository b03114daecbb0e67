r"""The paper's set-up for MVTec AD in full: VAEs of several categories and seeds, trained and measured side by side.

    python docs/studies/paper_mvtec.py --categories bottle transistor --seeds 0 1 2 --evaluate_at 30 100 --minutes 3 \
        data.init_args.root=DIR

Model, start, loss, optimiser and their values are those of ``anomalib fit`` with the config. All images wait in the
device's memory; every epoch mirrors and turns each of them anew, as the config says. The figures are those of
``attentions.py``, in single precision.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any, cast

import pandas as pd
import torch
from anomalib.data import ImageBatch
from attentions import explain_batches, measure, prepared, summarise, training_images
from omegaconf import OmegaConf
from paper.augmentation import read_augmentation
from paper.runs import PRECISIONS, Category, Run, set_convolutions

from anomalib_vae_attention import VaeAttention
from anomalib_vae_attention.common.argument_checks import take_overrides
from anomalib_vae_attention.common.atomic_files import write_table
from anomalib_vae_attention.common.pictures import heat_map, outline
from anomalib_vae_attention.explain.data import read_datamodule
from anomalib_vae_attention.explain.pictures import Tile, find_limits, write_picture
from anomalib_vae_attention.image_vae.attention_maps import ATTENTIONS

LAYERS = ("conv1", "layer1", "layer2.1.conv1", "layer3", "layer4")
AT_ONCE = 32
"""How many times as many images a GPU carries gradients back for at once as is best for processors."""
NOISE_SEED = 0
"""Seed of the noise on latents where the ELBO is measured."""

Predicted = dict[tuple[str, str], list[ImageBatch]]


class Tables:
    """The rows of the two tables, written after every evaluation, and the pictures.

    Args:
        output: Folder to write to.
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        self.results: list[dict[str, object]] = []
        self.losses: list[dict[str, object]] = []

    def write(self) -> None:
        """Write both tables as far as they have got."""
        for name, rows in (("results", self.results), ("losses", self.losses)):
            write_table(self.output / f"{name}.csv", pd.DataFrame(rows))

    def print(self) -> None:
        """Print the last rows of each run: mean and deviation over seeds."""
        results, losses = pd.DataFrame(self.results), pd.DataFrame(self.losses)
        for category, rows in results[results.epoch == results.epoch.max()].groupby("category", sort=False):
            print(f"{category}, after {rows.epoch.iloc[0]} epochs, seeds {', '.join(map(str, rows.seed.unique()))}:")
            print(summarise(rows).to_string(index=False))
        print(losses.groupby(["category", "epoch", "images"], sort=False).mean().drop(columns="seed").to_string())


def load(config: Path, overrides: Sequence[str], category: str, device: torch.device) -> Category:
    """Read the images of a category to a device, pre-processed as by the config's model."""
    chosen = [*overrides, f"data.init_args.category={category}", "data.init_args.num_workers=0"]
    datamodule: Any = read_datamodule(config, chosen)
    module = make_module(merge(config, overrides), 0, device)
    test = list(prepared(module, datamodule.test_dataloader(), "test images"))
    return Category(category, list(training_images(module, datamodule)), test, datamodule.train_batch_size)


def merge(config: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Read a config with its overrides."""
    merged = OmegaConf.merge(OmegaConf.load(config), OmegaConf.from_dotlist(list(overrides)))
    return cast("dict[str, Any]", OmegaConf.to_container(merged))


def make_module(config: dict[str, Any], seed: int, device: torch.device) -> VaeAttention:
    """Make the untrained model of a config."""
    arguments = {name: value for name, value in config["model"]["init_args"].items() if name != "evaluator"}
    torch.manual_seed(seed)
    return VaeAttention(**{**arguments, "evaluator": False, "visualizer": False}).to(device)


@torch.no_grad()
def evaluate(run: Run, layers: Sequence[str], tables: Tables) -> Predicted:
    """Measure a run as it is now, in single precision, with all attentions; return maps and scores of test images."""
    run.wait()
    set_convolutions(benchmark=False, tf32=False)
    model, data = run.model.eval(), run.data
    names = {"category": data.name, "seed": run.seed, "epoch": run.epochs}
    model.collect(data.normal, layers)
    predicted = explain_batches(model, data.test, list(ATTENTIONS), layers, AT_ONCE if run.images.is_cuda else 1)
    tables.results += [{**names, **row} for row in measure(predicted)]
    good = torch.cat([batch.image[~batch.gt_label] for batch in data.test])
    for part, images in (("train", run.images), ("test, good", good)):
        tables.losses.append({**names, "images": part, **elbo(run, images)})
    # What training itself saw: augmented images, and weights that changed from step to step.
    reconstruction, kl = (run.totals / len(run.images)).tolist()
    tables.losses.append({**names, "images": "train, augmented", "reconstruction": reconstruction, "kl": kl})
    model.train()
    run.wait()
    return predicted


def elbo(run: Run, images: torch.Tensor) -> dict[str, float]:
    """Measure the negative ELBO's terms in nats per image, and the mean squared error with latents at their means."""
    vae, random = run.model.vae, torch.Generator().manual_seed(NOISE_SEED)
    noise = torch.randn(len(images), run.model.latent_dim, generator=random).to(images.device)
    found = [vae.elbo_terms(*part) for part in zip(images.split(16), noise.split(16), strict=True)]
    terms = {name: float(torch.cat([each[name] for each in found]).mean()) for name in found[0]}
    errors = [(vae.decode(vae.posterior(part).mean) - part).square().mean((1, 2, 3)) for part in images.split(16)]
    return {**terms, "squared_error": float(torch.cat(errors).mean())}


def draw(run: Run, predicted: Predicted, layer: str, file: Path) -> None:
    """Draw the maps of the defective test image whose defect is of median size, in one picture."""
    images, masks = (torch.cat([getattr(batch, name) for batch in run.data.test]) for name in ("image", "gt_mask"))
    sizes = masks.flatten(1).sum(1)
    chosen = int(torch.where(sizes == sizes[sizes > 0].median())[0][0])
    pixels = (images[chosen].permute(1, 2, 0) * 255).round().byte().cpu().numpy()
    tiles = [Tile("image and defect", outline(pixels, masks[chosen].squeeze().bool().cpu().numpy()))]
    for attention, row in ATTENTIONS.items():
        found: list[Any] = predicted[attention, layer if row.uses_layers else ""]
        values = torch.cat([batch.anomaly_map for batch in found])[chosen].squeeze().cpu()
        tiles.append(Tile(attention, heat_map(values.numpy(), find_limits([values]))))
    write_picture(file, f"{run.data.name}, {layer}, after {run.epochs} epochs, colours of each map by itself", tiles)


def train(runs: Sequence[Run], chosen: argparse.Namespace, epochs: int, started: float) -> None:
    """Train all runs side by side; measure them on the way, and after the last epoch that there is time for."""
    tables, shown = Tables(chosen.output), time.monotonic()
    for epoch in range(1, epochs + 1):
        for run in runs:
            run.advance()
        if epoch <= 3 or epoch % 10 == 0:
            # Not too far ahead of the device, so that the limit of time holds.
            runs[-1].wait()
        now = time.monotonic()
        if epoch <= 3 or epoch % 50 == 0:
            print(f"epoch {epoch}, {now - shown:.1f} s after the line above", flush=True)
            shown = now
        is_last = epoch == epochs or now - started > 60 * chosen.minutes
        if is_last or epoch in chosen.evaluate_at:
            measure_all(runs, chosen, tables, is_last=is_last)
            shown = time.monotonic()
            print(f"measured after epoch {epoch} in {shown - now:.1f} s", flush=True)
        if is_last:
            break
    tables.print()


def measure_all(runs: Sequence[Run], chosen: argparse.Namespace, tables: Tables, *, is_last: bool) -> None:
    """Measure all runs and write the tables: on the way their own layers, at last all layers, with pictures."""
    for run in runs:
        own = run.model.attention_layers
        predicted = evaluate(run, list(dict.fromkeys([*chosen.layers, *own])) if is_last else own, tables)
        if is_last and run.seed == chosen.seeds[0]:
            draw(run, predicted, own[0], tables.output / f"{run.data.name}.png")
    tables.write()


def run_all(chosen: argparse.Namespace) -> None:
    """Read the images, start all runs, and train and measure them."""
    started = time.monotonic()
    device = chosen.device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = merge(chosen.config, chosen.overrides)
    augmentation = read_augmentation(config)
    categories = [load(chosen.config, chosen.overrides, name, device) for name in chosen.categories]
    runs = [
        Run(make_module(config, seed, device), data, augmentation, seed, chosen.precision)
        for seed, data in product(chosen.seeds, categories)
    ]
    print(f"{len(runs)} runs are ready after {time.monotonic() - started:.0f} s", flush=True)
    train(runs, chosen, chosen.epochs or config["trainer"]["max_epochs"], started)


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command's arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/paper/mvtec.yaml"))
    parser.add_argument("--categories", nargs="+", default=["bottle"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, help="epochs of each run (those of the config)")
    parser.add_argument("--evaluate_at", nargs="+", type=int, default=[], help="epochs to measure the own layers after")
    parser.add_argument("--layers", nargs="+", default=list(LAYERS), help="layers of the encoder, one at a time")
    parser.add_argument("--precision", choices=PRECISIONS, default="single", help="of training; mixed is for GPUs")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop training after this long")
    parser.add_argument("--device", type=torch.device, default=None, help="such as cuda (the GPU if there is one)")
    parser.add_argument("--output", type=Path, default=Path("results/paper_mvtec"))
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="such as data.init_args.root=DIR")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the study; return its exit code, 1 after an error in arguments or data."""
    overrides, rest = take_overrides(sys.argv[1:] if arguments is None else arguments)
    try:
        run_all(make_parser().parse_intermixed_args([*overrides, *rest]))
    except (OSError, ValueError) as error:
        print(f"paper_mvtec.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
