"""What every layer of an image VAE's encoder shows of each latent: encoding, its gradients, the maps of eq. 1-2."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, cast

import torch
from torch import nn

from anomalib_vae_attention.attention import latent_attention
from anomalib_vae_attention.resampling import Resampling, resize_matrix

from .network import Trace
from .vae import ImageVAE, LatentPosterior

PARALLEL_PIXELS = 2**20
"""Pixels, images times scores, whose gradients are carried back at a time: more take memory, and longer."""


class Encoded(NamedTuple):
    """What the encoder makes of images.

    Attributes:
        posterior: The posterior.
        trace: Activations by name, from the first attention layer on.
        jacobian: Gradients of all means and log variances by the layers, ``(B, 2 d, C, h, w)`` each, where several
            attentions share them.
    """

    posterior: LatentPosterior
    trace: Trace
    jacobian: Trace | None = None


class LatentMaps(nn.Module):
    """The attention maps of single latents, and the gradients that all attention maps are made of.

    Args:
        vae: The VAE.
        input_size: Height and width of images in pixels.
        channels: Channels of the images that the VAE takes.
        latent_dim: Number of latents ``d``.
        attention_layers: Layers of the encoder that attention looks at.

    Raises:
        ValueError: If there is no such layer.
    """

    def __init__(
        self,
        vae: ImageVAE,
        input_size: tuple[int, ...],
        channels: int,
        latent_dim: int,
        attention_layers: Sequence[str] | str,
    ) -> None:
        super().__init__()
        self.vae, self.input_size, self.channels, self.latent_dim = vae, input_size, channels, latent_dim
        self.attention_layers = self.find_layers(attention_layers)
        # An export takes matrices that are there already for constants.
        shapes = {shape[1:] for shape in self.map_shapes(self.attention_layers).values()}
        self.resize = nn.ModuleDict({"x".join(map(str, shape)): self._resampling(shape) for shape in shapes})

    @torch.no_grad()
    def map_shapes(self, layers: Sequence[str]) -> dict[str, tuple[int, ...]]:
        """Return the shape ``(C, h, w)`` of what each of the encoder's layers gives of an image."""
        encoder = self.vae.encoder
        was_training, device = encoder.training, next(encoder.parameters()).device
        trace = encoder.eval().trace(torch.zeros(1, self.channels, *self.input_size, device=device), layers)
        encoder.train(was_training)
        return {name: tuple(trace[name].shape[1:]) for name in layers}

    def _resampling(self, shape: Sequence[int]) -> Resampling:
        """Return the resampling from maps of this height and width to the images' size."""
        return Resampling(resize_matrix, shape, self.input_size)

    def find_layers(self, names: Sequence[str] | str) -> list[str]:
        """Return the encoder's own names of layers; see :meth:`Network.find`."""
        names = [names] if isinstance(names, str) else list(names)
        return [self.vae.encoder.find(name) for name in names]

    @torch.no_grad()
    def latent_maps(
        self,
        image: torch.Tensor,
        latents: Sequence[int] | None = None,
        layers: Sequence[str] | None = None,
    ) -> torch.Tensor:
        """Say what latents look at: ``M^i`` of eq. 1-2, averaged over layers after resizing.

        Args:
            image: Images of shape ``(B, C, H, W)`` with the network's channels, pixels from 0 to 1.
            latents: Which latents; all by default.
            layers: Names of the encoder's layers; the model's own by default.

        Returns:
            A map a latent, of shape ``(B, P, H, W)``, not negative.

        Raises:
            ValueError: If there is no such latent or layer.
        """
        latents = range(self.latent_dim) if latents is None else self.find_latents(latents)
        layers = self.find_layers(layers) if layers else self.attention_layers
        maps = []
        for part in self._split(image, len(latents)):
            encoded = self._encode(part, layers)
            gradients = self._by_latents(encoded, layers, latents)
            maps.append(self._average(latent_attention(encoded.trace[name], gradients[name]) for name in layers))
        return torch.cat(maps)

    def find_latents(self, latents: Sequence[int]) -> list[int]:
        """Check numbers of latents.

        Raises:
            ValueError: If one is out of range.
        """
        wrong = [latent for latent in latents if not 0 <= latent < self.latent_dim]
        if wrong:
            msg = f"latents: there is no {wrong}; the model's latents are 0 to {self.latent_dim - 1}."
            raise ValueError(msg)
        return list(latents)

    def _split(self, image: torch.Tensor, scores: int) -> Sequence[torch.Tensor]:
        """Split images into parts whose gradients fit in memory; an export takes all at once."""
        if torch.compiler.is_compiling():
            return [image]
        return image.split(max(1, PARALLEL_PIXELS // (scores * self.input_size[0] * self.input_size[1])))

    def _encode(self, image: torch.Tensor, layers: Sequence[str]) -> Encoded:
        encoder = self.vae.encoder
        kept = encoder.from_layer(min(layers, key=encoder.map_layers.index))
        trace = encoder.trace(image, kept)
        return Encoded(self.vae.split(trace[encoder.steps[-1].name]), trace)

    def _resize(self, maps: torch.Tensor) -> torch.Tensor:
        """Resize maps ``(..., h, w)`` to the images' size."""
        shape = maps.shape[-2:]
        name = "x".join(map(str, shape))
        resize = self.resize[name] if name in self.resize else self._resampling(shape).to(maps)
        return cast("Resampling", resize)(maps)

    def _average(self, maps: Iterable[torch.Tensor]) -> torch.Tensor:
        """Average maps of several layers, each resized to the images' size."""
        resized = [self._resize(layer) for layer in maps]
        return torch.stack(resized).mean(0)

    def _by_latents(self, encoded: Encoded, layers: Sequence[str], latents: Sequence[int]) -> Trace:
        """Return the gradients of parameters of the posterior, means first, by layers, ``(B, P, C, h, w)`` each."""
        if encoded.jacobian is not None:
            return {name: encoded.jacobian[name][:, list(latents)] for name in layers}
        parameters = torch.eye(2 * self.latent_dim, device=encoded.posterior.mean.device)[list(latents)]
        # The length of a tensor would fix the number of images in an export; its shape does not.
        seeds = parameters.expand(encoded.posterior.mean.shape[0], -1, -1)
        return self._adjoint(seeds, encoded, layers)

    def _adjoint(self, seeds: torch.Tensor, encoded: Encoded, layers: Sequence[str]) -> Trace:
        """Carry gradients by the posterior's parameters back to layers."""
        if encoded.jacobian is None:
            return self.vae.adjoint(seeds, encoded.trace, layers)
        return {name: torch.einsum("bpk,bk...->bp...", seeds, encoded.jacobian[name]) for name in layers}
