"""The embedded data set for runs without data: ``anomalib train --model vae_attention``, and what follows from it."""

from typing import TYPE_CHECKING, Any

from lightning.pytorch import LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from torch.utils.data import DataLoader

if TYPE_CHECKING:
    from anomalib_vae_attention.data import EmbeddedAD

EMBEDDED_KEY = "vae_attention_trained_on_embedded"


class EmbeddedFallback(LightningModule):
    """Loaders of the embedded data set, which Lightning asks for where no datamodule was given.

    A model that was trained on other data is not tested on it. To be inherited from before the model's own base.
    """

    _embedded: "EmbeddedAD | None" = None
    _trained_on_embedded = False

    def setup(self, stage: str) -> None:
        """Forget the embedded data set before each fit: this one may be on other data."""
        if stage == "fit":
            self._embedded = None

    def on_train_start(self) -> None:
        """Remember whether the training images are the embedded ones."""
        super().on_train_start()
        self._trained_on_embedded = self._embedded is not None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save with the checkpoint whether it knows the embedded data set only."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[EMBEDDED_KEY] = self._trained_on_embedded

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore from the checkpoint whether it knows the embedded data set only."""
        super().on_load_checkpoint(checkpoint)
        self._trained_on_embedded = checkpoint.get(EMBEDDED_KEY, False)

    def train_dataloader(self) -> DataLoader:
        """Serve the embedded data set, where no other data was given."""
        return self._embedded_data().train_dataloader()

    def _embedded_data(self) -> "EmbeddedAD":
        if self._embedded is None:
            from anomalib_vae_attention.data import EmbeddedAD

            self._embedded = EmbeddedAD()
            self._embedded.prepare_data()
            self._embedded.setup()
        return self._embedded

    def val_dataloader(self) -> DataLoader | list:
        """Serve the embedded data set where the training images are its own, and nothing otherwise."""
        if self.trainer.state.fn == TrainerFn.FITTING and self._embedded is None:
            return []
        return self.test_dataloader()

    def test_dataloader(self) -> DataLoader:
        """Serve the embedded data set to a model that was trained on it.

        Raises:
            ValueError: If it was trained on other data: a score on the embedded data would mean nothing.
        """
        if not self._trained_on_embedded and self._embedded is None:
            msg = "No data was given, and the model was not trained on the embedded data set: name the data (--data)."
            raise ValueError(msg)
        return self._embedded_data().test_dataloader()

    predict_dataloader = test_dataloader
