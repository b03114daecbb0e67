"""The fit of the feature VAE: one pass over the normal images, probabilistic PCA, then the normal reference."""

import logging
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, Literal, cast

import torch
from anomalib.models.components import AnomalibModule

from anomalib_vae_attention.anomalib_support.distributed import (
    Anchor,
    OwnImages,
    gather,
    interleave,
    share,
    world_size,
)
from anomalib_vae_attention.reference import LeftOut
from anomalib_vae_attention.scoring import finite_images, full_precision
from anomalib_vae_attention.thresholds.normal_quantile import NormalQuantile
from anomalib_vae_attention.torch_model import ONE_LAYOUT, VaeAttentionModel

from .feature_statistics import FeatureCache, FeatureMoments, Moments
from .held_out_images import HeldOut
from .procedure import FitProcedure, read_again

logger = logging.getLogger(__name__)


WORTH_A_SECOND_FIT = 0.25
"""How near energies must be to the Mahalanobis distance for the layers to be weighed anew."""


def fit_model(
    model: VaeAttentionModel, moments: Moments, read_features: Callable[[], Iterable[torch.Tensor]]
) -> torch.Tensor:
    """Fit the VAE and its normal reference, and once more where normal images are a homogeneous texture.

    Whether they are shows in their departures from the reference (see :class:`.LeftOut`); the layers then count
    differently (see :class:`.FeatureGrid`).

    Args:
        model: The model, prepared for the size of the images.
        moments: Moments of the raw grid features of normal images.
        read_features: Gives these features in batches of shape ``(B, C, h, w)``; called once or twice.

    Returns:
        Covariance of the standardised features, of shape ``(C, C)``, float64.
    """
    mahalanobis = 0.0
    covariance, left_out, place_share = _fit_once(model, moments, read_features, mahalanobis)
    # Of the first process: processors differ in the last digits, and all processes have to go the same way.
    found = gather(left_out.mahalanobis)[0]
    if found > WORTH_A_SECOND_FIT:
        logger.info("Normal images are a homogeneous texture: detail counts more, and coarse layers less.")
        mahalanobis = found
        covariance, left_out, place_share = _fit_once(model, moments, read_features, mahalanobis)
    model.calibrate(left_out, place_share, mahalanobis)
    logger.info(
        "The place explains %.0f %% of what normal images look like: %s, and noise with weight %.2f.",
        100 * place_share,
        "one layout, so that the border counts half" if model.map_border < 1 else "the border counts in full",
        float(model.noise_weight / (model.energy_scale - model.noise_weight)),
    )
    return covariance


def _fit_once(
    model: VaeAttentionModel,
    moments: Moments,
    read_features: Callable[[], Iterable[torch.Tensor]],
    mahalanobis: float,
) -> tuple[torch.Tensor, LeftOut, float]:
    covariance = model.grid.fit(*moments, mahalanobis)
    model.vae.initialise(covariance)
    share(model.grid)
    share(model.vae)
    place_share = model.grid.explained_by_place(moments.place_share, mahalanobis)
    model.reference.start(one_layout=place_share > ONE_LAYOUT)
    images = 0
    for features in read_features():
        posterior, _ = model.posterior(model.grid.standardise(features))
        model.reference.update(posterior)
        images += len(features)
    left_out = model.reference.finish()
    size = sum(buffer.nbytes for buffer in model.reference.buffers()) / 2**20
    logger.info("Normal reference: %d images, %.1f MiB.", images, size)
    return covariance, left_out, place_share


class ClosedFormFit(FitProcedure):
    """How the model of ``vae="feature"`` learns: the optimum of its ELBO is known from the features' moments.

    Args:
        cache_features: Whether features are kept in memory between the two passes of the fit; see
            :class:`FeatureCache`.
    """

    def __init__(self, cache_features: bool | Literal["auto"]) -> None:
        self.cache_features = cache_features
        self._anchor: Anchor | None = None

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """One pass over the training images, then validation."""
        return {"max_epochs": 1, "num_sanity_val_steps": 0, "val_check_interval": 1.0, "gradient_clip_val": 0}

    def setup(self, module: AnomalibModule, stage: str) -> None:
        """Let several processes fit a model without trainable weights, whose buffers they share themselves."""
        several = module.trainer.world_size > 1
        self._anchor = Anchor() if several and stage == "fit" else None
        module.register_module("anchor", self._anchor)
        if several:
            ignored: Any = [name for name, _ in module.named_buffers()]
            module._ddp_params_and_buffers_to_ignore = ignored  # noqa: SLF001

    def start(self, module: AnomalibModule) -> None:
        """Start collecting features.

        Raises:
            ValueError: If there is to be more than one epoch, which anomalib's engine sees to.
        """
        epochs = module.trainer.max_epochs
        if epochs != 1:
            msg = f"vae='feature' is fitted in one epoch: use anomalib's Engine or max_epochs=1, not {epochs}."
            raise ValueError(msg)
        self._moments = FeatureMoments()
        self._cache = FeatureCache(self.cache_features)
        self._own = OwnImages(module.trainer.train_dataloader)
        self._held_out = None
        if isinstance(module.post_processor, NormalQuantile) and module.post_processor.held_out:
            self._held_out = HeldOut(module.trainer.train_dataloader, module.post_processor.held_out)

    def step(self, module: AnomalibModule, batch: Any) -> torch.Tensor:  # noqa: ANN401
        """Collect the features of a batch of normal images; fit the model to all of them after the last."""
        model = cast("VaeAttentionModel", module.model)
        with torch.no_grad(), full_precision(module.device):
            image = finite_images(batch, module.model)
            features = model(image)
            learnt, held_out = self._divide(image, batch)
            if learnt.any():
                self._moments.update(features[learnt])
                self._cache.append(features[learnt])
            if self._held_out:
                self._held_out.keep(image[held_out])
            if module.trainer.is_last_batch:
                self._fit(module, model)
        # Lightning saves a checkpoint only after it has counted a step, and counts none without a loss.
        return self._anchor() if self._anchor else torch.zeros((), requires_grad=True, device=module.device)

    def _divide(self, image: torch.Tensor, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:  # noqa: ANN401
        """Say which images of a batch are learnt from and which are held out; of repeated ones, neither is true."""
        own = torch.arange(len(image)) < self._own.among(len(image))
        learnt = self._held_out.remaining(batch.image_path) if self._held_out else torch.ones_like(own)
        return own & learnt, own & ~learnt

    def _fit(self, module: AnomalibModule, model: VaeAttentionModel) -> None:
        if world_size() > 1:
            parts, self._moments = gather(self._moments.sums()), FeatureMoments()
            for count, *sums in parts:
                self._moments.add(count, *(tensor.to(module.device) for tensor in sums))
        covariance = fit_model(model, self._moments.compute(), partial(self._features, module))
        terms = model.vae.elbo_terms(covariance.new_zeros(len(covariance)), covariance)
        module.log_dict({f"train_{name}": float(term) for name, term in terms.items()}, prog_bar=True)
        logger.info("Negative ELBO of the normal images: %.3f nats per cell.", float(terms["loss"]))
        if self._held_out:
            self._set_thresholds(module, self._held_out)
        del self._cache, self._moments, self._held_out

    def _features(self, module: AnomalibModule) -> Iterator[torch.Tensor]:
        """Yield the raw grid features of all normal images."""
        return interleave(self._cache if self._cache.complete else self._stream(module))

    @staticmethod
    def _set_thresholds(module: AnomalibModule, held_out: HeldOut) -> None:
        """Score the images that were held out, as new images are scored, and set the thresholds from them."""
        post_processor = cast("NormalQuantile", module.post_processor)
        module.model.eval()
        for images in held_out.batches():
            prediction = module.model(images.to(module.device))
            post_processor.update(prediction.pred_score, prediction.anomaly_map)
        module.model.train()
        post_processor.compute()

    def _stream(self, module: AnomalibModule) -> Iterator[torch.Tensor]:
        """Read the training images and compute their features again."""
        logger.info("The features are not kept in memory (cache_features=%s): reading again.", self.cache_features)
        self._own = OwnImages(module.trainer.train_dataloader)
        for batch in read_again(module, module.trainer.train_dataloader or ()):
            learnt, _ = self._divide(batch.image, batch)
            yield module.model(finite_images(batch, module.model))[learnt]
