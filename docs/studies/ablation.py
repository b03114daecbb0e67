"""What each decision brings: ``python docs/studies/ablation.py CATEGORIES --cache FOLDER``.

The backbone's layers of every image are computed once and kept in a folder, in half precision. Each variant of the
default model is then fitted to them and judged, all else as in the model, and a table is printed. What is there already
is not computed again.
"""

import argparse
import contextlib
import copy
import logging
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast
from unittest.mock import patch

import pandas as pd
import torch
from anomalib.data import ImageBatch
from anomalib.metrics import AUPRO, AUROC
from torchvision.transforms.v2.functional import resize

from anomalib_vae_attention import VaeAttention, torch_model
from anomalib_vae_attention.benchmark.data import category_datamodule
from anomalib_vae_attention.common.measures import MAIN, MEASURES
from anomalib_vae_attention.fit import closed_form
from anomalib_vae_attention.fit.feature_statistics import FeatureMoments
from anomalib_vae_attention.reference import departure_metric, exemplar_choice, exemplars
from anomalib_vae_attention.torch_model import VaeAttentionModel
from anomalib_vae_attention.vae import grid

if TYPE_CHECKING:
    from anomalib.pre_processing import PreProcessor

logger = logging.getLogger(__name__)

SIZE = (256, 256)
BATCH = 8


class Images(NamedTuple):
    """The layers of a category's images, in half precision, and what the test images show.

    Attributes:
        train: Layers of the normal images, each of shape ``(N, C_l, h_l, w_l)``.
        test: The same of the test images.
        label: Whether each test image shows a defect, booleans of shape ``(n,)``.
        mask: Where, booleans of shape ``(n, H, W)``.
    """

    train: list[torch.Tensor]
    test: list[torch.Tensor]
    label: torch.Tensor
    mask: torch.Tensor


@dataclass(frozen=True)
class Variant:
    """A change of the default model.

    Attributes:
        arguments: Arguments of the model.
        constants: Values of constants, by the module or class that has them and their name.
        change: What is done to the fitted model.
        energy_alone: Whether attention is left out of the map.
    """

    arguments: dict[str, Any] = field(default_factory=dict)
    constants: dict[tuple[Any, str], Any] = field(default_factory=dict)
    change: Callable[[VaeAttentionModel], object] = lambda _: None
    energy_alone: bool = False


def _without_noise(model: VaeAttentionModel) -> None:
    model.energy_scale -= model.noise_weight
    model.noise_weight.zero_()


def _homogeneous(share: float) -> Variant:
    return Variant(constants={(departure_metric, "homogeneity"): lambda *_: share})


def _shares(*weights: float) -> Variant:
    return Variant(change=lambda model: model.share_weights.copy_(torch.tensor(weights)))


VARIANTS = {
    "default": Variant(),
    "plain metric": _homogeneous(departure_metric.PLAIN_AT),
    "Mahalanobis": _homogeneous(1.0),
    "what varies counts more": _homogeneous(departure_metric.PLAIN_AT**2),
    "512 shared": Variant(constants={(exemplar_choice, "COMMON"): 512}),
    "2048 shared": Variant(constants={(exemplar_choice, "COMMON"): 2048}),
    "energy alone": Variant(energy_alone=True),
    "without noise": Variant(change=_without_noise),
    "without noise, energy alone": Variant(change=_without_noise, energy_alone=True),
    "noise twice": Variant(change=lambda model: model.noise_weight.mul_(2)),
    "border in full": Variant(
        change=lambda model: (model.border_weight.fill_(1), model.map_border.fill_(1)),
    ),
    "border halved": Variant(change=lambda model: model.map_border.fill_(torch_model.BORDER_OF_LAYOUT)),
    "no levels": Variant(constants={(exemplars, "LEVEL_POWER"): 0.0}),
    "levels twice": Variant(constants={(exemplars, "LEVEL_POWER"): 2 * exemplars.LEVEL_POWER}),
    "highest 0.1 %": _shares(1, 0, 0, 0),
    "highest 1 %": _shares(*torch_model.ONE_SHARE),
    "highest 10 %": _shares(0, 0, 1, 0),
    "mean": _shares(0, 0, 0, 1),
    "shares alike": _shares(1, 1, 1, 1),
    "one fit": Variant(constants={(closed_form, "WORTH_A_SECOND_FIT"): 1.0}),
    "widths alike": Variant(constants={(grid, "LEAST_SHARE"): 1.0}),
    "raw alone": Variant(constants={(grid, "POOL_SIZES"): (1,), (grid, "LEAST_SHARE"): 1.0}),
    "3x3 alone": Variant(constants={(grid, "POOL_SIZES"): (3,), (grid, "LEAST_SHARE"): 1.0}),
    "64 latents": Variant({"latent_dim": 64}),
    "128 latents": Variant({"latent_dim": 128}),
    "gaussian": Variant({"reference": "gaussian"}),
}


def layers_of(category: Path, cache: Path) -> Images:
    """Compute the layers of a category's images, or read them from the cache."""
    file = cache / f"{category.name}.pt"
    if not file.exists():
        logger.info("%s: computing the backbone's layers, once.", category.name)
        module = VaeAttention(visualizer=False, evaluator=False).eval()
        model, pre_processor = cast("VaeAttentionModel", module.model), cast("PreProcessor", module.pre_processor)
        data = category_datamodule(category)
        data.setup()
        read = {}
        for name, loader in (("train", data.train_dataloader()), ("test", data.test_dataloader())):
            layers, label, mask = [], [], []
            for batch in loader:
                layers.append([layer.half() for layer in model.layers(pre_processor(batch.image))])
                label.append(batch.gt_label.bool())
                # A batch of good images has no masks.
                whole = torch.zeros(len(batch.image), *SIZE) if batch.gt_mask is None else batch.gt_mask.float()
                mask.append(resize(whole[:, None], list(SIZE))[:, 0] > 0.5)
            read[name] = [torch.cat(parts) for parts in zip(*layers, strict=True)], torch.cat(label), torch.cat(mask)
        cache.mkdir(parents=True, exist_ok=True)
        torch.save([read["train"][0], *read["test"]], file)
    train, test, label, mask = torch.load(file)
    return Images(train, test, label, mask)


def batches(layers: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Divide layers into batches in single precision."""
    for start in range(0, len(layers[0]), BATCH):
        yield [layer[start : start + BATCH].float() for layer in layers]


@contextlib.contextmanager
def given(model: VaeAttentionModel, layers: list[torch.Tensor]) -> Generator[torch.Tensor, None, None]:
    """Let a model's backbone return these layers; yield images to pass to it, whose pixels do not matter."""
    with patch.object(model.backbone, "forward", lambda _: layers):
        yield torch.zeros(len(layers[0]), 3, *SIZE)


def fit(layers: list[torch.Tensor], arguments: dict[str, Any]) -> VaeAttentionModel:
    """Fit a model to layers of normal images, as :class:`.ClosedFormFit` does."""
    model = VaeAttentionModel(pre_trained=False, **arguments)
    sums = FeatureMoments()
    for batch in batches(layers):
        with given(model.train(), batch) as images:
            sums.update(model(images))
    with torch.no_grad():
        closed_form.fit_model(model, sums.compute(), lambda: map(model.grid.stack, batches(layers)))
    return model.eval()


def judge(model: VaeAttentionModel, images: Images) -> dict[str, float]:
    """Return the measures of :data:`.MAIN` on the test images, by anomalib's metrics."""
    metrics = [
        AUROC(fields=["pred_score", "gt_label"]),
        AUROC(fields=["anomaly_map", "gt_mask"]),
        AUPRO(fields=["anomaly_map", "gt_mask"]),
    ]
    for number, layers in enumerate(batches(images.test)):
        with given(model, layers) as given_images:
            prediction = model(given_images)
        some = slice(number * BATCH, (number + 1) * BATCH)
        batch = ImageBatch(
            image=torch.zeros(len(layers[0]), 3, *SIZE),
            gt_label=images.label[some],
            gt_mask=images.mask[some],
            pred_score=prediction.pred_score,
            anomaly_map=prediction.anomaly_map[:, 0],
        )
        for metric in metrics:
            metric.update(batch)
    return {name: float(metric.compute()) for name, metric in zip(MAIN, metrics, strict=True)}


def measure(images: Images, variant: Variant, fitted: dict[str, VaeAttentionModel]) -> dict[str, float]:
    """Fit one variant and judge it; variants that change nothing before the fit share it, in ``fitted``."""
    with contextlib.ExitStack() as stack:
        for (owner, name), value in variant.constants.items():
            stack.enter_context(patch.object(owner, name, value))
        if variant.energy_alone:
            stack.enter_context(patch.object(torch_model, "energy_attention", _no_attention))
        key = f"{variant.arguments} {variant.constants}"
        if key not in fitted:
            fitted[key] = fit(images.train, variant.arguments)
        model = copy.deepcopy(fitted[key])
        variant.change(model)
        return judge(model, images)


def _no_attention(activations: Sequence[torch.Tensor], *_: object) -> list[torch.Tensor]:
    return [layer.new_zeros(len(layer), *layer.shape[-2:]) for layer in activations]


def table(rows: pd.DataFrame) -> str:
    """Return a table: a row per category, a column per variant, the three measures in each cell."""
    cells = rows[MAIN].map("{:.4f}".format).agg(" / ".join, axis=1).rename("measures")
    order = rows.index.unique("variant")
    return cells.reset_index().pivot_table("measures", "category", "variant", "first")[order].to_string()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("categories", nargs="+", type=Path, help="folders of categories in MVTec AD's layout")
    parser.add_argument("--cache", type=Path, required=True, help="folder for layers and results: 0.6 MB per image")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), help="all")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    file = arguments.cache / "results.csv"
    known = pd.read_csv(file, index_col=[0, 1]).to_dict("index") if file.exists() else {}
    torch.set_grad_enabled(False)
    for category in arguments.categories:
        missing = [name for name in arguments.variants if (category.name, name) not in known]
        if not missing:
            continue
        images = layers_of(category.resolve(), arguments.cache)
        fitted: dict[str, VaeAttentionModel] = {}
        for name in missing:
            known[category.name, name] = measure(images, VARIANTS[name], fitted)
            logger.info("%s, %s: %s", category.name, name, known[category.name, name])
            pd.DataFrame.from_dict(known, orient="index").rename_axis(["category", "variant"]).to_csv(file)
    rows = pd.DataFrame.from_dict(known, orient="index").rename_axis(["category", "variant"])
    print(" / ".join(MEASURES[name] for name in MAIN))
    print(table(rows))


if __name__ == "__main__":
    main()
