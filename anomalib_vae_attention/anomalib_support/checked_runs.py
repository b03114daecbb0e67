"""Runs of a model that are checked before they begin, say what came of them, and leave checkpoints that say so, too."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from anomalib.data import AnomalibDataModule, AnomalibDataset
from anomalib.data.utils import ValSplitMode
from anomalib.data.utils.tiler import ImageUpscaleMode, Tiler
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from torchmetrics import Metric

from anomalib_vae_attention.common.machine import versions

from .distributed import agree_on_folder
from .folder_checks import check_folder, check_names
from .latest_link import keep_link_free, set_latest
from .pictures import Pictures
from .provenance import MADE_WITH, PACKAGE, PROVENANCE_KEY, describe_training_set, warn_if_newer
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


class CheckedRuns(LightningModule):
    """An anomalib model that checks its runs, their data and their checkpoints.

    - Checkpoints say what made them: ``provenance``, the ``versions`` of :data:`MADE_WITH` and the ``training_set`` of
      the fit (see :func:`describe_training_set`). One whose state is not finite is refused.
    - A tiler of the training is restored from the checkpoint; another one is an error.
    - The state of metrics is the evaluator's own business, which may be another one than the training's.
    - A fit that learns nothing is an error, or a warning where a training of several epochs is complete.
    - Callbacks and precisions that the model cannot work with are refused, and so are mixed-up folders.
    - The link ``latest`` leads to a run with a model.
    - Metrics that take good and defective images are not a number where there is only one kind.
    - The last line says where results are.

    To be inherited from before the model's own base.
    """

    model: Any
    evaluator: Any
    provenance: dict[str, Any]

    @classmethod
    def configure_visualizer(cls) -> Pictures:
        """Create the default visualiser."""
        return Pictures()

    def configure_callbacks(self) -> Sequence[Callback] | Callback:
        """Check the names of data as well: Lightning asks for callbacks before data are downloaded."""
        check_names(getattr(self.trainer, "datamodule", None))
        return super().configure_callbacks()

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
            set_latest(self.trainer)
        else:
            keep_link_free(self.trainer)
        use_whole_checkpoints(self.trainer)
        datamodule: Any = getattr(self.trainer, "datamodule", None)
        check_folder(datamodule)
        if isinstance(datamodule, AnomalibDataModule) and datamodule.val_split_mode == ValSplitMode.NONE:
            # anomalib's own looks for data that there are none of.
            vars(datamodule)["val_dataloader"] = _no_batches

    def log(self, name: str, value: Any, *args, **kwargs) -> None:  # noqa: ANN401
        """Log a value; a metric is not a number where it is undefined, instead of 0."""
        if isinstance(value, Metric) and value.update_called and not self._has_both_kinds():
            value = float("nan")
        super().log(name, value, *args, **kwargs)

    def _has_both_kinds(self) -> bool:
        """Say whether the images being tested are good and defective ones, as far as their data sets know."""
        loaders: Any = self.trainer.test_dataloaders if self.trainer.testing else self.trainer.val_dataloaders
        sets = [loader.dataset for loader in (loaders if isinstance(loaders, list) else [loaders])]
        # Videos have no labels before they are read.
        known = [one for one in sets if isinstance(one, AnomalibDataset) and "label_index" in one.samples]
        if len(known) < len(sets):
            return True
        return any(one.has_normal for one in known) and any(one.has_anomalous for one in known)

    def teardown(self, stage: str) -> None:
        """Say where the results of a training or test are, after all else."""
        super().teardown(stage)
        folder = Path(self.trainer.default_root_dir)
        what = {"fit": folder / "weights", "test": folder}.get(stage)
        if what is not None and what.is_dir():
            logger.info("%s: %s", "Checkpoint" if stage == "fit" else "Checkpoint, pictures and arguments", what)

    def on_fit_start(self) -> None:
        """Expect to learn."""
        super().on_fit_start()
        self._learns = False

    def on_train_start(self) -> None:
        """Note that there is something to learn, and what."""
        super().on_train_start()
        self._learns = True
        training_set = describe_training_set(getattr(self.trainer.train_dataloader, "dataset", None))
        self.provenance = {"versions": versions(MADE_WITH), "training_set": training_set}

    def on_fit_end(self) -> None:
        """Say so where nothing was learnt.

        Raises:
            ValueError: If the engine has fitted before, or the checkpoint is of a fit of one epoch.
        """
        super().on_fit_end()
        set_latest(self.trainer)
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
        """Save the tiler with the checkpoint, and where it comes from."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[PROVENANCE_KEY] = getattr(self, "provenance", {"versions": versions(MADE_WITH)})
        checkpoint[TILER_KEY] = describe_tiler(getattr(self.model, "tiler", None))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the tiler and where the checkpoint comes from, and leave the metrics as they are.

        Raises:
            ValueError: If a value of the model's state is not a number, or there is another tiler than in training.
        """
        state = checkpoint["state_dict"]
        for name, tensor in state.items():
            if name.startswith("model.") and isinstance(tensor, torch.Tensor) and not tensor.isfinite().all():
                msg = f"The checkpoint has values in {name} that are not a number or infinite: it cannot be used."
                raise ValueError(msg)
        super().on_load_checkpoint(checkpoint)
        self.provenance = checkpoint.get(PROVENANCE_KEY, {})
        warn_if_newer("The checkpoint", self.provenance.get("versions", {}).get(PACKAGE))
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
