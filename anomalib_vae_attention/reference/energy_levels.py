"""Energies beside what is normal for what is seen: some things are never seen twice alike, others always are.

A Gaussian whose variance depends on what is seen judges by the squared distance over that variance, and by the
logarithm of it. Normalising distances by those of the neighbours is known from PatchCore (arXiv 2305.17695).
"""

import torch
from torch.nn import functional as F  # noqa: N812

LEVEL_POWER = 0.25
"""How much of a level is taken off energies, as a power of it. docs/ablation.md says what chose it."""
LEVEL_WINDOW = 5
"""Width of the square of cells, odd, over which levels are averaged."""
LEVEL_FLOOR = 1e-3
"""Energy, in units of the mean, that is added before a logarithm is taken."""


def energy_levels(energy: torch.Tensor) -> torch.Tensor:
    """Return the levels of energies: their logarithms, averaged over some cells.

    Args:
        energy: Energies of images, each left out of the reference, of shape ``(n, h, w)``, not all 0.

    Returns:
        Levels of the same shape, 0 on average.
    """
    logarithm = (energy / energy.mean() + LEVEL_FLOOR).log()
    border = [LEVEL_WINDOW // 2] * 4
    level = F.avg_pool2d(F.pad(logarithm[:, None], border, mode="replicate"), LEVEL_WINDOW, 1)[:, 0]
    return level - level.mean()


def judge_by_level(
    energy: torch.Tensor, level: torch.Tensor, power: torch.Tensor, mean_energy: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Judge energies ``e`` by the levels ``l`` of their matches: ``exp(-q l) e + 2 q l mean(e)``.

    The second term is the logarithm of the variance: twice, as maps add attention, another measure of ``e``, to it.

    Args:
        energy: Energies, of shape ``(B, h, w)``.
        level: Levels of their matches, of the same shape.
        power: The power ``q``, of shape ``()``.
        mean_energy: Mean energy of normal images, of shape ``()``.

    Returns:
        Energies, and the factor of their gradients, with levels held fixed; both of shape ``(B, h, w)``.
    """
    factor = (-power * level).exp()
    return energy * factor + 2 * power * mean_energy * level, factor
