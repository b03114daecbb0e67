"""The models as Lightning modules: VAE and beta-VAE, FactorVAE, each with or without attention disentanglement."""

from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from torch.nn import functional as F  # noqa: N812

from anomalib_vae_attention.common.argument_checks import require_number, require_whole
from anomalib_vae_attention.image_vae.conv import ConvDecoder
from anomalib_vae_attention.image_vae.elbo import kl_by_latent

from .attention_loss import AttentionDisentanglement
from .dataset import Batch
from .discriminator import Discriminator, permute
from .networks import Encoder


class Terms(NamedTuple):
    """The terms of a loss on one batch.

    Attributes:
        loss: What the VAE's optimiser descends, a scalar, in nats per image.
        noise: The noise with which the latents were sampled, of shape ``(B, d)``.
        latents: The sampled latents, of shape ``(B, d)``.
        logged: Terms by name, scalars without a graph.
    """

    loss: torch.Tensor
    noise: torch.Tensor
    latents: torch.Tensor
    logged: dict[str, torch.Tensor]


class BetaVAE(pl.LightningModule):
    """A VAE for binary images whose KL divergence weighs ``beta``.

    Higgins et al. ("beta-VAE", ICLR 2017): reconstruction + beta KL, with Kim and Mnih's networks, a Bernoulli
    likelihood and Adam. ``beta=1`` is the VAE of Kingma and Welling.

    Random numbers come from a generator of the model's own, kept in its checkpoints: a resumed run goes on as an
    uninterrupted one would have.

    Args:
        latent_dim: Number of latents ``d``, at least 2.
        beta: Weight of the KL divergence, not negative.
        learning_rate: Adam's learning rate.
        attention: Attention disentanglement to add; none by default.
        seed: Seed of the noise, and of what else is random in a step.

    Raises:
        ValueError: If ``latent_dim`` or ``beta`` is out of range.
    """

    def __init__(
        self,
        latent_dim: int = 10,
        beta: float = 1.0,
        learning_rate: float = 1e-4,
        attention: AttentionDisentanglement | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        require_whole("latent_dim", latent_dim, least=2)
        require_number("beta", beta, least=0)
        # Channels last: the convolutions' kernels are several times faster than on contiguous channels.
        self.encoder = Encoder(latent_dim).to(memory_format=torch.channels_last)
        self.decoder = ConvDecoder(self.encoder).to(memory_format=torch.channels_last)
        self.latent_dim, self.beta, self.learning_rate, self.attention = latent_dim, beta, learning_rate, attention
        self.generator = torch.Generator().manual_seed(seed)
        self.steps = 0
        # Both by hand, so that FactorVAE can step its two optimisers on losses from one pass.
        self.automatic_optimization = False

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Encode images ``(B, 1, 64, 64)`` to their posterior means ``(B, d)``."""
        return self.encoder.encode(images).mean

    def terms(self, images: torch.Tensor) -> Terms:
        """Compute the loss of images of shape ``(B, 1, 64, 64)``: the ELBO's terms and the attention's."""
        encoded = self.encoder.encode(images)
        noise = torch.randn(encoded.mean.shape, generator=self.generator).to(images)
        latents = encoded.mean + (0.5 * encoded.log_variance).exp() * noise
        logits = self.decoder(latents)
        reconstruction = F.binary_cross_entropy_with_logits(logits, images, reduction="sum") / len(images)
        divergence = kl_by_latent(encoded.mean, encoded.log_variance).sum(1).mean()
        loss = reconstruction + self.beta * divergence
        logged = {"reconstruction": reconstruction.detach(), "kl": divergence.detach()}
        if self.attention is not None and self.attention.weight > 0:
            overlap = self.attention(self.encoder, encoded, noise, self.generator)
            loss += self.attention.weight_at(self.steps) * overlap
            logged["attention"] = overlap.detach()
        return Terms(loss, noise, latents, logged)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Make Adam for the VAE; on a processor the fused kernel reads and writes each parameter once."""
        parameters = [*self.encoder.parameters(), *self.decoder.parameters()]
        return [torch.optim.Adam(parameters, self.learning_rate, fused=True)]

    def training_terms(self, images: torch.Tensor) -> Terms:
        """Do :meth:`terms` for a step; a subclass adds what only training needs, and other networks' gradients."""
        return self.terms(images)

    def optimise(self, images: torch.Tensor, optimizers: list[Any]) -> dict[str, torch.Tensor]:
        """Do one step of each of the optimisers on images ``(B, 1, 64, 64)``; return the terms of the losses by name.

        Raises:
            FloatingPointError: If the loss is not finite; nothing has been updated then.
        """
        terms = self.training_terms(images)
        if not torch.isfinite(terms.loss):
            values = ", ".join(f"{name} {float(value):g}" for name, value in terms.logged.items())
            msg = (
                f"the loss is {float(terms.loss.detach())} at step {self.steps} ({values}); lower learning_rate, or "
                "resume from an earlier checkpoint"
            )
            raise FloatingPointError(msg)
        optimizers[0].zero_grad()
        terms.loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        self.steps += 1
        return terms.logged

    def training_step(self, batch: Batch, batch_index: int) -> None:
        """Do one optimiser step on a batch and log its terms."""
        del batch_index
        optimizers = self.optimizers()
        optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
        # Lightning counts the steps of its wrappers; only the VAE's make up the global step.
        inner = [optimizers[0], *(optimizer.optimizer for optimizer in optimizers[1:])]
        logged = self.optimise(batch.image, inner)
        self.log_dict({f"train/{name}": value for name, value in logged.items()})
        self.log("reconstruction", logged["reconstruction"], prog_bar=True, logger=False)

    def test_step(self, batch: Batch, batch_index: int) -> None:
        """Log the terms of the loss on a test batch."""
        del batch_index
        logged = self.terms(batch.image).logged
        self.log_dict({name: logged[name] for name in ("reconstruction", "kl")})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what the next step depends on beside weights and optimisers."""
        checkpoint["dsprites"] = {"steps": self.steps, "generator": self.generator.get_state()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on where the checkpoint was made.

        Raises:
            ValueError: If the checkpoint is not of one of these models.
        """
        if "dsprites" not in checkpoint:
            msg = "the checkpoint was not made by a dSprites model of this package: ckpt_path must name one that was"
            raise ValueError(msg)
        self.steps = checkpoint["dsprites"]["steps"]
        self.generator.set_state(checkpoint["dsprites"]["generator"])


class VAE(BetaVAE):
    """A VAE: :class:`BetaVAE` with ``beta`` 1; its other arguments are the same."""

    def __init__(self, latent_dim: int = 10, **kwargs) -> None:
        super().__init__(latent_dim, 1.0, **kwargs)


class FactorVAE(BetaVAE):
    """A VAE whose total correlation is penalised by a density-ratio discriminator; AD-FactorVAE with ``attention``.

    Kim and Mnih ("Disentangling by Factorising", ICML 2018, algorithm 2): reconstruction + KL + gamma TC. They permute
    the latents of a second batch; here, as in their algorithm 1, those of the same batch, so that nothing is encoded
    twice. Both losses come from one pass through the discriminator before either network is updated. Other arguments
    are those of :class:`BetaVAE`.

    Args:
        latent_dim: Number of latents ``d``, at least 2.
        gamma: Weight of the total correlation, not negative.
        learning_rate: Adam's learning rate for the VAE.
        discriminator_learning_rate: Adam's learning rate for the discriminator, whose betas are .5 and .9.

    Raises:
        ValueError: If ``latent_dim`` or ``gamma`` is out of range.
    """

    def __init__(
        self,
        latent_dim: int = 10,
        gamma: float = 40.0,
        learning_rate: float = 1e-4,
        discriminator_learning_rate: float = 1e-4,
        **kwargs,
    ) -> None:
        super().__init__(latent_dim, 1.0, learning_rate, **kwargs)
        require_number("gamma", gamma, least=0)
        self.discriminator = Discriminator(latent_dim)
        self.gamma, self.discriminator_learning_rate = gamma, discriminator_learning_rate

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Make Adam for the VAE and for the discriminator."""
        own = torch.optim.Adam(
            self.discriminator.parameters(), self.discriminator_learning_rate, betas=(0.5, 0.9), fused=True
        )
        return [*super().configure_optimizers(), own]

    def training_terms(self, images: torch.Tensor) -> Terms:
        """Add the total correlation, and set the gradients of the discriminator, from at least two images.

        Raises:
            ValueError: If there are fewer; see :func:`permute`.
        """
        terms = self.terms(images)
        latents = terms.latents.detach()
        ratio = self.discriminator.estimate(latents, permute(latents, self.generator))
        # Its value is not the total correlation's, but its gradient is.
        stand_in = (terms.latents * ratio.gradient).sum()
        logged = {**terms.logged, "total_correlation": ratio.total_correlation, "discriminator": ratio.loss}
        loss = terms.loss + self.gamma * (stand_in - stand_in.detach() + ratio.total_correlation)
        return terms._replace(loss=loss, logged=logged)
