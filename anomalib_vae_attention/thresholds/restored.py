"""Thresholds at load: what the user asks for wins over the checkpoint, or a warning says that it does not."""

import logging
from typing import Any

from anomalib.post_processing import PostProcessor
from lightning.pytorch import Callback, LightningModule, Trainer

from .calibration import Calibration
from .conformal import pixel_threshold
from .normal_quantile import NormalQuantile

PREFIX = "post_processor."
CONFIG_KEY = "anomalib_post_processor_config"
PIXEL_RATE = 0.01
"""Share of the pixels of normal images above the pixel threshold where there are no masks."""

logger = logging.getLogger(__name__)


class ValidatedThresholds(PostProcessor):
    """anomalib's post-processor, but for the pixel threshold where there are no masks.

    anomalib takes the image threshold there, which is of another scale. This takes the level that a share of
    :data:`PIXEL_RATE` of the pixels of normal validation images exceeds.
    """

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start looking at the maps of normal images."""
        del trainer, pl_module
        self._normal = Calibration()

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args) -> None:  # noqa: ANN401
        """Look at the maps of normal images, too."""
        super().on_validation_batch_end(trainer, pl_module, outputs, *args)
        if outputs.gt_mask is None and outputs.gt_label is not None:
            normal = ~outputs.gt_label.bool().flatten()
            self._normal.update(outputs.pred_score[normal], outputs.anomaly_map[normal])

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the pixel threshold from the maps, if there was no mask."""
        super().on_validation_epoch_end(trainer, pl_module)
        normal = self._normal.gathered()
        if len(normal):
            self._pixel_threshold.fill_(pixel_threshold(normal.levels, len(normal), PIXEL_RATE))


class RestoredThresholds(LightningModule):
    """A model whose post-processor comes from the checkpoint, but for what the user asked for.

    To be inherited from before the model's own base, which must say in ``_chose_post_processor`` whether the user gave
    one.
    """

    post_processor: Any
    _chose_post_processor: bool

    @staticmethod
    def configure_post_processor() -> PostProcessor:
        """Create the default post-processor."""
        return ValidatedThresholds()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the post-processor.

        Without one of the user's, it is as the checkpoint has it. The user's own keeps its settings. If it is a
        :class:`NormalQuantile` and the checkpoint knows normal scores, the thresholds are those of its rates.
        """
        saved = checkpoint.get(CONFIG_KEY) or {}
        of_rates = NormalQuantile.is_configured_by(saved)
        if not self._chose_post_processor:
            if of_rates and self.post_processor is not None:
                default, self.post_processor = self.post_processor, NormalQuantile()
                callbacks: list[Callback] = getattr(self._trainer, "callbacks", [])
                # An engine that has run before has the one of its last model, which would judge a second time.
                kept = [one for one in callbacks if one is default or not isinstance(one, PostProcessor)]
                callbacks[:] = [self.post_processor if one is default else one for one in kept]
            super().on_load_checkpoint(checkpoint)
        else:
            given = self.post_processor
            super().on_load_checkpoint({key: value for key, value in checkpoint.items() if key != CONFIG_KEY})
            self.post_processor = given
        state = checkpoint["state_dict"]
        restored = self._chose_post_processor and _take_thresholds(self.post_processor, saved)
        own = {name: value for name, value in self.state_dict().items() if name.startswith(PREFIX)}
        for name in [name for name in state if name.startswith(PREFIX) and name not in own]:
            del state[name]
        state.update({name: value for name, value in own.items() if restored or name not in state})
        # The state of the callback is the model's, and may be of another class.
        for kind in (PostProcessor, ValidatedThresholds, NormalQuantile):
            checkpoint.get("callbacks", {}).pop(kind.__qualname__, None)


def _take_thresholds(chosen: Any, saved: dict[str, Any]) -> bool:  # noqa: ANN401
    """Let a user's post-processor have its thresholds from a checkpoint's normal scores, or say that it has not.

    Args:
        chosen: The user's post-processor, or ``None``.
        saved: The configuration of the checkpoint's.

    Returns:
        Whether it has; the thresholds are those of the checkpoint otherwise.
    """
    of_rates = NormalQuantile.is_configured_by(saved)
    if not isinstance(chosen, NormalQuantile):
        if of_rates and chosen is not None:
            logger.info("Thresholds are those that NormalQuantile set in training.")
        return False
    if saved.get("calibration"):
        chosen.calibration = saved["calibration"]
        chosen.recompute()
        return True
    rates = ("false_positive_rate", "pixel_false_positive_rate")
    if not of_rates or any(saved[name] != getattr(chosen, name) for name in rates):
        logger.warning(
            "Thresholds stay those of the checkpoint, which are not for false_positive_rate=%g: it has no scores of "
            "normal images. Fit again, or run `vae-attention calibrate` with good images.",
            chosen.false_positive_rate,
        )
    return False
