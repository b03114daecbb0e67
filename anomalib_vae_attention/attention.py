"""The formulae of all attention maps: which activations of the encoder a latent score comes from.

Liu et al. (CVPR 2020, eq. 1-4) weigh a layer's activations by the gradient of a latent score. The functions here are
given the gradients: at inference they come from closed-form adjoints, without autograd.
"""

from collections.abc import Sequence

import torch


def energy_attention(
    activations: Sequence[torch.Tensor],
    normal_activations: Sequence[torch.Tensor],
    gradients: Sequence[torch.Tensor],
) -> list[torch.Tensor]:
    """Attribute the latent energy to the cells of each layer: gradient times departure from the counterfactual normal.

    ``M_l(p) = sum_k dE/dA_l,k(p) (A_l,k(p) - A_hat_l,k(p))`` is eq. 2 of Liu et al. with two changes. The gradient
    stays at its place instead of being averaged over the image, and activations are measured from what a normal part
    would have shown. For a linear encoder, and activations that encode to the matched latents, the maps add up to the
    energy (completeness).

    Args:
        activations: Each layer's ``A_l``, of shape ``(B, C_l, h_l, w_l)``.
        normal_activations: Each layer's counterfactual ``A_hat_l``, of the same shape.
        gradients: Gradient of the energy by each layer, of the same shape.

    Returns:
        A map ``M_l`` per layer, of shape ``(B, h_l, w_l)``, in units of energy; it may be negative.
    """
    return [
        (gradient * (activation - normal)).sum(1)
        for activation, normal, gradient in zip(activations, normal_activations, gradients, strict=True)
    ]


def activation_energy_attention(
    activations: torch.Tensor,
    normal_activations: torch.Tensor,
    variance: torch.Tensor,
) -> torch.Tensor:
    """Attribute a layer's own energy to its cells: gradient times departure from the reconstruction's activations.

    The energy ``E = 1/(2 C) sum_kp (A_k(p) - A_hat_k(p))^2 / v_k(p)`` is, up to a constant, the negative log-density of
    a Gaussian around what the encoder makes of the reconstruction. Its gradient is ``(A - A_hat) / (C v)``, so that
    ``M(p) = sum_k dE/dA_k(p) (A_k(p) - A_hat_k(p)) = 1/C sum_k (A_k(p) - A_hat_k(p))^2 / v_k(p)``: about 1 on normal
    images. Unlike the energy of the latents, this energy has a place in the image; the latents act through ``A_hat``.

    Args:
        activations: A layer's ``A``, of shape ``(B, C, h, w)``.
        normal_activations: The layer's activations for the reconstructions, ``A_hat``, of the same shape.
        variance: Mean square ``v`` of the departures of normal images, of shape ``(C, h, w)``, greater than 0.

    Returns:
        A map per image, of shape ``(B, h, w)``, not negative.
    """
    return ((activations - normal_activations).square() / variance).mean(1)


def latent_attention(activations: torch.Tensor, gradients: torch.Tensor, *, both_signs: bool = False) -> torch.Tensor:
    """Say what each of several latents looks at: Liu et al., eq. 1 and 2.

    ``alpha_k = (1/T) sum_pq d z_i / d A_k,pq`` and ``M^i = ReLU(sum_k alpha_k A_k)``. Eq. 3's map is the mean over the
    latents. To train through the maps, give gradients that are a differentiable function of the weights: autograd's
    with ``create_graph=True``, or a closed-form adjoint.

    Args:
        activations: A layer's ``A``, of shape ``(B, C, h, w)``.
        gradients: Gradient of each of ``P`` latents by ``A``, of shape ``(B, P, C, h, w)``.
        both_signs: As for :func:`weighted_attention`.

    Returns:
        A map per latent, of shape ``(B, P, h, w)``, not negative.
    """
    return weighted_attention(activations, gradients.mean((-2, -1)), both_signs=both_signs)


def weighted_attention(activations: torch.Tensor, weights: torch.Tensor, *, both_signs: bool = False) -> torch.Tensor:
    """Weigh a layer's channels: Liu et al., eq. 2, ``M^i = ReLU(sum_k alpha_k A_k)``.

    Args:
        activations: A layer's ``A``, of shape ``(B, C, h, w)``.
        weights: The ``alpha`` of eq. 1 of each of ``P`` latents, of shape ``(B, P, C)``.
        both_signs: Whether what lowers the latent counts, too: the absolute value in place of the ReLU. Not in the
            paper.

    Returns:
        A map per latent, of shape ``(B, P, h, w)``, not negative.
    """
    maps = torch.einsum("bpc,bchw->bphw", weights, activations)
    return maps.abs() if both_signs else maps.relu()


def mean_attention(activations: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
    """Say what the sum of the posterior means looks at, both signs: the authors' released anomaly attention.

    ``s = sum_i mu_i``, ``M = |sum_k alpha_k A_k|`` with ``alpha`` as in eq. 1. Their code also divides the gradient by
    its root mean square over the whole batch. That is left out: an image's map would depend on its neighbours.

    Args:
        activations: A layer's ``A``, of shape ``(B, C, h, w)``.
        gradients: Gradient of ``s`` by ``A``, of shape ``(B, C, h, w)``.

    Returns:
        A map per image, of shape ``(B, h, w)``, not negative.
    """
    return latent_attention(activations, gradients[:, None], both_signs=True)[:, 0]


def normal_difference_attention(
    activations: torch.Tensor,
    by_mean: torch.Tensor,
    by_log_variance: torch.Tensor,
    slope: torch.Tensor,
) -> torch.Tensor:
    """Say what the normal difference distribution looks at: Liu et al., eq. 4 in place of z in eq. 1-2.

    ``u_i = m_i - mu_i + sqrt(v_i + sigma_i^2) eps_i``, with ``m`` and ``v`` of normal data, ``mu`` and ``sigma`` of the
    image. Its gradient ``-d mu_i / dA + slope_i d log sigma_i^2 / dA`` does not depend on the normal mean ``m``.

    Args:
        activations: A layer's ``A``, of shape ``(B, C, h, w)``.
        by_mean: Gradient of each ``mu_i`` by ``A``, of shape ``(B, d, C, h, w)``.
        by_log_variance: Gradient of each ``log sigma_i^2`` by ``A``, of the same shape.
        slope: Derivative of each sample's ``u_i`` by ``log sigma_i^2``, of shape ``(B, S, d)``.

    Returns:
        A map per latent, the mean over ``S`` samples, of shape ``(B, d, h, w)``, not negative.
    """
    alpha = slope[..., None] * by_log_variance.mean((-2, -1))[:, None] - by_mean.mean((-2, -1))[:, None]
    return torch.einsum("bsdc,bchw->bsdhw", alpha, activations).relu().mean(1)
