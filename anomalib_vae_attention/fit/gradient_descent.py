"""The training of image VAEs: gradient descent on the ELBO, epoch after epoch, then what is normal."""

import copy
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

import torch
from anomalib.models.components import AnomalibModule
from torch.utils.data import DataLoader, DistributedSampler

from anomalib_vae_attention.anomalib_support.distributed import rank, world_size
from anomalib_vae_attention.image_vae.whitened_start import start_from
from anomalib_vae_attention.scoring import finite_images
from anomalib_vae_attention.thresholds.normal_quantile import NormalQuantile

from .procedure import FitProcedure, read_again
from .random_state import random_states, set_random_state

if TYPE_CHECKING:
    from anomalib_vae_attention.image_vae.model import ImageVaeModel

logger = logging.getLogger(__name__)

RANDOM_STATES = "random_states"
"""Where checkpoints keep the states of the random number generators."""
SAMPLER_SEED = "sampler_seed"
"""Where they keep the seed by which images are dealt out to several processes."""


class GradientFit(FitProcedure):
    """How the model of ``vae="resnet18"`` and ``"conv"`` learns: see :class:`VaeAttention` for the arguments.

    Args:
        learning_rate: Step size of Adam, above 0.
        kl_weight: Weight of the KL divergence in the loss, 0 or more.
        kl_warmup_steps: Steps over which that weight rises linearly from 0, 0 or more.
    """

    def __init__(self, learning_rate: float, kl_weight: float, kl_warmup_steps: int) -> None:
        self.learning_rate = learning_rate
        self.kl_weight = kl_weight
        self.kl_warmup_steps = kl_warmup_steps
        self._sampler_seed: int | None = None

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """How long to train is the trainer's business (``--trainer.max_epochs``)."""
        return {"num_sanity_val_steps": 0}

    def optimizer(self, model: torch.nn.Module) -> torch.optim.Optimizer:
        """Return Adam on all of the network's weights."""
        return torch.optim.Adam(model.parameters(), lr=self.learning_rate, fused=True)

    def start(self, module: AnomalibModule) -> None:
        """Look whether this way of fitting can do what is asked for; start residual networks from the normal images.

        A resumed training deals the images out to several processes as it did before.

        Raises:
            ValueError: If images are to be held out.
        """
        if isinstance(module.post_processor, NormalQuantile) and module.post_processor.held_out:
            msg = "normal_quantile holds images out for vae='feature' only: give it held_out=0 and validation images."
            raise ValueError(msg)
        sampler = _distributed_sampler(module)
        if sampler is not None and self._sampler_seed is not None:
            sampler.seed = self._sampler_seed
        if module.trainer.global_step == 0:
            model = cast("ImageVaeModel", module.model)
            start_from(model.vae, lambda: map(model.prepare_image, _normal_images(module)))

    def save(self, module: AnomalibModule, checkpoint: dict[str, Any]) -> None:
        """Add the random state to a checkpoint; all processes must call it."""
        checkpoint[RANDOM_STATES] = random_states()
        sampler = _distributed_sampler(module)
        if sampler is not None:
            checkpoint[SAMPLER_SEED] = sampler.seed

    def resume(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the random state of a checkpoint, so that the training ends as one that was never stopped."""
        self._sampler_seed = checkpoint.get(SAMPLER_SEED)
        states = checkpoint.get(RANDOM_STATES, [])
        if len(states) == world_size():
            set_random_state(states[rank()])
        else:
            logger.warning(
                "The checkpoint has the random state of %d processes, but there are %d: the training goes on with "
                "other random numbers than it would have had without the stop.",
                len(states),
                world_size(),
            )

    def kl_weight_at(self, step: int) -> float:
        """Return the weight of the KL divergence after a number of optimiser steps."""
        return self.kl_weight * (min(1.0, (step + 1) / self.kl_warmup_steps) if self.kl_warmup_steps else 1.0)

    def step(self, module: AnomalibModule, batch: Any) -> torch.Tensor:  # noqa: ANN401
        """Return the loss of a batch, in nats per image.

        Raises:
            FloatingPointError: If it is not finite.
        """
        image = finite_images(batch, module.model)
        found = cast("dict[str, torch.Tensor]", module.model(image))
        terms = {name: term.mean() for name, term in found.items()}
        loss = terms["reconstruction"] + self.kl_weight_at(module.trainer.global_step) * terms["kl"]
        if not loss.isfinite():
            msg = f"The loss is {loss.item()} at step {module.trainer.global_step}: lower learning_rate."
            raise FloatingPointError(msg)
        logged = {"train_loss": loss, **{f"train_{name}": term for name, term in terms.items()}}
        module.log_dict(logged, prog_bar=True, on_step=False, on_epoch=True, batch_size=len(image))
        return loss

    def end_step(self, module: AnomalibModule) -> None:
        """After the last batch of an epoch that validation or the end follows, learn what is normal.

        The last epoch is validated, however rarely others are.
        """
        trainer = module.trainer
        if not trainer.is_last_batch:
            return
        done = trainer.current_epoch + 1
        if done == trainer.max_epochs:
            # What is not validated is not saved.
            trainer.check_val_every_n_epoch = 1
        reached = trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps
        if done % (trainer.check_val_every_n_epoch or 1) and not reached and not trainer.should_stop:
            return
        model = cast("ImageVaeModel", module.model.eval())
        images = model.collect(_normal_images(module))
        model.train()
        logger.info("Normal posteriors of %d images, after %d epochs.", images, done)


def _distributed_sampler(module: AnomalibModule) -> DistributedSampler | None:
    """Return what deals the training images out to several processes, if there are several."""
    sampler = getattr(module.trainer.train_dataloader, "sampler", None)
    return sampler if isinstance(sampler, DistributedSampler) else None


def _normal_images(module: AnomalibModule) -> Iterator[torch.Tensor]:
    """Read the training images in order, without augmentation, as the pre-processor makes them."""
    loader = module.trainer.train_dataloader
    if loader is None:
        return
    dataset = copy.copy(loader.dataset)
    if getattr(dataset, "augmentations", None) is not None:
        dataset.augmentations = None
    plain = DataLoader(dataset, loader.batch_size, num_workers=loader.num_workers, collate_fn=loader.collate_fn)
    for batch in read_again(module, plain):
        yield finite_images(batch, module.model)
