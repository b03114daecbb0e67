"""Post-processor with thresholds for a target false-positive rate; anomalib's own need defective images."""

import logging
from typing import Any

import torch
from anomalib.data.utils import ValSplitMode
from anomalib.post_processing import PostProcessor
from lightning import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from anomalib_vae_attention.anomalib_support.distributed import OwnImages
from anomalib_vae_attention.common.argument_checks import require_share

from .calibration import Calibration
from .conformal import images_needed

logger = logging.getLogger(__name__)

RUNTIME_MARGIN = 1e-6
"""What scores and maps of normal images may differ by between runtimes without being called anomalous."""


class NormalQuantile(PostProcessor):
    """Post-processor with thresholds for a target false-positive rate, from normal images alone.

    Of new normal images a share of at most ``false_positive_rate`` is called anomalous, and of their pixels a share of
    at most ``pixel_false_positive_rate``. That holds on average over draws of calibration and new images, where both
    come from the same place. A rate ``r`` takes at least ``1 / r - 1`` calibration images: 99 for 1 %, 19 for 5 %.
    With fewer the greatest normal score is the threshold, and a warning says so.

    The thresholds come to lie at 0.5 of the scores and maps that anomalib reports, and normalisation loses nothing:
    it is linear and never clamps, whatever the score. Thresholds are saved in anomalib's own buffers, so checkpoints
    and exported models need nothing of this class.

    Args:
        false_positive_rate: Share of normal images that may be called anomalous, in ``(0, 1)``.
        pixel_false_positive_rate: Share of the pixels of normal images that may be called anomalous, in ``(0, 1)``.
            ``None`` takes ``false_positive_rate``.
        held_out: Share of the training images that the model does not learn from and whose scores set the thresholds,
            in ``[0, 1)``; at most ``HELD_OUT_LIMIT`` images. The same files are held out whatever the
            seed. 0 takes the normal images of the validation set instead, which is right where these are neither
            trained nor tested on; anomalib's ``MVTecAD`` validates on the test set unless ``val_split_mode`` says
            otherwise.

    Raises:
        ValueError: If a rate or the share is out of range.

    Example:
        >>> from anomalib_vae_attention import NormalQuantile, VaeAttention
        >>> model = VaeAttention(post_processor=NormalQuantile(false_positive_rate=0.05), pre_trained=False)
        >>> model.post_processor.false_positive_rate
        0.05
    """

    def __init__(
        self,
        false_positive_rate: float = 0.01,
        pixel_false_positive_rate: float | None = None,
        held_out: float = 0.2,
    ) -> None:
        super().__init__()
        if pixel_false_positive_rate is None:
            pixel_false_positive_rate = false_positive_rate
        self.false_positive_rate = false_positive_rate
        self.pixel_false_positive_rate = pixel_false_positive_rate
        self.held_out = held_out
        for name in ("false_positive_rate", "pixel_false_positive_rate"):
            require_share(name, getattr(self, name))
        if not 0 <= held_out < 1:
            msg = f"held_out must be at least 0 and less than 1, but is {held_out}."
            raise ValueError(msg)
        self.calibration: str | None = None
        """Scores and map levels of the normal images that the thresholds are from; see :class:`.Calibration`."""
        self.start()

    @property
    def _checkpoint_config_keys(self) -> tuple[str, ...]:
        return (
            *super()._checkpoint_config_keys,
            "false_positive_rate",
            "pixel_false_positive_rate",
            "held_out",
            "calibration",
        )

    @staticmethod
    def is_configured_by(config: dict[str, Any]) -> bool:
        """Say whether a checkpoint's configuration of the post-processor is one of this class."""
        return "false_positive_rate" in config

    def describe(self) -> str:
        """Say in words how the thresholds were found."""
        count = "unknown" if self.calibration is None else len(Calibration.from_text(self.calibration))
        return (
            f"NormalQuantile: false-positive rates of {self.false_positive_rate:g} (images) and "
            f"{self.pixel_false_positive_rate:g} (pixels), from {count} normal images"
        )

    def start(self) -> None:
        """Forget the normal images seen."""
        self._seen = Calibration()

    def update(self, pred_score: torch.Tensor, anomaly_map: torch.Tensor) -> None:
        """Add normal images; see :meth:`.Calibration.update`."""
        self._seen.update(pred_score, anomaly_map)

    def compute(self) -> None:
        """Set the thresholds from the normal images of all processes, and keep what these were for other rates.

        Raises:
            ValueError: If there are none.
        """
        seen = self._seen.gathered()
        self.start()
        if not len(seen):
            where = "were held out of the training set" if self.held_out else "are in the validation set"
            msg = f"NormalQuantile needs normal images to set its thresholds from, but none {where}."
            raise ValueError(msg)
        self.calibration = seen.to_text()
        self.recompute()

    def recompute(self) -> None:
        """Set the thresholds for the present rates from the normal images that the last ones were taken from.

        Raises:
            ValueError: If there are none.
        """
        if self.calibration is None:
            msg = "There are no calibration scores of normal images: fit again, or calibrate on good images."
            raise ValueError(msg)
        calibration = Calibration.from_text(self.calibration)
        count = len(calibration)
        rates = self.false_positive_rate, self.pixel_false_positive_rate
        for level, threshold in zip(("image", "pixel"), calibration.thresholds(*rates), strict=True):
            self._set(level, threshold)
        logger.info(
            "Thresholds for false-positive rates of %g (images) and %g (pixels) from %d normal images: %.5f and %.5f "
            "of the raw scores, 0.5 of those reported.",
            self.false_positive_rate,
            self.pixel_false_positive_rate,
            count,
            float(self._image_threshold),
            float(self._pixel_threshold),
        )
        rarest = min(self.false_positive_rate, self.pixel_false_positive_rate)
        needed = images_needed(rarest)
        if count < needed:
            logger.warning(
                "A false-positive rate of %g takes %d normal images that were not learnt from, but there are %d: their "
                "greatest score is the threshold, and the expected rate is up to %.3f.",
                rarest,
                needed,
                count,
                1 / (count + 1),
            )

    def _set(self, level: str, threshold: float) -> None:
        """Set a threshold, and a range of scores around it that holds all of [0, 1], so that nothing is clamped.

        It is a value that a normal image has: the last digit of another runtime must not raise that above it.
        """
        threshold += RUNTIME_MARGIN
        reach = max(threshold, 1 - threshold)
        for name, value in ((f"_{level}_threshold", 0), (f"{level}_min", -reach), (f"{level}_max", reach)):
            self.get_buffer(name).fill_(threshold + value)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start looking at the validation set, unless training images are held out instead."""
        del pl_module
        if not self.held_out:
            self.start()
            self._own = OwnImages(trainer.val_dataloaders)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ANN401
        *args,
        **kwargs,
    ) -> None:
        """Add the normal images of a validation batch, unless training images are held out instead."""
        del trainer, pl_module, args, kwargs
        if self.held_out or outputs.gt_label is None:
            return
        normal = ~outputs.gt_label.bool().flatten()
        normal[self._own.among(len(normal)) :] = False
        self.update(outputs.pred_score[normal], outputs.anomaly_map[normal])

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the thresholds from the validation set, unless training images are held out instead."""
        del pl_module
        if self.held_out:
            if trainer.state.fn == TrainerFn.VALIDATING:
                logger.warning(
                    "Thresholds stay as they were, from images held out at the fit. NormalQuantile(held_out=0) takes "
                    "them from the validation set, `vae-attention calibrate` from any good images.",
                )
            return
        datamodule: Any = getattr(trainer, "datamodule", None)
        if getattr(datamodule, "val_split_mode", None) == ValSplitMode.SAME_AS_TEST:
            logger.warning(
                "The validation set is the test set (val_split_mode=same_as_test): the thresholds are tuned on the "
                "test images, and the rates measured on them are better than on new ones.",
            )
        self.compute()
