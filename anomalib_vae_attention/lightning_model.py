"""The anomalib model ``vae_attention``: wiring of the torch model to Lightning and anomalib, no maths."""

import logging
from collections.abc import Iterator, Sequence
from typing import Any, Literal, cast

import torch
from anomalib import LearningType
from anomalib.data import Batch
from anomalib.metrics import Evaluator
from anomalib.models.components import AnomalibModule
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from anomalib.visualization import Visualizer
from lightning.pytorch import Callback
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import nn
from torchvision.transforms.v2 import Compose, Normalize, Resize

from .arguments import require_choice, require_positive, require_texts, require_whole
from .backbone import PACKAGED_BACKBONE
from .distributed import Anchor, OwnImages, agree_on_folder, gather, interleave, share, world_size
from .embedded_fallback import EmbeddedFallback
from .fitting import FeatureCache, FeatureMoments, refine
from .normal_quantile import HeldOut, NormalQuantile
from .persistence import WholeFiles, use_whole_checkpoints
from .torch_model import DEFAULT_LAYERS, VaeAttentionModel
from .unreadable import NameUnreadableFiles

logger = logging.getLogger(__name__)


class VaeAttention(EmbeddedFallback, WholeFiles, AnomalibModule):  # type: ignore[misc]  # anomalib redefines to_onnx
    """A variational autoencoder explained by gradient attention, which localises defects.

    After Liu et al., "Towards Visually Explaining Variational Autoencoders" (CVPR 2020). A VAE over frozen pretrained
    features is fitted to normal images in closed form (probabilistic PCA) and refined by its ELBO; the posteriors of an
    image are compared with those of normal images, and the gradient of the difference says where it comes from. One
    pass over the training images fits it. Without a datamodule it uses the embedded data set (:class:`EmbeddedAD`).

    Args:
        vae: The variational autoencoder. ``"feature"``: spatial latents over pretrained features.
        attention: How maps are made. ``"energy"``: gradient of the latent energy times the departure from the
            counterfactual normal image.
        reference: What normal posteriors look like. ``"exemplars"``: the posteriors of the training images themselves;
            ``"gaussian"``: a Gaussian a cell, whose size does not grow with the number of images.
        backbone: Name of a timm model. The default's weights are installed with this package; those of others are
            downloaded by timm.
        layers: Names of the backbone's modules to look at, in the order of computation.
        pre_trained: Whether the backbone has ImageNet weights.
        latent_dim: Number of latents a cell, less than the layers' channels together.
        max_exemplars: Most training images that ``"exemplars"`` keeps, 68 KiB each at 256x256; of more, a random
            sample. Has no effect on ``"gaussian"``.
        cache_features: Whether features are kept in memory between the two passes of the fit: ``True``, ``False``
            (images are read and passed through the backbone twice), or ``"auto"``, up to 1 GiB.
        elbo_steps: Gradient steps on the ELBO after the probabilistic PCA start, 0 or more.
        learning_rate: Step size of these steps (Adam).
        pre_processor: Pre-processor, or whether to use the default: resize to 256x256, the backbone's normalisation.
        post_processor: Post-processor, or whether to use anomalib's default, whose thresholds need defective images.
            :class:`NormalQuantile` sets them for a target false-positive rate from normal images alone.
        evaluator: Evaluator, or whether to use anomalib's default.
        visualizer: Visualiser, or whether to use anomalib's default.

    Raises:
        ValueError: If an argument is out of range or names something that does not exist; the message names the
            argument and what there is.

    Example:
        >>> from anomalib.data import MVTecAD
        >>> from anomalib.engine import Engine
        >>> from anomalib_vae_attention import VaeAttention
        >>> engine = Engine()
        >>> engine.train(model=VaeAttention(), datamodule=MVTecAD(category="bottle"))  # doctest: +SKIP
    """

    model: VaeAttentionModel

    def __init__(
        self,
        vae: Literal["feature"] = "feature",
        attention: Literal["energy"] = "energy",
        reference: Literal["exemplars", "gaussian"] = "exemplars",
        backbone: str = PACKAGED_BACKBONE,
        layers: Sequence[str] = DEFAULT_LAYERS,
        pre_trained: bool = True,
        latent_dim: int = 64,
        max_exemplars: int = 2000,
        cache_features: bool | Literal["auto"] = "auto",
        elbo_steps: int = 20,
        learning_rate: float = 1e-4,
        pre_processor: nn.Module | bool = True,
        post_processor: nn.Module | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: Visualizer | bool = True,
    ) -> None:
        super().__init__(
            pre_processor=pre_processor,
            post_processor=post_processor,
            evaluator=evaluator,
            visualizer=visualizer,
        )
        require_choice("vae", vae, ["feature"])
        require_choice("attention", attention, ["energy"])
        require_texts("backbone", [backbone])
        require_texts("layers", [layers] if isinstance(layers, str) else layers)
        require_whole("latent_dim", latent_dim, least=1)
        require_whole("max_exemplars", max_exemplars, least=1)
        require_whole("elbo_steps", elbo_steps, least=0)
        require_positive("learning_rate", learning_rate)
        FeatureCache(cache_features)
        self._chose_post_processor = post_processor is not True
        self.cache_features = cache_features
        self.elbo_steps = elbo_steps
        self.learning_rate = learning_rate
        self.model = VaeAttentionModel(
            backbone=backbone,
            layers=layers,
            pre_trained=pre_trained,
            latent_dim=latent_dim,
            reference=reference,
            max_exemplars=max_exemplars,
        )
        self.hparams["layers"] = list(self.model.backbone.layers)
        if pre_processor is True:
            self.pre_processor = self.configure_pre_processor(
                mean=self.model.backbone.mean, std=self.model.backbone.std
            )

    @staticmethod
    def configure_pre_processor(
        image_size: tuple[int, int] | None = None,
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.5, 0.5, 0.5),
    ) -> PreProcessor:
        """Create the default pre-processor.

        Args:
            image_size: Height and width in pixels to resize to. Defaults to 256x256.
            mean: Mean of each channel that the backbone was trained with.
            std: Standard deviation of each channel that the backbone was trained with.

        Returns:
            Pre-processor that resizes and normalises.
        """
        size = list(image_size or (256, 256))
        return PreProcessor(Compose([Resize(size, antialias=True), Normalize(mean=list(mean), std=list(std))]))

    @staticmethod
    def configure_post_processor() -> PostProcessor:
        """Create anomalib's default post-processor."""
        return PostProcessor()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the post-processor that the checkpoint was made with, unless another was asked for.

        Raises:
            ValueError: If a value of the model's state is not a number.
        """
        for name, tensor in checkpoint["state_dict"].items():
            if name.startswith("model.") and isinstance(tensor, torch.Tensor) and not tensor.isfinite().all():
                msg = f"The checkpoint has values in {name} that are not a number or infinite: it cannot be used."
                raise ValueError(msg)
        config = checkpoint.get("anomalib_post_processor_config") or {}
        if NormalQuantile.is_configured_by(config) and not self._chose_post_processor:
            default, self.post_processor = self.post_processor, NormalQuantile()
            callbacks: list[Callback] = getattr(self._trainer, "callbacks", [])
            callbacks[:] = [self.post_processor if callback is default else callback for callback in callbacks]
        super().on_load_checkpoint(checkpoint)

    def configure_callbacks(self) -> list[Callback]:
        """Add to anomalib's callbacks the one that names unreadable image files."""
        return [*cast("list[Callback]", super().configure_callbacks()), NameUnreadableFiles()]

    @staticmethod
    def configure_optimizers() -> None:
        """Return no optimiser: the refinement of the ELBO has its own."""
        return

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """One pass over the training images, then validation."""
        return {"max_epochs": 1, "num_sanity_val_steps": 0, "val_check_interval": 1.0, "gradient_clip_val": 0}

    @property
    def learning_type(self) -> LearningType:
        """It learns from normal images only."""
        return LearningType.ONE_CLASS

    def setup(self, stage: str) -> None:
        """Get ready for several processes, which merge what they learn themselves, and for whole checkpoints.

        Raises:
            ValueError: If the trainer's precision is too low.
        """
        super().setup(stage)
        if self.trainer.precision in {"16-true", "bf16-true"}:
            msg = f"precision={self.trainer.precision!r} is too low for this model: use '32-true' or a mixed one."
            raise ValueError(msg)
        agree_on_folder(self.trainer)
        use_whole_checkpoints(self.trainer)
        self._anchor = Anchor() if stage == "fit" and self.trainer.world_size > 1 else None
        self._ddp_params_and_buffers_to_ignore = [name for name, _ in self.named_buffers()]

    def on_train_start(self) -> None:
        """Start collecting features."""
        super().on_train_start()
        self._moments = FeatureMoments()
        self._cache = FeatureCache(self.cache_features)
        self._own = OwnImages(self.trainer.train_dataloader)
        self._held_out = None
        if isinstance(self.post_processor, NormalQuantile) and self.post_processor.held_out:
            self._held_out = HeldOut(self.trainer.train_dataloader, self.post_processor.held_out)

    def training_step(self, batch: Batch, *args, **kwargs) -> torch.Tensor:
        """Collect the features of a batch of normal images; fit the model to all of them after the last."""
        del args, kwargs
        with torch.no_grad(), self._full_precision():
            image = self._finite(batch)
            features = self.model(image)
            learnt, held_out = self._divide(image, batch)
            if learnt.any():
                self._moments.update(features[learnt])
                self._cache.append(features[learnt])
            if self._held_out:
                self._held_out.keep(image[held_out])
        if self.trainer.is_last_batch:
            with self._full_precision():
                self._fit()
        # Lightning saves a checkpoint only after it has counted a step, and counts none without a loss.
        return self._anchor() if self._anchor else torch.zeros((), requires_grad=True, device=self.device)

    def _full_precision(self) -> torch.autocast:
        """Compute in the precision of the weights: mixed precision would drop digits that maps consist of."""
        return torch.autocast(self.device.type, enabled=False)

    def _divide(self, image: torch.Tensor, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:  # noqa: ANN401
        """Say which images of a batch are learnt from and which are held out; of repeated ones, neither is true."""
        own = torch.arange(len(image)) < self._own.among(len(image))
        learnt = self._held_out.remaining(batch.image_path) if self._held_out else torch.ones_like(own)
        return own & learnt, own & ~learnt

    def _fit(self) -> None:
        if world_size() > 1:
            parts, self._moments = gather(self._moments.sums()), FeatureMoments()
            for count, *sums in parts:
                self._moments.add(count, *(tensor.to(self.device) for tensor in sums))
        covariance = self.model.grid.fit(*self._moments.compute())
        self.model.vae.initialise(covariance)
        history = refine(self.model.vae, covariance, self.elbo_steps, self.learning_rate)
        share(self.model.grid)
        share(self.model.vae)
        for step, terms in enumerate(history[:-1]):
            for experiment in self.loggers:
                experiment.log_metrics({f"elbo_{name}": value for name, value in terms.items()}, step=step)
        start, end = history[0], history[-1]
        self.log_dict({f"train_{name}": value for name, value in end.items()}, prog_bar=True)
        logger.info(
            "Negative ELBO of the normal images: %.3f nats a cell at the probabilistic PCA start, %.3f after %d steps.",
            start["loss"],
            end["loss"],
            self.elbo_steps,
        )
        with torch.no_grad():
            self._fit_reference()
            if self._held_out:
                self._set_thresholds(self._held_out)
        del self._cache, self._moments, self._held_out

    def _fit_reference(self) -> None:
        reference = self.model.reference
        reference.start()
        images = 0
        for features in interleave(self._cache if self._cache.complete else self._stream()):
            reference.update(self.model.vae.posterior(self.model.grid.standardise(features)))
            images += len(features)
        self.model.calibrate(reference.finish())
        size = sum(buffer.nbytes for buffer in reference.buffers()) / 2**20
        logger.info("Normal reference: %d images, %.1f MiB.", images, size)

    def _set_thresholds(self, held_out: HeldOut) -> None:
        """Score the images that were held out, as new images are scored, and set the thresholds from them."""
        post_processor = cast("NormalQuantile", self.post_processor)
        self.model.eval()
        for images in held_out.batches():
            prediction = self.model(images.to(self.device))
            post_processor.update(prediction.pred_score, prediction.anomaly_map)
        self.model.train()
        post_processor.compute()

    def _stream(self) -> Iterator[torch.Tensor]:
        """Read the training images and compute their features again."""
        logger.info("The features are not kept in memory (cache_features=%s): reading again.", self.cache_features)
        self._own = OwnImages(self.trainer.train_dataloader)
        for index, loaded in enumerate(self.trainer.train_dataloader or ()):
            batch = self.transfer_batch_to_device(loaded, self.device, 0)
            if isinstance(self.pre_processor, PreProcessor):
                self.pre_processor.on_train_batch_start(self.trainer, self, batch, index)
            learnt, _ = self._divide(batch.image, batch)
            yield self.model(self._finite(batch))[learnt]

    def _finite(self, batch: Any) -> torch.Tensor:  # noqa: ANN401
        """Return the images of a batch, in the precision of the weights.

        Raises:
            ValueError: If one has pixels that are not finite, naming its file.
        """
        image: torch.Tensor = batch.image.to(self.model.energy_scale.dtype)
        bad = (~image.isfinite().flatten(1).all(1)).nonzero().flatten().tolist()
        if bad:
            names = [batch.image_path[index] for index in bad] if batch.image_path else bad
            msg = f"Images with pixels that are not a number or infinite: {names}."
            raise ValueError(msg)
        return image

    def validation_step(self, batch: Batch, *args, **kwargs) -> STEP_OUTPUT:
        """Predict scores and anomaly maps of a batch."""
        del args, kwargs
        with self._full_precision():
            return batch.update(**self.model(self._finite(batch))._asdict())

    def test_step(self, batch: Batch, batch_idx: int, *args, **kwargs) -> STEP_OUTPUT:
        """Predict scores and anomaly maps of a batch."""
        return self.validation_step(batch, batch_idx, *args, **kwargs)

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> STEP_OUTPUT:
        """Predict scores and anomaly maps of a batch."""
        return self.validation_step(batch, batch_idx, dataloader_idx)
