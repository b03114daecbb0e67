"""The fit of the feature VAE: one pass over the normal images, closed form, refinement, normal reference."""

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from anomalib.pre_processing import PreProcessor

from anomalib_vae_attention.anomalib_support.distributed import OwnImages, gather, interleave, share, world_size
from anomalib_vae_attention.common.argument_checks import require_whole
from anomalib_vae_attention.thresholds.normal_quantile import NormalQuantile

from .feature_statistics import FeatureCache, FeatureMoments, refine
from .held_out_images import HeldOut

if TYPE_CHECKING:
    from anomalib_vae_attention.lightning_model import VaeAttention
    from anomalib_vae_attention.torch_model import VaeAttentionModel

logger = logging.getLogger(__name__)


class ClosedFormFit:
    """How the model of ``vae="feature"`` learns: see :class:`VaeAttention` for the arguments.

    Args:
        cache_features: Whether features are kept in memory between the two passes of the fit.
        elbo_steps: Gradient steps on the ELBO after the probabilistic PCA start, 0 or more.
        learning_rate: Step size of these steps.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(self, cache_features: bool | Literal["auto"], elbo_steps: int, learning_rate: float) -> None:
        require_whole("elbo_steps", elbo_steps, least=0)
        FeatureCache(cache_features)
        self.cache_features = cache_features
        self.elbo_steps = elbo_steps
        self.learning_rate = learning_rate

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """One pass over the training images, then validation."""
        return {"max_epochs": 1, "num_sanity_val_steps": 0, "val_check_interval": 1.0, "gradient_clip_val": 0}

    @staticmethod
    def optimizer(model: torch.nn.Module) -> None:
        """Return no optimiser: the refinement of the ELBO has its own."""
        del model

    def start(self, module: "VaeAttention") -> None:
        """Start collecting features."""
        self._moments = FeatureMoments()
        self._cache = FeatureCache(self.cache_features)
        self._own = OwnImages(module.trainer.train_dataloader)
        self._held_out = None
        if isinstance(module.post_processor, NormalQuantile) and module.post_processor.held_out:
            self._held_out = HeldOut(module.trainer.train_dataloader, module.post_processor.held_out)

    def start_epoch(self, module: "VaeAttention") -> None:
        """Do nothing: there is one epoch."""

    def save(self, module: "VaeAttention", checkpoint: dict[str, Any]) -> None:
        """Do nothing: what was stopped within its one epoch starts again."""

    def resume(self, checkpoint: dict[str, Any]) -> None:
        """Do nothing: a checkpoint is of a fit that is done."""

    def step(self, module: "VaeAttention", batch: Any) -> torch.Tensor:  # noqa: ANN401
        """Collect the features of a batch of normal images; fit the model to all of them after the last."""
        with torch.no_grad(), module.full_precision():
            image = module.finite(batch)
            features = module.model(image)
            learnt, held_out = self._divide(image, batch)
            if learnt.any():
                self._moments.update(features[learnt])
                self._cache.append(features[learnt])
            if self._held_out:
                self._held_out.keep(image[held_out])
        if module.trainer.is_last_batch:
            with module.full_precision():
                self._fit(module, cast("VaeAttentionModel", module.model))
        # Lightning saves a checkpoint only after it has counted a step, and counts none without a loss.
        return module.anchor() if module.anchor else torch.zeros((), requires_grad=True, device=module.device)

    def _divide(self, image: torch.Tensor, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:  # noqa: ANN401
        """Say which images of a batch are learnt from and which are held out; of repeated ones, neither is true."""
        own = torch.arange(len(image)) < self._own.among(len(image))
        learnt = self._held_out.remaining(batch.image_path) if self._held_out else torch.ones_like(own)
        return own & learnt, own & ~learnt

    def end_step(self, module: "VaeAttention") -> None:
        """Do nothing more."""

    def _fit(self, module: "VaeAttention", model: "VaeAttentionModel") -> None:
        if world_size() > 1:
            parts, self._moments = gather(self._moments.sums()), FeatureMoments()
            for count, *sums in parts:
                self._moments.add(count, *(tensor.to(module.device) for tensor in sums))
        covariance = model.grid.fit(*self._moments.compute())
        model.vae.initialise(covariance)
        history = refine(model.vae, covariance, self.elbo_steps, self.learning_rate)
        share(model.grid)
        share(model.vae)
        for step, terms in enumerate(history[:-1]):
            for experiment in module.loggers:
                experiment.log_metrics({f"elbo_{name}": value for name, value in terms.items()}, step=step)
        start, end = history[0], history[-1]
        module.log_dict({f"train_{name}": value for name, value in end.items()}, prog_bar=True)
        logger.info(
            "Negative ELBO of the normal images: %.3f nats a cell at the probabilistic PCA start, %.3f after %d steps.",
            start["loss"],
            end["loss"],
            self.elbo_steps,
        )
        with torch.no_grad():
            self._fit_reference(module, model)
            if self._held_out:
                self._set_thresholds(module, self._held_out)
        del self._cache, self._moments, self._held_out

    def _fit_reference(self, module: "VaeAttention", model: "VaeAttentionModel") -> None:
        reference = model.reference
        reference.start()
        images = 0
        for features in interleave(self._cache if self._cache.complete else self._stream(module)):
            reference.update(model.vae.posterior(model.grid.standardise(features)))
            images += len(features)
        model.calibrate(reference.finish())
        size = sum(buffer.nbytes for buffer in reference.buffers()) / 2**20
        logger.info("Normal reference: %d images, %.1f MiB.", images, size)

    @staticmethod
    def _set_thresholds(module: "VaeAttention", held_out: HeldOut) -> None:
        """Score the images that were held out, as new images are scored, and set the thresholds from them."""
        post_processor = cast("NormalQuantile", module.post_processor)
        module.model.eval()
        for images in held_out.batches():
            prediction = module.model(images.to(module.device))
            post_processor.update(prediction.pred_score, prediction.anomaly_map)
        module.model.train()
        post_processor.compute()

    def _stream(self, module: "VaeAttention") -> Iterator[torch.Tensor]:
        """Read the training images and compute their features again."""
        logger.info("The features are not kept in memory (cache_features=%s): reading again.", self.cache_features)
        self._own = OwnImages(module.trainer.train_dataloader)
        for index, loaded in enumerate(module.trainer.train_dataloader or ()):
            batch = module.transfer_batch_to_device(loaded, module.device, 0)
            if isinstance(module.pre_processor, PreProcessor):
                module.pre_processor.on_train_batch_start(module.trainer, module, batch, index)
            learnt, _ = self._divide(batch.image, batch)
            yield module.model(module.finite(batch))[learnt]
