"""The anomalib model ``vae_attention``: wiring of the torch models to Lightning and anomalib, no maths."""

import inspect
import logging
from collections.abc import Sequence
from pathlib import Path
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
from torchvision.transforms.v2 import Compose, Normalize, Resize

from .anomalib_support.checked_runs import CheckedRuns
from .anomalib_support.embedded_fallback import EmbeddedFallback
from .anomalib_support.exports import Exports
from .anomalib_support.pictures import Pictures
from .anomalib_support.pre_processing import SamePreProcessor
from .anomalib_support.unreadable_images import NameUnreadableFiles
from .anomalib_support.whole_checkpoints import checkpoint_file, saved_arguments
from .arguments import LATENT_DIM, AttentionName, ReferenceName, VaeName, check_arguments, without_effect
from .backbone import PACKAGED_BACKBONE, from_checkpoint
from .fit.closed_form import ClosedFormFit
from .fit.gradient_descent import GradientFit
from .image_vae.model import ImageVaeModel
from .reference import MAX_EXEMPLARS
from .scoring import finite_images, full_precision
from .thresholds.restored import RestoredThresholds
from .torch_model import DEFAULT_LAYERS, VaeAttentionModel

logger = logging.getLogger(__name__)


class VaeAttention(RestoredThresholds, CheckedRuns, EmbeddedFallback, Exports, AnomalibModule):  # type: ignore[misc]  # anomalib redefines to_onnx
    """A variational autoencoder explained by gradient attention, which localises defects.

    After Liu et al., "Towards Visually Explaining Variational Autoencoders" (CVPR 2020). A linear VAE over frozen
    pretrained features is fitted to normal images in closed form (probabilistic PCA), in one pass over them. The
    posteriors of an image are compared with those of normal images, and the gradient of the difference says where it
    comes from. Without a datamodule it uses the embedded data set (:class:`EmbeddedAD`).

    The paper's own VAEs of whole images are there as well, with its attention maps (:class:`ImageVaeModel`). They are
    trained for as many epochs as the trainer is told. An argument of another VAE has to keep its default.

    Args:
        Shared: arguments of every VAE.
        vae: The variational autoencoder. ``"feature"``: latents at every cell of a grid of pretrained features.
            ``"resnet18"`` and ``"conv"`` are image VAEs, with one vector of latents per image: a ResNet-18 from
            scratch, and a small convolutional network.
        reference: What normal posteriors look like. ``"exemplars"``: the posteriors of the training images themselves.
            ``"gaussian"``: a Gaussian per cell, whose size does not grow with the number of images.
        latent_dim: Number of latents. With ``"feature"`` per cell, fewer than the layers' channels together, 96 for
            ``None``; with image VAEs per image, 32 for ``None``.
        max_exemplars: Most training images that ``"exemplars"`` chooses from. Of more it takes a random sample. What it
            keeps takes up to 101 KiB per image at 256x256 with ``"feature"``. No effect on ``"gaussian"``.
        input_size: Height and width to which the default pre-processor resizes images. For ``None`` 256x256, and 28x28
            with ``"conv"``. Cells of the feature VAE's grid keep 8x8 pixels. Image VAEs take images of this size only.
        pre_processor: Pre-processor, or whether to use the default. That resizes to ``input_size``, and normalises as
            the backbone wants it with ``"feature"``.
        post_processor: Post-processor, or whether to use anomalib's default, whose thresholds need defective images.
            ``normal_quantile`` sets them for a target false-positive rate from normal images alone.
        evaluator: Evaluator, or whether to use anomalib's default.
        visualizer: Visualiser, or whether to use :class:`.Pictures`, as large as ``input_size``.

        Feature VAE: arguments of ``vae="feature"`` only.
        backbone: Name of a timm model. The default's weights are installed with this package, those of
            ``"tf_efficientnet_lite2"`` with its extra ``large``; timm downloads others.
        layers: Names of the backbone's modules to look at.
        pre_trained: Whether the backbone has ImageNet weights.
        cache_features: Whether features are kept in memory between the two passes of the fit. ``"auto"``: up to 1 GiB.
            ``False``: images are read and passed through the backbone twice.

        Image VAE: arguments of ``vae="resnet18"`` and ``vae="conv"`` only.
        attention: How maps are made. :class:`ImageVaeModel` says what each is. The feature VAE has ``"energy"``, too.
        attention_layers: Layers of an image VAE's encoder to look at; maps of several are averaged. ``None``:
            ``layer2.1.conv1`` of ``"resnet18"``, ``conv2`` of ``"conv"``.
        channels: Channels of an image VAE's images, 1 (grey) or 3. ``None``: 3 with ``"resnet18"``, 1 with ``"conv"``.
        likelihood: Likelihood of an image VAE. ``None``: Gaussian with ``"resnet18"``, Bernoulli with ``"conv"``.
        learning_rate: Step size of Adam, which trains an image VAE.
        kl_weight: Weight of the KL divergence in an image VAE's loss.
        kl_warmup_steps: Optimiser steps over which that weight rises linearly from 0.
        widths: Channels of each convolution, with ``"conv"`` only.
        hidden_dim: Width of the hidden layer, with ``"conv"`` only.
        samples: Number of samples in ``"normal_difference"``.
        seed: Seed of these samples.

    Raises:
        ValueError: If an argument is out of range, names something that does not exist, or belongs to another VAE.
            The message names the argument and says what there is.

    Example:
        >>> from anomalib_vae_attention import VaeAttention
        >>> VaeAttention(pre_trained=False).hparams["latent_dim"]
        96
        >>> VaeAttention(kl_weight=2.0)
        Traceback (most recent call last):
            ...
        ValueError: kl_weight=2.0 belongs to vae='resnet18' or vae='conv', and has no effect with vae='feature': ...
    """

    model: VaeAttentionModel | ImageVaeModel

    def __init__(
        self,
        vae: VaeName = "feature",
        attention: AttentionName = "energy",
        reference: ReferenceName = "exemplars",
        backbone: str = PACKAGED_BACKBONE,
        layers: Sequence[str] = DEFAULT_LAYERS,
        pre_trained: bool = True,
        latent_dim: int | None = None,
        max_exemplars: int = MAX_EXEMPLARS,
        cache_features: bool | Literal["auto"] = "auto",
        learning_rate: float = 1e-3,
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
        pre_processor: PreProcessor | bool = True,
        post_processor: PostProcessor | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: Visualizer | bool = True,
    ) -> None:
        super().__init__(pre_processor, post_processor, evaluator, visualizer)
        check_arguments(self.hparams, DEFAULTS)
        latent_dim = LATENT_DIM[vae] if latent_dim is None else latent_dim
        self.hparams["latent_dim"] = latent_dim
        self._chose_post_processor = post_processor is not True
        self.fit_procedure: ClosedFormFit | GradientFit
        if vae == "feature":
            self.fit_procedure = ClosedFormFit(cache_features)
            self.model = VaeAttentionModel(
                backbone=backbone,
                layers=layers,
                pre_trained=pre_trained,
                latent_dim=latent_dim,
                reference=reference,
                max_exemplars=max_exemplars,
            )
            self.hparams["layers"] = list(self.model.backbone.layers)
            default = self.configure_pre_processor(input_size, self.model.backbone.mean, self.model.backbone.std)
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
            default = SamePreProcessor(Resize(list(self.model.input_size), antialias=True))
        if pre_processor is True:
            self.pre_processor = default
        if visualizer is True and input_size is not None:
            self.visualizer = cast("Any", Pictures(max(input_size)))

    @staticmethod
    def configure_pre_processor(
        image_size: Sequence[int] | None = None,
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

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: str | Path, *args, **kwargs) -> Any:  # type: ignore[override]  # noqa: ANN401
        """Load a model; see :meth:`anomalib.models.components.AnomalibModule.load_from_checkpoint`.

        It takes no pretrained weights but the checkpoint's, neither from a package nor from a network. Earlier versions
        took arguments of another VAE, and saved them. These are left out. Errors are those of :func:`saved_arguments`.
        """
        checkpoint_path = checkpoint_file(checkpoint_path)
        saved = saved_arguments(checkpoint_path, kwargs.get("weights_only", True))
        given = {**DEFAULTS, **saved, **kwargs}
        reset = {name: DEFAULTS[name] for name in without_effect(given, DEFAULTS) if name not in kwargs}
        with from_checkpoint():
            return super().load_from_checkpoint(checkpoint_path, *args, **{**reset, **kwargs})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what it takes to go on with the training, if it has several epochs."""
        super().on_save_checkpoint(checkpoint)
        self.fit_procedure.save(self, checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on from a checkpoint, and say so where its thresholds belong to another attention than this model's.

        Raises:
            ValueError: If it is of the feature VAE as it was before images were scored by their maps.
        """
        if isinstance(self.model, VaeAttentionModel) and "model.score_mean" in checkpoint["state_dict"]:
            msg = (
                "The checkpoint is of the feature VAE of an earlier version, with other features and image scores than "
                "this one's: fit again (CHANGELOG.md)."
            )
            raise ValueError(msg)
        super().on_load_checkpoint(checkpoint)
        if self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING:
            self.fit_procedure.resume(checkpoint)
        trained = checkpoint.get("hyper_parameters", {}).get("attention")
        if trained is not None and trained != self.hparams["attention"]:
            logger.warning(
                "The checkpoint was validated with attention=%r. Its thresholds, and metrics that need them, mean "
                "nothing with attention=%r until it is validated with that (engine.validate).",
                *(trained, self.hparams["attention"]),
            )

    def configure_callbacks(self) -> list[Callback]:
        """Add to anomalib's callbacks the one that names unreadable image files."""
        return [*cast("list[Callback]", super().configure_callbacks()), NameUnreadableFiles()]

    def configure_optimizers(self) -> torch.optim.Optimizer | None:
        """Return Adam for an image VAE, and none for ``vae="feature"``, whose optimum is known."""
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
        """Get ready for a run of the trainer; see :meth:`.CheckedRuns.setup`."""
        super().setup(stage)
        self.fit_procedure.setup(self, stage)

    def on_train_start(self) -> None:
        """Get ready to fit."""
        super().on_train_start()
        self.fit_procedure.start(self)

    def training_step(self, batch: Batch, *args, **kwargs) -> STEP_OUTPUT:
        """Learn from a batch of normal images; see :class:`ClosedFormFit` and :class:`GradientFit`."""
        del args, kwargs
        return self.fit_procedure.step(self, batch)

    def on_train_batch_end(self, *args, **kwargs) -> None:
        """Finish the epoch after its last batch, before validation."""
        super().on_train_batch_end(*args, **kwargs)
        self.fit_procedure.end_step(self)

    def validation_step(self, batch: Batch, *args, **kwargs) -> STEP_OUTPUT:
        """Predict scores and anomaly maps of a batch, which is all that a test and a prediction do, too."""
        del args, kwargs
        with full_precision(self.device):
            return batch.update(**self.model(finite_images(batch, self.model))._asdict())

    test_step = validation_step
    predict_step = validation_step


DEFAULTS = {name: parameter.default for name, parameter in inspect.signature(VaeAttention).parameters.items()}
"""The default of each argument."""
