"""The model of vae_attention as a torch module: image in, ``InferenceBatch`` out, no autograd at inference."""

from collections.abc import Sequence
from functools import reduce
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from anomalib.data import InferenceBatch
from torch import nn

from .attention import energy_attention
from .backbone import PACKAGED_BACKBONE, Backbone
from .batch_norm_folding import fold_batch_norms, round_weights
from .reference import MAX_EXEMPLARS, LeftOut, Match, make_reference
from .resampling import MapResamplings, SizedResamplings, border_distance
from .scoring import as_floats, fail_safe, highest_means, only_scorable, require_scorable, to_unit_interval
from .vae import FeatureGrid, FeatureVAE, Posterior, carry_noise

if TYPE_CHECKING:
    from anomalib.data.utils.tiler import Tiler

DEFAULT_LAYERS = ("blocks.1", "blocks.2", "blocks.4")
BORDER_CELLS = 2
"""Width of the border of the grid, in cells, where features vary with the backbone's padding."""
ONE_LAYOUT = 0.5
"""Share of the variance of normal features that their place must explain for pictures to have one layout."""
BORDER_OF_LAYOUT = 0.5
"""Weight of the border in pictures of one layout: somebody has put the part in the middle."""
ONE_SHARE = (0.0, 1.0, 0.0, 0.0)
"""Weights of the shares (see :func:`highest_means`) in models of before there were several: the highest 1 % alone."""
LEAST_ENERGY = 1.0
"""Least energy of normal images: that of latents one standard deviation apart. Copies of one image have less."""


class Explanation(NamedTuple):
    """Everything the model knows of a batch of images.

    Attributes:
        match: Latent energy, its gradient and the matched normal latents, on the grid (see :class:`Match`).
        energy: The latent energy and that of the noise, of shape ``(B, h, w)``, at least 0.
        activations: The backbone's layers ``A_l``, each of shape ``(B, C_l, h_l, w_l)``.
        counterfactual: The layers as a normal part would have shown them, ``A_hat_l``, of the same shapes.
        attention: Attention map of each layer, of shape ``(B, h_l, w_l)``, in units of energy.
        anomaly_map: Energy and attention together over the energy of normal images, of shape ``(B, H, W)``.
        score: Image score of shape ``(B,)``, about 1 for normal images: means of the highest shares of the anomaly map
            before its blur (see :func:`highest_means`), each over that of normal images, averaged. The border counts
            less where normal images have more energy there (see :meth:`VaeAttentionModel.calibrate`).
    """

    match: Match
    energy: torch.Tensor
    activations: list[torch.Tensor]
    counterfactual: list[torch.Tensor]
    attention: list[torch.Tensor]
    anomaly_map: torch.Tensor
    score: torch.Tensor

    def prediction(self, whole: torch.Tensor) -> InferenceBatch:
        """Return scores and maps in (0, 1), and 1 for images that are not ``whole``; see :func:`.fail_safe`."""
        return fail_safe(whole, to_unit_interval(self.score), to_unit_interval(self.anomaly_map)[:, None])


class VaeAttentionModel(nn.Module):
    """One VAE, one attention and one normal reference, put together.

    Args:
        backbone: Name of a timm model.
        layers: Names of the backbone's layers to look at.
        pre_trained: Whether the backbone has ImageNet weights.
        latent_dim: Number of latents per cell.
        reference: One of :data:`REFERENCES`.
        max_exemplars: Most normal images that the exemplars keep.

    Raises:
        ValueError: If an argument is out of range; the message says which and what there is.
    """

    energy_scale: torch.Tensor
    share_weights: torch.Tensor
    noise_weight: torch.Tensor
    border_weight: torch.Tensor
    map_border: torch.Tensor
    is_fitted: torch.Tensor

    def __init__(
        self,
        backbone: str = PACKAGED_BACKBONE,
        layers: Sequence[str] = DEFAULT_LAYERS,
        pre_trained: bool = True,
        latent_dim: int = 96,
        reference: str = "exemplars",
        max_exemplars: int = MAX_EXEMPLARS,
    ) -> None:
        super().__init__()
        self.tiler: Tiler | None = None
        self.backbone = Backbone(backbone, layers, pre_trained)
        fold_batch_norms(self.backbone.extractor, self.backbone.image_shape)
        round_weights(self.backbone.extractor)
        self.grid = FeatureGrid(self.backbone.channels)
        # No graph is to be built at inference, where callers such as anomalib's TorchInferencer allow gradients.
        self.vae = FeatureVAE(self.grid.channels, latent_dim).requires_grad_(requires_grad=False)
        self.reference = make_reference(reference, max_exemplars)
        self.register_buffer("energy_scale", torch.ones(()))
        self.register_buffer("share_weights", torch.tensor(ONE_SHARE))
        self.register_buffer("noise_weight", torch.zeros(()))
        self.register_buffer("border_weight", torch.ones(BORDER_CELLS))
        self.register_buffer("map_border", torch.ones(()))
        self.register_buffer("is_fitted", torch.tensor(data=False))
        # A module from the start: a change from an attribute to a module would take two assignments.
        self._resamplings = SizedResamplings()

    def layers(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Compute the backbone's layers of normalised images.

        Args:
            image: Images of shape ``(B, 3, H, W)`` (one grey channel will do), normalised by the pre-processor.

        Returns:
            Activations ``A_l``, each of shape ``(B, C_l, h_l, w_l)``.
        """
        size = (image.shape[-2], image.shape[-1])
        if image.shape[1] == 1:
            image = image.expand(-1, 3, -1, -1)
        if self.tiler:
            image = self.tiler.tile(image)
        layers = self.backbone(image)
        if self.tiler:
            layers = [self.tiler.untile(layer) for layer in layers]
        self._prepare(size, [(layer.shape[-2], layer.shape[-1]) for layer in layers])
        return layers

    def _prepare(self, size: tuple[int, int], layer_sizes: list[tuple[int, int]]) -> None:
        """Build the resamplings for images of one size; they are the same for every image after it."""
        if self._resamplings.fits(size, layer_sizes):
            return
        self.grid.prepare(size, layer_sizes)
        grid_size = self.grid.size_for(size)
        weights = self.map_border.expand(BORDER_CELLS).cpu(), self.border_weight.cpu()
        resamplings = MapResamplings(size, grid_size, layer_sizes, weights)
        self._resamplings = resamplings.to(self.energy_scale)

    def forward(self, image: torch.Tensor) -> torch.Tensor | InferenceBatch:
        """Compute raw grid features in training mode, and scores and anomaly maps in evaluation mode.

        Args:
            image: Normalised images of shape ``(B, 3, H, W)``.

        Returns:
            In training mode the features, of shape ``(B, C, h, w)``; else ``pred_score`` of shape ``(B,)`` and
            ``anomaly_map`` of shape ``(B, 1, H, W)``, both strictly between 0 and 1, and 1 for images that cannot be
            judged (see :func:`.fail_safe`).

        Raises:
            RuntimeError: If the model has not been fitted.
            ValueError: If the images are of another size than those it was fitted on, or are none.
        """
        image = as_floats(image, self)
        if self.training:
            return self.grid.stack(self.layers(image))
        image, whole = only_scorable(image)
        return self.explain(image).prediction(whole)

    def explain(self, image: torch.Tensor) -> Explanation:
        """Match images with the normal reference, decode their counterfactual, and attribute the energy.

        Args:
            image: Normalised images of shape ``(B, 3, H, W)``, finite.

        Returns:
            Energy, counterfactual, attention and scores.

        Raises:
            RuntimeError: If the model has not been fitted.
            ValueError: If the images are not finite, or of another size than those it was fitted on.
        """
        require_scorable(image, self.is_fitted)
        self._check_size(image)
        activations = self.layers(image)
        match, energy, gradient = self._judge(self.grid(activations))
        counterfactual = self.grid.layers_of(self.vae.decode(match.latent, len(activations)))
        attention = energy_attention(activations, counterfactual, self.grid.adjoint(gradient))
        fixed = self._fixed
        fine_map = self._at_finest_layer(attention) + fixed.refine_energy(energy)
        fine_map = fine_map / (2 * self.energy_scale) * fixed.map_weight
        score = (highest_means(fine_map * fixed.score_weight) * self.share_weights).sum(1)
        anomaly_map = fixed.upsample(fine_map)
        return Explanation(match, energy, activations, counterfactual, attention, anomaly_map, score)

    def posterior(self, features: torch.Tensor) -> tuple[Posterior, torch.Tensor]:
        """Encode standardised features to what references keep.

        Args:
            features: Standardised features of shape ``(B, C, h, w)``.

        Returns:
            The posterior of the ``d`` latents with the noise level as one more (see :func:`carry_noise`), and what the
            latents leave out, of shape ``(B, C, h, w)``.
        """
        latents = self.vae.posterior(features)
        residual = self.vae.residual(features, latents.mean)
        return carry_noise(latents, self.vae.noise(residual)), residual

    def _judge(self, features: torch.Tensor) -> tuple[Match, torch.Tensor, torch.Tensor]:
        """Compare features ``(B, C, h, w)`` with the normal reference, by their latents and by what these leave out.

        Returns:
            The match of the latents; the energy ``e`` of latents and noise, of shape ``(B, h, w)``; the gradient of
            ``1/2 sum e`` by the features, of shape ``(B, C, h, w)``.
        """
        posterior, residual = self.posterior(features)
        found = self.reference.match(posterior)
        latents = slice(self.vae.latent_dim)
        match = Match(found.energy, found.gradient[:, latents], found.latent[:, latents], found.nearest)
        noise_level, normal_noise = posterior.mean[:, -1], found.latent[:, -1].detach()
        energy = match.energy + self.noise_weight * (noise_level - normal_noise).exp()
        noise_gradient = self.vae.noise_gradient(residual, self.noise_weight * (-normal_noise).exp())
        return match, energy, self.vae.adjoint(match.gradient) + noise_gradient

    def at_image_size(self, attention: Sequence[torch.Tensor]) -> torch.Tensor:
        """Add maps of the layers, each of shape ``(B, h_l, w_l)``, up at the size of the images.

        Returns:
            Their sum, blurred, of shape ``(B, H, W)``, in units of the energy of a cell of the grid.
        """
        return self._fixed.upsample(self._at_finest_layer(attention))

    def _at_finest_layer(self, attention: Sequence[torch.Tensor]) -> torch.Tensor:
        """Add maps up on the finest layer's cells, so that there is one map to bring to the size of the image."""
        return reduce(torch.add, (refine(map_) for refine, map_ in zip(self._fixed.refine, attention, strict=True)))

    @property
    def _fixed(self) -> MapResamplings:
        return cast("MapResamplings", self._resamplings)

    def _check_size(self, image: torch.Tensor) -> None:
        # Before anything is built for them, lest another thread's image meet the matrices of a wrong size.
        grid_size = self.grid.size_for(image.shape[-2:])
        if not torch.compiler.is_compiling() and self.reference.grid_size != grid_size:
            msg = (
                f"Images of size {tuple(image.shape[-2:])} make a grid of {grid_size} cells, but the model "
                f"was fitted on one of {self.reference.grid_size}: use the pre-processor that it was fitted with."
            )
            raise ValueError(msg)

    def calibrate(self, normal: LeftOut, place_share: float = 0.0, mahalanobis: float = 0.0) -> None:
        """Set the scale of maps, the weights of the noise and of the border, and those of the shares in scores.

        The noise counts as much as the latents where everything may lie anywhere, and up to twice as much in a
        homogeneous texture, where it is a part of the likelihood. Where pictures have one layout, exemplars of the very
        place know better, and the noise counts less by the share that it explains.
        Where normal images have more energy in a ring of cells at the border than inside, the ring is weighed down to
        the same mean in scores. It is never weighed up: a calm background would become a noisy one. In pictures of one
        layout, the border counts half in the map, and so in the score.
        A share of the map counts by how much it is above that of normal images: their highest cells are high, too.

        Args:
            normal: Energies of normal images that were left out of the reference.
            place_share: Share of the variance of normal features that their place explains, from 0 to 1.
            mahalanobis: How near energies are to the Mahalanobis distance, from 0 to 1, as the grid was fitted with it.
        """
        self.map_border.fill_(BORDER_OF_LAYOUT if place_share > ONE_LAYOUT else 1.0)
        latent_energy = normal.energy.mean().clamp_min(LEAST_ENERGY)
        self.noise_weight.copy_((1 - place_share) * (1 + mahalanobis) * latent_energy)
        # The noise is about as much as is normal, on average: its energy is its weight.
        self.energy_scale.copy_(latent_energy + self.noise_weight)
        usual = highest_means(normal.energy).mean(0)
        # All of them are zero for copies of one image.
        self.share_weights.copy_((usual[-1] / usual).nan_to_num(1.0) / len(usual))
        energy, distance = normal.energy.mean(0), border_distance(normal.energy.shape[-2:]).to(normal.energy.device)
        inside = energy[distance >= 2 * BORDER_CELLS]
        for ring in range(BORDER_CELLS):
            mean = energy[distance == ring].mean()
            self.border_weight[ring] = (inside.mean() / mean).clamp(max=1) if len(inside) and mean > 0 else 1.0
        self.is_fitted.fill_(value=True)
        self._resamplings = SizedResamplings()

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        """Load models of before the shares, too, and forget what was made of earlier weights of the border."""
        state_dict.setdefault(f"{prefix}share_weights", torch.tensor(ONE_SHARE))
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._resamplings = SizedResamplings()
