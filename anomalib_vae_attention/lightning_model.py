"""The anomalib model ``vae_attention``: wiring of the torch models to Lightning and anomalib, no maths."""

import logging
from collections.abc import Sequence
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
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import nn
from torchvision.transforms.v2 import Compose, Normalize, Resize

from .anomalib_support.distributed import Anchor, agree_on_folder
from .anomalib_support.embedded_fallback import EmbeddedFallback
from .anomalib_support.exports import Exports
from .anomalib_support.pre_processing import SamePreProcessor
from .anomalib_support.provenance import Provenance
from .anomalib_support.unreadable_images import NameUnreadableFiles
from .anomalib_support.whole_checkpoints import WholeFiles, use_whole_checkpoints
from .backbone import PACKAGED_BACKBONE
from .common.argument_checks import require_choice, require_positive, require_texts, require_whole
from .fit.closed_form import ClosedFormFit
from .fit.gradient_descent import GradientFit
from .image_vae.attention_maps import ATTENTIONS
from .image_vae.model import ImageVaeModel
from .image_vae.vae import IMAGE_VAES
from .scoring import not_finite
from .thresholds.normal_quantile import NormalQuantile
from .torch_model import DEFAULT_LAYERS, VaeAttentionModel

logger = logging.getLogger(__name__)

FEATURE_DEFAULTS = {"latent_dim": 64, "learning_rate": 1e-4}
"""What stands for ``None`` with ``vae="feature"``."""
IMAGE_DEFAULTS = {"latent_dim": 32, "learning_rate": 1e-3}
"""What stands for ``None`` with an image VAE."""


class VaeAttention(EmbeddedFallback, Provenance, Exports, WholeFiles, AnomalibModule):  # type: ignore[misc]  # anomalib redefines to_onnx
    """A variational autoencoder explained by gradient attention, which localises defects.

    After Liu et al., "Towards Visually Explaining Variational Autoencoders" (CVPR 2020). A VAE over frozen pretrained
    features is fitted to normal images in closed form (probabilistic PCA) and refined by its ELBO; the posteriors of an
    image are compared with those of normal images, and the gradient of the difference says where it comes from. One
    pass over the training images fits it. Without a datamodule it uses the embedded data set (:class:`EmbeddedAD`).

    The paper's own VAEs of whole images and its own attention maps are there as well (``vae="resnet18"``, ``"conv"``;
    :class:`ImageVaeModel` defines their maps and scores). They are trained for as many epochs as the trainer is told.

    Args:
        vae: The variational autoencoder. ``"feature"``: spatial latents over pretrained features; ``"resnet18"``:
            ResNet-18 from scratch; ``"conv"``: a small convolutional network. The latter two are image VAEs, with one
            vector of latents an image.
        attention: How maps are made. ``"energy"``: gradient of the latent energy times the departure from the
            counterfactual normal image. Image VAEs only: ``"activation_energy"`` (energy of the layer's activations
            against the reconstruction's, at its place), ``"latent"`` (eq. 1-3), ``"mean"`` (the released recipe),
            ``"normal_difference"`` (eq. 4), and the baselines ``"reconstruction"`` and ``"elbo_gradient"``.
        reference: What normal posteriors look like. ``"exemplars"``: the posteriors of the training images themselves;
            ``"gaussian"``: a Gaussian a cell, whose size does not grow with the number of images.
        backbone: Name of a timm model. The default's weights are installed with this package; those of others are
            downloaded by timm.
        layers: Names of the backbone's modules to look at, in the order of computation.
        pre_trained: Whether the backbone has ImageNet weights.
        latent_dim: Number of latents: a cell with ``"feature"``, less than the layers' channels together (64 for
            ``None``); an image with image VAEs (32 for ``None``).
        max_exemplars: Most training images that ``"exemplars"`` chooses from, of more a random sample; what it keeps
            takes 68 KiB an image at 256x256 with ``"feature"``. Has no effect on ``"gaussian"``.
        cache_features: Whether features are kept in memory between the two passes of the fit: ``True``, ``False``
            (images are read and passed through the backbone twice), or ``"auto"``, up to 1 GiB.
        elbo_steps: Gradient steps on the ELBO after the probabilistic PCA start, 0 or more.
        learning_rate: Step size of Adam: of these steps (1e-4 for ``None``), or of an image VAE's (1e-3).
        input_size: Height and width to which the default pre-processor resizes images: for ``None`` 256x256, and
            28x28 with ``"conv"``. Image VAEs take images of this size only.
        attention_layers: Layers of an image VAE's encoder that attention looks at; maps of several are averaged. For
            ``None`` ``layer2.1.conv1`` of ``"resnet18"`` and ``conv2`` of ``"conv"``.
        channels: Channels of an image VAE's images: 1 (grey; for ``None`` with ``"conv"``) or 3.
        likelihood: Likelihood of an image VAE: ``"gaussian"`` (for ``None`` with ``"resnet18"``) or ``"bernoulli"``.
        kl_weight: Weight of the KL divergence in an image VAE's loss.
        kl_warmup_steps: Optimiser steps over which that weight rises linearly from 0.
        widths: Channels of each convolution of ``"conv"``.
        hidden_dim: Width of the hidden layer of ``"conv"``.
        samples: Number of samples in ``"normal_difference"``.
        seed: Seed of these samples.
        pre_processor: Pre-processor, or whether to use the default: resize to ``input_size``; with ``"feature"`` the
            backbone's normalisation, too.
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

    model: VaeAttentionModel | ImageVaeModel

    def __init__(
        self,
        vae: Literal["feature", "resnet18", "conv"] = "feature",
        attention: Literal[
            "energy",
            "activation_energy",
            "latent",
            "mean",
            "normal_difference",
            "reconstruction",
            "elbo_gradient",
        ] = "energy",
        reference: Literal["exemplars", "gaussian"] = "exemplars",
        backbone: str = PACKAGED_BACKBONE,
        layers: Sequence[str] = DEFAULT_LAYERS,
        pre_trained: bool = True,
        latent_dim: int | None = None,
        max_exemplars: int = 2000,
        cache_features: bool | Literal["auto"] = "auto",
        elbo_steps: int = 20,
        learning_rate: float | None = None,
        input_size: Sequence[int] | None = None,
        attention_layers: Sequence[str] | None = None,
        channels: Literal[1, 3] | None = None,
        likelihood: Literal["gaussian", "bernoulli"] | None = None,
        kl_weight: float = 1.0,
        kl_warmup_steps: int = 0,
        widths: Sequence[int] = (64, 128),
        hidden_dim: int = 1024,
        samples: int = 8,
        seed: int = 0,
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
        require_choice("vae", vae, ["feature", *IMAGE_VAES])
        require_choice("attention", attention, list(ATTENTIONS))
        require_texts("backbone", [backbone])
        require_texts("layers", [layers] if isinstance(layers, str) else layers)
        defaults = FEATURE_DEFAULTS if vae == "feature" else IMAGE_DEFAULTS
        latent_dim = int(defaults["latent_dim"]) if latent_dim is None else latent_dim
        learning_rate = defaults["learning_rate"] if learning_rate is None else learning_rate
        require_whole("latent_dim", latent_dim, least=1)
        require_positive("learning_rate", learning_rate)
        self._chose_post_processor = post_processor is not True
        self.fit_procedure: ClosedFormFit | GradientFit
        if vae == "feature":
            _require_energy(attention)
            self.fit_procedure = ClosedFormFit(cache_features, elbo_steps, learning_rate)
            self.model = VaeAttentionModel(
                backbone=backbone,
                layers=layers,
                pre_trained=pre_trained,
                latent_dim=latent_dim,
                reference=reference,
                max_exemplars=max_exemplars,
            )
            self.hparams["layers"] = list(self.model.backbone.layers)
        else:
            self.fit_procedure = GradientFit(learning_rate, kl_weight, kl_warmup_steps)
            self.model = ImageVaeModel(
                vae=vae,
                attention=attention,
                attention_layers=attention_layers,
                latent_dim=latent_dim,
                input_size=input_size,
                channels=channels,
                likelihood=likelihood,
                widths=widths,
                hidden_dim=hidden_dim,
                reference=reference,
                max_exemplars=max_exemplars,
                samples=samples,
                seed=seed,
            )
        self.hparams.update({"latent_dim": latent_dim, "learning_rate": learning_rate})
        if pre_processor is True:
            self.pre_processor = self._default_pre_processor(input_size)

    def _default_pre_processor(self, input_size: Sequence[int] | None) -> PreProcessor:
        if isinstance(self.model, ImageVaeModel):
            return SamePreProcessor(Resize(list(self.model.input_size), antialias=True))
        size = None if input_size is None else (input_size[0], input_size[1])
        return self.configure_pre_processor(size, mean=self.model.backbone.mean, std=self.model.backbone.std)

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
            Pre-processor that resizes and normalises, in exported models as in the engine.
        """
        size = list(image_size or (256, 256))
        return SamePreProcessor(Compose([Resize(size, antialias=True), Normalize(mean=list(mean), std=list(std))]))

    @staticmethod
    def configure_post_processor() -> PostProcessor:
        """Create anomalib's default post-processor."""
        return PostProcessor()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what it takes to go on with the training, if it has several epochs."""
        super().on_save_checkpoint(checkpoint)
        self.fit_procedure.save(self, checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the post-processor that the checkpoint was made with, unless another was asked for.

        Says so where the thresholds of the checkpoint belong to another attention than this model's.
        """
        config = checkpoint.get("anomalib_post_processor_config") or {}
        if NormalQuantile.is_configured_by(config) and not self._chose_post_processor:
            default, self.post_processor = self.post_processor, NormalQuantile()
            callbacks: list[Callback] = getattr(self._trainer, "callbacks", [])
            callbacks[:] = [self.post_processor if callback is default else callback for callback in callbacks]
        super().on_load_checkpoint(checkpoint)
        if self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING:
            self.fit_procedure.resume(checkpoint)
        trained = checkpoint.get("hyper_parameters", {}).get("attention")
        if trained is not None and trained != self.hparams["attention"]:
            logger.warning(
                "The checkpoint was validated with attention=%r: its thresholds and normalisation do not fit "
                "attention=%r until it is validated with that (engine.validate), and metrics after them mean nothing.",
                trained,
                self.hparams["attention"],
            )

    def configure_callbacks(self) -> list[Callback]:
        """Add to anomalib's callbacks the one that names unreadable image files."""
        return [*cast("list[Callback]", super().configure_callbacks()), NameUnreadableFiles()]

    def configure_optimizers(self) -> torch.optim.Optimizer | None:
        """Return Adam for an image VAE, and none for ``vae="feature"``: its refinement has its own."""
        return self.fit_procedure.optimizer(self.model)

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """Arguments of the trainer that the way of fitting asks for."""
        return self.fit_procedure.trainer_arguments

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
        self.anchor: Anchor | None = None
        if isinstance(self.model, VaeAttentionModel) and self.trainer.world_size > 1:
            self.anchor = Anchor() if stage == "fit" else None
            self._ddp_params_and_buffers_to_ignore = [name for name, _ in self.named_buffers()]

    def on_train_start(self) -> None:
        """Get ready to fit."""
        super().on_train_start()
        self.fit_procedure.start(self)

    def on_train_epoch_start(self) -> None:
        """Get ready for an epoch."""
        super().on_train_epoch_start()
        self.fit_procedure.start_epoch(self)

    def training_step(self, batch: Batch, *args, **kwargs) -> torch.Tensor:
        """Learn from a batch of normal images; see :class:`ClosedFormFit` and :class:`GradientFit`."""
        del args, kwargs
        return self.fit_procedure.step(self, batch)

    def on_train_batch_end(self, *args, **kwargs) -> None:
        """Finish the epoch after its last batch, before validation."""
        super().on_train_batch_end(*args, **kwargs)
        self.fit_procedure.end_step(self)

    def full_precision(self) -> torch.autocast:
        """Compute in the precision of the weights: mixed precision would drop digits that maps consist of."""
        return torch.autocast(self.device.type, enabled=False)

    def finite(self, batch: Any) -> torch.Tensor:  # noqa: ANN401
        """Return the images of a batch, in the precision of the weights.

        Raises:
            ValueError: If one has pixels that are not finite, naming its file.
        """
        image: torch.Tensor = batch.image.to(next(self.model.parameters()).dtype)
        bad = not_finite(image)
        if bad:
            names = [batch.image_path[index] for index in bad] if batch.image_path else bad
            msg = f"Images with pixels that are not a number or infinite: {names}."
            raise ValueError(msg)
        return image

    def validation_step(self, batch: Batch, *args, **kwargs) -> STEP_OUTPUT:
        """Predict scores and anomaly maps of a batch."""
        del args, kwargs
        with self.full_precision():
            return batch.update(**self.model(self.finite(batch))._asdict())

    def test_step(self, batch: Batch, batch_idx: int, *args, **kwargs) -> STEP_OUTPUT:
        """Predict scores and anomaly maps of a batch."""
        return self.validation_step(batch, batch_idx, *args, **kwargs)

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> STEP_OUTPUT:
        """Predict scores and anomaly maps of a batch."""
        return self.validation_step(batch, batch_idx, dataloader_idx)


def _require_energy(attention: str) -> None:
    """Raise a ``ValueError`` if the feature VAE does not know an attention."""
    if attention != "energy":
        others = " or ".join(f"vae={name!r}" for name in IMAGE_VAES)
        msg = f"attention={attention!r} is for image VAEs ({others}); vae='feature' has attention='energy'."
        raise ValueError(msg)
