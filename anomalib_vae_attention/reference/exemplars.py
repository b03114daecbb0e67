"""The exemplars: the posteriors of the normal images themselves."""

import logging
import math

import torch

from anomalib_vae_attention.vae import Posterior

from .bank import Bank, gather
from .base import LeftOut, Match, NormalReference, require_images

logger = logging.getLogger(__name__)

RELATIVE_TEMPERATURE = 0.5
"""Temperature of the exemplars' weights, as a share of the mean energy between normal images and their nearest."""
LEAST_TEMPERATURE = 2.0
"""Least temperature: at 2, weights are the likelihoods under each exemplar's Gaussian. Copies of one image need it."""
HIDDEN = 1e30
"""What the logits of exemplars that are not to be seen are lowered by: infinity less infinity would be no number."""
CALIBRATION_IMAGES = 256
"""Number of normal images, evenly spaced over those seen, from which the energy of normal data is estimated."""
CALIBRATION_BATCH = 32
"""Normal images that are left out and matched at a time."""
COMPARED = 32
"""Number of normal images by which the exemplars of a cell are compared with those of the cells around it."""
SEARCH_BYTES = 2**22
"""Memory of one part of a search, exemplars and distances in single precision: what a processor's cache holds."""
FEW = 512
"""Exemplars of a cell, at most, where there are fewer images and the cells around it help."""


class Exemplars(NormalReference):
    """The posteriors of the normal images themselves, kept per cell with a byte a latent.

    A cell is compared with the exemplars ``mu^n(p)`` of all images at that cell, by the square of eq. 4's mean over its
    variance, ``e_n(p) = sum_i (mu_i(p) - mu_i^n(p))^2 / (v_i + v_i)``. Its match ``mu*`` is their mean, weighted by
    ``exp(-e_n / T)``, and ``e(p)`` the energy between the two. The match depends smoothly on the image: where two
    exemplars are equally near, a runtime's last digit does not choose the map.

    Few images show little of what is normal at a cell, less so if parts do not always lie alike. Where there are fewer
    than :data:`FEW` images, that many exemplars of the cell and the cells around it are tried too: as far around as
    images make up that number, a random sample where they are more. They are kept if they bring normal images that are
    left out nearer than those of the cell alone do.

    Args:
        max_exemplars: Most images to keep. Of more, a random sample of that size is kept (reservoir sampling, seeded),
            so that memory is at most ``(d + 4) h w`` bytes an image: 68 KiB for 64 latents on a 32x32 grid, or 34 MiB
            where :data:`FEW` of the cells around help.
        radius: How many cells away an exemplar may be, 0 or more; None finds out.
    """

    bank: torch.Tensor
    step: torch.Tensor
    half_norm: torch.Tensor
    centre: torch.Tensor
    scale: torch.Tensor
    temperature: torch.Tensor

    def __init__(self, max_exemplars: int = 2000, radius: int | None = None) -> None:
        super().__init__()
        self.max_exemplars = max_exemplars
        self.radius = radius
        self.register_buffer("bank", torch.zeros(0, dtype=torch.int8))
        self.register_buffer("step", torch.zeros(0))
        self.register_buffer("half_norm", torch.zeros(0))
        self.register_buffer("centre", torch.zeros(0))
        self.register_buffer("scale", torch.zeros(0))
        self.register_buffer("temperature", torch.tensor(LEAST_TEMPERATURE))
        self.start()

    def start(self) -> None:
        """Forget everything and get ready to collect."""
        self._kept: list[torch.Tensor] = []
        self._seen = 0
        self._variance = torch.zeros(0)
        self._image = torch.zeros(0, dtype=torch.int64)
        self._random = torch.Generator().manual_seed(0)

    def update(self, posterior: Posterior) -> None:
        """Keep the posteriors of a batch of normal images, each with the probability that keeps the sample fair."""
        self._variance = posterior.variance
        for mean in posterior.mean.detach().cpu():
            self._seen += 1
            if len(self._kept) < self.max_exemplars:
                self._kept.append(mean.half())
                continue
            if self._seen == self.max_exemplars + 1:
                logger.warning(
                    "More than max_exemplars=%d normal images: a random sample of that size is kept. "
                    "reference='gaussian' learns from all of them in constant memory.",
                    self.max_exemplars,
                )
            place = int(torch.randint(self._seen, (1,), generator=self._random))
            if place < self.max_exemplars:
                self._kept[place] = mean.half()

    def finish(self) -> LeftOut:
        """Build the bank; see :meth:`NormalReference.finish`."""
        require_images(len(self._kept))
        device = self._variance.device
        self.scale = (2 * self._variance).rsqrt().detach().clone()
        total = torch.zeros_like(self._kept[0], dtype=torch.float64)
        for mean in self._kept:
            total += mean.double()
        self.centre = (total / len(self._kept)).float().to(device)
        self._build()
        chosen = self._spread(CALIBRATION_IMAGES)
        nearest = self._leave_out(chosen).nearest
        self.temperature.copy_((RELATIVE_TEMPERATURE * nearest.mean()).clamp_min(LEAST_TEMPERATURE))
        left_out = self._leave_out(chosen)
        self.start()
        return left_out

    def _spread(self, most: int) -> torch.Tensor:
        """Return the numbers of some images, evenly spaced."""
        return torch.linspace(0, len(self._kept) - 1, min(most, len(self._kept))).round().long()

    def _build(self) -> None:
        """Fill the bank, with the cells around where that brings normal images that are left out nearer."""
        count = len(self._kept)
        own = gather(self._kept, self.centre, self.scale, self.radius or 0)
        self._use(own)
        if self.radius is not None or count >= FEW:
            return
        compared = self._spread(COMPARED)
        of_own = self._leave_out(compared).nearest.mean()
        radius = max(1, (math.isqrt(FEW // count) - 1) // 2)
        self._use(gather(self._kept, self.centre, self.scale, radius, FEW))
        of_all = self._leave_out(compared).nearest.mean()
        # A single image has only the cells around to be compared with.
        if count > 1 and of_own <= of_all:
            self._use(own)
            return
        logger.info(
            "Normal images are nearer to each other where cells are compared with those around them, too: "
            "%d exemplars a cell, from up to %d away.",
            self.bank.shape[2],
            radius,
        )

    def _use(self, bank: Bank) -> None:
        """Make a bank the one that is searched."""
        self.bank, self.step, self._image = bank.steps, bank.step, bank.image
        half_norm = 0.5 * torch.stack([(cell * self.step[:, None]).square().sum(0) for cell in self.bank])
        self.half_norm = half_norm[:, None] + HIDDEN * bank.outside

    def _leave_out(self, chosen: torch.Tensor) -> LeftOut:
        """Match some of the images, each with all others."""
        matches = []
        for some in chosen.split(CALIBRATION_BATCH):
            means = torch.stack([self._kept[index] for index in some]).to(self.bank.device).float()
            matches.append(self._search(means, some.to(self.bank.device)))
        energy, _, nearest = (torch.cat(parts) for parts in zip(*matches, strict=True))
        # A single image of a single cell has nothing left to be compared with.
        return LeftOut(energy, torch.where(nearest < HIDDEN, nearest, 0.0))

    @property
    def grid_size(self) -> tuple[int, ...]:
        """Height and width of the grid that the reference was collected on."""
        return tuple(self.centre.shape[1:])

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes that the buffers should have; see :meth:`NormalReference.shapes`."""
        latent_dim, height, width = self.centre.shape
        cells, count = height * width, self.bank.shape[-1]
        bank, half_norm = (cells, latent_dim, count), (cells, 1, count)
        centre = (latent_dim, height, width)
        vector = (latent_dim,)
        return {
            "bank": bank,
            "step": vector,
            "half_norm": half_norm,
            "centre": centre,
            "scale": vector,
            "temperature": (),
        }

    def _whiten(self, latent: torch.Tensor) -> torch.Tensor:
        return latent * self.scale[:, None, None]

    def match(self, posterior: Posterior) -> Match:
        """Mix the exemplars of every cell; see :meth:`NormalReference.match`."""
        energy, latent, nearest = self._search(posterior.mean)
        gradient = (posterior.mean - latent) * self.scale.square()[:, None, None]
        return Match(energy, gradient, latent, nearest)

    def _search(self, mean: torch.Tensor, leave_out: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
        """Attend to the exemplars.

        Args:
            mean: Posterior means, of shape ``(B, d, h, w)``.
            leave_out: Exemplar to hide from each image, of shape ``(B,)``; where there is no other, it is hidden from
                the cell itself only.

        Returns:
            Energy ``(B, h, w)``, match ``(B, d, h, w)`` and energy to the nearest ``(B, h, w)``.
        """
        batch, latent_dim, height, width = mean.shape
        cells, exemplars = height * width, self.bank.shape[2]
        query = self._whiten(mean - self.centre).flatten(2).permute(2, 0, 1).contiguous()
        # The step goes into the query and the match, which are shorter than the bank. An export multiplies the bank by
        # it: OpenVINO keeps bytes only of what is scaled next, and makes floats of the rest.
        exporting = torch.compiler.is_compiling()
        step = torch.ones_like(self.step) if exporting else self.step
        scaled = query * (step * (2 / self.temperature))
        offset = self.half_norm * (-2 / self.temperature)
        part = cells if exporting else max(1, SEARCH_BYTES // (4 * exemplars * (latent_dim + batch)))
        found = []
        for start in range(0, cells, part):
            some = slice(start, start + part)
            found.append(self._attend(some, scaled[some], offset[some], leave_out))
        # Matches are held fixed in the gradient.
        matched = (torch.cat([match for match, _ in found]) * step).detach()
        greatest = torch.cat([logit for _, logit in found])
        energy = (query - matched).square().sum(2)
        nearest = (query.square().sum(2) - self.temperature * greatest).clamp_min(0)
        matched = matched.permute(1, 2, 0).reshape(batch, latent_dim, height, width)
        latent = matched / self.scale[:, None, None] + self.centre
        return energy.T.reshape(batch, height, width), latent, nearest.T.reshape(batch, height, width)

    def _attend(
        self,
        some: slice,
        query: torch.Tensor,
        offset: torch.Tensor,
        leave_out: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the match ``(c, B, d)``, in steps, and the greatest logit ``(c, B)`` of ``c`` cells."""
        bank = self.bank[some].to(query.dtype)
        if torch.compiler.is_compiling():
            bank = bank * self.step[:, None]
        logit = torch.baddbmm(offset, query, bank)
        if leave_out is not None:
            self._hide(logit, leave_out, some)
        return torch.bmm(logit.softmax(2), bank.mT), logit.amax(2)

    def _hide(self, logit: torch.Tensor, leave_out: torch.Tensor, some: slice) -> None:
        """Lower the logits of each image's own exemplars at some of the cells, in place; see :meth:`_search`."""
        exemplars = logit.shape[2]
        if len(self._kept) > 1:
            logit -= HIDDEN * (self._image[some, None] == leave_out[:, None])
        elif exemplars > 1:
            logit[:, :, exemplars // 2] -= HIDDEN
