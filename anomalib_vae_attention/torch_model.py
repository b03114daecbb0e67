"""The model of vae_attention as a torch module: image in, ``InferenceBatch`` out, no autograd at inference."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from anomalib.data import InferenceBatch
from torch import nn

from .attention import energy_attention
from .backbone import PACKAGED_BACKBONE, Backbone
from .batch_norm_folding import fold_batch_norms
from .reference import MAX_EXEMPLARS, LeftOut, Match, make_reference
from .resampling import Resampling, SizedResamplings, blur_matrix, resize_matrix
from .scoring import fail_safe, only_scorable, require_scorable, to_unit_interval
from .vae import FeatureGrid, FeatureVAE

if TYPE_CHECKING:
    from anomalib.data.utils.tiler import Tiler

DEFAULT_LAYERS = ("blocks.1", "blocks.2", "blocks.4")
MAP_SIGMA = 2.0
"""Standard deviation of the anomaly map's blur, in pixels of the input image."""
SCORE_SIGMA = 1.0
"""Standard deviation of the energy's blur before its peak is taken for the image score, in cells."""
LEAST_ENERGY = 1.0
"""Least energy of normal images: that of latents one standard deviation apart. Copies of one image have less."""
LEAST_VARIATION = 0.05
"""Least standard deviation of the logarithms of peak and mean over normal images."""


class Explanation(NamedTuple):
    """Everything the model knows of a batch of images.

    Attributes:
        match: Latent energy, its gradient and the matched normal latents, on the grid (see :class:`Match`).
        activations: The backbone's layers ``A_l``, each of shape ``(B, C_l, h_l, w_l)``.
        counterfactual: The layers as a normal part would have shown them, ``A_hat_l``, of the same shapes.
        attention: Attention map of each layer, of shape ``(B, h_l, w_l)``, in units of energy.
        anomaly_map: Energy and attention together over the energy of normal images, of shape ``(B, H, W)``.
        score: Image score of shape ``(B,)``: logarithms of the peak of the energy to the nearest normal latents and of
            the mean distance (its root), each standardised by those of normal images, and of these the greater; around
            0 for a normal image.
    """

    match: Match
    activations: list[torch.Tensor]
    counterfactual: list[torch.Tensor]
    attention: list[torch.Tensor]
    anomaly_map: torch.Tensor
    score: torch.Tensor


class _Resamplings(SizedResamplings):
    """The resamplings of maps for images of one size.

    Args:
        size: Height and width of the images in pixels.
        grid_size: Height and width of the grid in cells.
        layer_sizes: Height and width of each layer in its own cells.
    """

    def __init__(
        self,
        size: tuple[int, int],
        grid_size: tuple[int, int],
        layer_sizes: list[tuple[int, int]],
    ) -> None:
        super().__init__(size, layer_sizes)

        def blur(cells: int) -> torch.Tensor:
            return blur_matrix(cells, SCORE_SIGMA)

        def refine(side: int, cells: int, finest: int) -> torch.Tensor:
            return side / cells * resize_matrix(side, finest)

        def upsample(side: int, pixels: int) -> torch.Tensor:
            return blur_matrix(pixels, MAP_SIGMA) @ resize_matrix(side, pixels)

        finest = max(layer_sizes)
        self.smooth_score = Resampling(blur, grid_size)
        self.refine_energy = Resampling(resize_matrix, grid_size, finest)
        self.refine = nn.ModuleList(Resampling(refine, layer_size, grid_size, finest) for layer_size in layer_sizes)
        self.upsample = Resampling(upsample, finest, size)


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
    score_mean: torch.Tensor
    score_std: torch.Tensor
    is_fitted: torch.Tensor

    def __init__(
        self,
        backbone: str = PACKAGED_BACKBONE,
        layers: Sequence[str] = DEFAULT_LAYERS,
        pre_trained: bool = True,
        latent_dim: int = 64,
        reference: str = "exemplars",
        max_exemplars: int = MAX_EXEMPLARS,
    ) -> None:
        super().__init__()
        self.tiler: Tiler | None = None
        self.backbone = Backbone(backbone, layers, pre_trained)
        fold_batch_norms(self.backbone.extractor, self.backbone.image_shape)
        self.grid = FeatureGrid(self.backbone.channels)
        # No graph is to be built at inference, where callers such as anomalib's TorchInferencer allow gradients.
        self.vae = FeatureVAE(self.backbone.channels, latent_dim).requires_grad_(requires_grad=False)
        self.reference = make_reference(reference, max_exemplars)
        self.register_buffer("energy_scale", torch.ones(()))
        self.register_buffer("score_mean", torch.zeros(2))
        self.register_buffer("score_std", torch.ones(2))
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
        resamplings = _Resamplings(size, grid_size, layer_sizes)
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
            ValueError: If the images are of another size than those it was fitted on.
        """
        if self.training:
            return self.grid.stack(self.layers(image))
        image, whole = only_scorable(image)
        explanation = self.explain(image)
        score, anomaly_map = to_unit_interval(explanation.score), to_unit_interval(explanation.anomaly_map)
        return fail_safe(whole, score, anomaly_map[:, None])

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
        posterior = self.vae.posterior(self.grid(activations))
        match = self.reference.match(posterior)
        counterfactual = self.grid.layers_of(self.vae.decode(match.latent))
        gradients = self.grid.adjoint(self.vae.adjoint(match.gradient))
        attention = energy_attention(activations, counterfactual, gradients)
        anomaly_map = self.at_image_size(attention, match.energy)
        return Explanation(
            match,
            activations,
            counterfactual,
            attention,
            anomaly_map / (2 * self.energy_scale),
            self._judge(match.nearest),
        )

    def at_image_size(self, attention: Sequence[torch.Tensor], energy: torch.Tensor | None = None) -> torch.Tensor:
        """Add maps up at the size of the images.

        Args:
            attention: A map of each layer, of shape ``(B, h_l, w_l)``, in units of energy.
            energy: A map on the grid, of shape ``(B, h, w)``, or none.

        Returns:
            Their sum, blurred, of shape ``(B, H, W)``, in units of the energy of a cell of the grid.
        """
        # On the finest layer's grid, so that there is one map to bring to the size of the image.
        fixed = cast("_Resamplings", self._resamplings)
        maps = [refine(layer_map) for refine, layer_map in zip(fixed.refine, attention, strict=True)]
        if energy is not None:
            maps.append(fixed.refine_energy(energy))
        return fixed.upsample(torch.stack(maps).sum(0))

    def _judge(self, nearest: torch.Tensor) -> torch.Tensor:
        """Return the image score of the energy to the nearest: of peak and mean, what is more unlike normal images.

        Either alone is enough to reject an image, and a sum would let the scatter of one hide the other, which is why
        Tippett ("The Methods of Statistics", 1931) judges several tests by the one that says most.
        """
        return ((self._peak_and_mean(nearest) - self.score_mean) / self.score_std).amax(dim=1)

    def _peak_and_mean(self, energy: torch.Tensor) -> torch.Tensor:
        """Return what an image is judged by: a small defect raises the peak of its energy, a diffuse one the mean.

        The mean is that of the distance, the energy's root, so that a small defect does not count twice.
        """
        peak = cast("_Resamplings", self._resamplings).smooth_score(energy).amax(dim=(-2, -1))
        return torch.stack([peak, energy.sqrt().mean(dim=(-2, -1))], dim=1).log1p()

    def _check_size(self, image: torch.Tensor) -> None:
        # Before anything is built for them, lest another thread's image meet the matrices of a wrong size.
        grid_size = self.grid.size_for(image.shape[-2:])
        if not torch.compiler.is_compiling() and self.reference.grid_size != grid_size:
            msg = (
                f"Images of size {tuple(image.shape[-2:])} make a grid of {grid_size} cells, but the model "
                f"was fitted on one of {self.reference.grid_size}: use the pre-processor that it was fitted with."
            )
            raise ValueError(msg)

    def calibrate(self, normal: LeftOut) -> None:
        """Set the scales from energies of normal images that were left out of the reference."""
        self.energy_scale.copy_(normal.energy.mean().clamp_min(LEAST_ENERGY))
        scores = self._peak_and_mean(normal.nearest)
        self.score_mean.copy_(scores.mean(0))
        deviation = scores.std(0) if len(scores) > 1 else torch.zeros(2)
        self.score_std.copy_(deviation.clamp_min(LEAST_VARIATION))
        self.is_fitted.fill_(value=True)
