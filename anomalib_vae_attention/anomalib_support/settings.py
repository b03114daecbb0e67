"""Settings that lie outside a model but belong to it: they travel with checkpoints, or what is lost is an error."""

import logging
from typing import Any

from anomalib.data import AnomalibDataModule
from anomalib.data.utils import ValSplitMode
from anomalib.data.utils.tiler import ImageUpscaleMode, Tiler
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn

from .distributed import agree_on_folder
from .folder_checks import check_folder
from .latest_link import hold_back, keep_link_free, let_go
from .pictures import Pictures
from .whole_checkpoints import use_whole_checkpoints

AVERAGING = (StochasticWeightAveraging, WeightAveraging)
TILER_KEY = "vae_attention_tiler"

logger = logging.getLogger(__name__)


def describe_tiler(tiler: Tiler | None) -> dict[str, Any] | None:
    """Return the arguments that a tiler was made with, as plain data, or ``None`` for none."""
    if tiler is None:
        return None
    return {
        "tile_size": [tiler.tile_size_h, tiler.tile_size_w],
        "stride": [tiler.stride_h, tiler.stride_w],
        "remove_border_count": tiler.remove_border_count,
        "mode": ImageUpscaleMode(tiler.mode).value,
    }


class Settings(LightningModule):
    """An anomalib model that looks after the settings of its run.

    - A tiler of the training is restored from the checkpoint; another one is an error.
    - The state of metrics is the evaluator's own business, which may be another one than the training's.
    - A fit that learns nothing is an error, or a warning where a training of several epochs is complete.
    - Callbacks and precisions that the model cannot work with are refused, and so are mixed-up folders.
    - The link ``latest`` leads to a run with a model.

    To be inherited from before the model's own base.
    """

    model: Any
    evaluator: Any

    @classmethod
    def configure_visualizer(cls) -> Pictures:
        """Create the default visualiser."""
        return Pictures()

    def setup(self, stage: str) -> None:
        """Look whether the trainer's settings will do, and complete them.

        Raises:
            ValueError: If its precision is too low, a callback averages weights, or data are not what was meant; see
                :func:`check_folder`.
        """
        super().setup(stage)
        if self.trainer.precision in {"16-true", "bf16-true"}:
            msg = f"precision={self.trainer.precision!r} is too low for this model: use '32-true' or a mixed one."
            raise ValueError(msg)
        callbacks: list[Any] = self.trainer.callbacks  # type: ignore[attr-defined]
        averaging = [type(one).__name__ for one in callbacks if isinstance(one, AVERAGING)]
        if averaging:
            msg = (
                f"{' and '.join(averaging)} averages the weights of several steps, but what is normal belongs to those "
                "of one: leave it out."
            )
            raise ValueError(msg)
        agree_on_folder(self.trainer)
        if self.trainer.state.fn == TrainerFn.FITTING:
            hold_back(self.trainer)
        else:
            keep_link_free(self.trainer)
        use_whole_checkpoints(self.trainer)
        datamodule: Any = getattr(self.trainer, "datamodule", None)
        check_folder(datamodule)
        if isinstance(datamodule, AnomalibDataModule) and datamodule.val_split_mode == ValSplitMode.NONE:
            # anomalib's own looks for data that there are none of.
            vars(datamodule)["val_dataloader"] = _no_batches

    def on_fit_start(self) -> None:
        """Expect to learn."""
        super().on_fit_start()
        self._learns = False

    def on_train_start(self) -> None:
        """Note that there is something to learn."""
        super().on_train_start()
        self._learns = True

    def on_fit_end(self) -> None:
        """Say so where nothing was learnt.

        Raises:
            ValueError: If the engine has fitted before, or the checkpoint is of a fit of one epoch.
        """
        super().on_fit_end()
        let_go(self.trainer)
        if self._learns:
            return
        trainer: Any = self.trainer
        if not trainer.ckpt_path:
            msg = f"Nothing was learnt: this engine has fitted {trainer.current_epoch} epochs already. Make a new one."
            raise ValueError(msg)
        msg = f"Nothing was learnt: {trainer.ckpt_path} holds all of max_epochs={trainer.max_epochs}. "
        if trainer.max_epochs == 1:
            msg += "Leave ckpt_path out to fit again; `anomalib validate`, `test` and `predict` use a checkpoint."
            raise ValueError(msg)
        logger.warning("%sMore epochs go on with the training.", msg)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the tiler with the checkpoint."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[TILER_KEY] = describe_tiler(getattr(self.model, "tiler", None))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the tiler, and leave the metrics as they are.

        Raises:
            ValueError: If there is another tiler than in training.
        """
        super().on_load_checkpoint(checkpoint)
        state = checkpoint["state_dict"]
        for name in [name for name in state if name.startswith("evaluator.")]:
            del state[name]
        # Lightning restores it as a callback, too.
        checkpoint.get("callbacks", {}).pop(getattr(self.evaluator, "state_key", None), None)
        state.update({name: value for name, value in self.state_dict().items() if name.startswith("evaluator.")})
        trained: Any = checkpoint.get(TILER_KEY)
        here = describe_tiler(getattr(self.model, "tiler", None))
        if TILER_KEY not in checkpoint or trained == here:
            return
        if here is not None:
            msg = (
                f"The model was trained with tiling {trained}, but the tiler callback has {here}: leave the callback "
                "out, the checkpoint has what it was trained with."
            )
            raise ValueError(msg)
        self.model.tiler = Tiler(**{**trained, "mode": ImageUpscaleMode(trained["mode"])})
        logger.info("Tiling as in training: %s.", trained)


def _no_batches() -> list[Any]:
    """Load nothing; Lightning takes no class such as ``list`` for this."""
    return []
