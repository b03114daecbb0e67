"""The exemplars: the posteriors of the normal images themselves."""

import logging

import torch

from anomalib_vae_attention.vae import Posterior

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
CALIBRATION_BATCH = 8
"""Normal images that are left out and matched at a time."""
SEARCH_BYTES = 2**23
"""Memory of one part of a search, exemplars and distances in single precision: what a processor's cache holds."""


class Exemplars(NormalReference):
    """The posteriors of the normal images themselves, kept per cell in half precision.

    A cell is compared with the exemplars ``mu^n(p')`` of all images at that cell and the cells around it, by the
    square of eq. 4's mean over its variance, ``e_n,p'(p) = sum_i (mu_i(p) - mu_i^n(p'))^2 / (v_i + v_i)``. Its match
    ``mu*`` is their mean, weighted by ``exp(-e_n,p' / T)``, and ``e(p)`` the energy between the two. The match depends
    smoothly on the image: where two exemplars are equally near, a runtime's last digit does not choose the map.

    Args:
        max_exemplars: Most images to keep. Of more, a random sample of that size is kept (reservoir sampling, seeded),
            so that memory is at most ``(2 d + 4) h w`` bytes an image: 132 KiB for 64 latents on a 32x32 grid.
        radius: How many cells away an exemplar may be, 0 or more.
    """

    bank: torch.Tensor
    half_norm: torch.Tensor
    centre: torch.Tensor
    scale: torch.Tensor
    temperature: torch.Tensor

    def __init__(self, max_exemplars: int = 2000, radius: int = 1) -> None:
        super().__init__()
        self.max_exemplars = max_exemplars
        self.radius = radius
        self.register_buffer("bank", torch.zeros(0, dtype=torch.float16))
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
        """Build the bank; see :meth:`NormalReference.finish`.

        The exemplars are stored relative to their mean at each cell: half precision then holds the differences that
        count, and the expansion of the square below loses no digits.
        """
        require_images(len(self._kept))
        device = self._variance.device
        self.scale = (2 * self._variance).rsqrt().detach().clone()
        latent_dim, height, width = self._kept[0].shape
        total = torch.zeros(latent_dim, height, width, dtype=torch.float64)
        for mean in self._kept:
            total += mean.double()
        self.centre = (total / len(self._kept)).float().to(device)
        bank = torch.empty(height * width, latent_dim, len(self._kept), dtype=torch.float16, device=device)
        for index, mean in enumerate(self._kept):
            bank[:, :, index] = self._whiten(mean.to(device).float() - self.centre).flatten(1).T.half()
        self.bank = bank
        self.half_norm = 0.5 * torch.stack([cell.float().square().sum(0) for cell in bank])[:, None]
        chosen = torch.linspace(0, len(self._kept) - 1, min(CALIBRATION_IMAGES, len(self._kept))).round().long()
        nearest = self._leave_out(chosen).nearest
        self.temperature.copy_((RELATIVE_TEMPERATURE * nearest.mean()).clamp_min(LEAST_TEMPERATURE))
        left_out = self._leave_out(chosen)
        self.start()
        return left_out

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
        return {"bank": bank, "half_norm": half_norm, "centre": centre, "scale": (latent_dim,), "temperature": ()}

    def _whiten(self, latent: torch.Tensor) -> torch.Tensor:
        return latent * self.scale[:, None, None]

    def match(self, posterior: Posterior) -> Match:
        """Mix the exemplars around every cell; see :meth:`NormalReference.match`."""
        energy, latent, nearest = self._search(posterior.mean)
        gradient = (posterior.mean - latent) * self.scale.square()[:, None, None]
        return Match(energy, gradient, latent, nearest)

    def _search(self, mean: torch.Tensor, leave_out: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
        """Return the energy ``(B, h, w)``, the match ``(B, d, h, w)`` and the energy to the nearest ``(B, h, w)``.

        Every cell's exemplars are read once and compared with the posteriors of all cells around it, because the bank
        is by far the largest thing to read; each cell then puts together what its neighbours found for it.
        """
        batch, latent_dim, height, width = mean.shape
        ahead, behind, outside = self._neighbours(height, width)
        cells, around = ahead.shape
        centre = self._whiten(self.centre).flatten(1).T
        whitened = self._whiten(mean).flatten(2).permute(2, 0, 1)
        query = (whitened[ahead] - centre[:, None, None]).view(cells, around * batch, latent_dim)
        logit, share, total = self._attend(query, leave_out)
        rank = torch.arange(around, device=mean.device)
        logit = logit.view(cells, around, batch)[behind, rank] - outside[:, :, None]
        greatest = logit.amax(1, keepdim=True)
        share = share.view(cells, around, batch)[behind, rank] * (logit - greatest).exp()
        total = total.view(cells, around, batch, latent_dim)[behind, rank] + centre[behind][:, :, None]
        # Matches are held fixed in the gradient.
        matched = ((share / share.sum(1, keepdim=True)).unsqueeze(3) * total).sum(1).detach()
        energy = (whitened - matched).square().sum(2)
        matched = (matched / self.scale).permute(1, 2, 0).reshape(batch, latent_dim, height, width)
        nearest = (-self.temperature * greatest[:, 0]).clamp_min(0)
        return energy.T.reshape(batch, height, width), matched, nearest.T.reshape(batch, height, width)

    def _attend(self, query: torch.Tensor, leave_out: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
        """Attend to the exemplars of each query's cell.

        Args:
            query: Whitened latents relative to the cell's centre, of shape ``(h w, n, d)``.
            leave_out: Exemplar to hide from each image, of shape ``(B,)``; where there is no other, it is hidden from
                the cell itself only.

        Returns:
            Greatest logit, of shape ``(h w, n)``; sum of the weights in units of the greatest, of the same shape; and
            the exemplars' weighted mean, of shape ``(h w, n, d)``.
        """
        cells, count, latent_dim = query.shape
        exemplars = self.bank.shape[2]
        part = max(1, SEARCH_BYTES // (4 * exemplars * (latent_dim + count)))
        if torch.compiler.is_compiling():
            part = cells
        found = []
        for start in range(0, cells, part):
            some = slice(start, start + part)
            bank = self.bank[some].to(query.dtype)
            logit = (torch.bmm(query[some], bank) - self.half_norm[some]) * (2 / self.temperature)
            if leave_out is not None and exemplars > 1:
                rank = torch.arange(count, device=query.device)
                logit[:, rank, leave_out[rank % len(leave_out)]] -= HIDDEN
            elif leave_out is not None and self.radius:
                logit[:, count // 2] -= HIDDEN
            greatest = logit.amax(2, keepdim=True)
            weight = (logit - greatest).exp()
            share = weight.sum(2, keepdim=True)
            mean = torch.bmm(weight, bank.mT) / share
            squared = query[some].square().sum(2, keepdim=True) / self.temperature
            found.append(((greatest - squared).squeeze(2), share.squeeze(2), mean))
        logit, share, mean = (torch.cat(parts) for parts in zip(*found, strict=True))
        return logit, share, mean

    def _neighbours(self, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return, per cell and offset, the cell ahead by it, the one behind, and :data:`HIDDEN` where that is outside.

        Each is of shape ``(h w, (2 radius + 1)^2)``.
        """
        device = self.bank.device
        steps = torch.arange(-self.radius, self.radius + 1, device=device)
        rows = torch.arange(height, device=device)[:, None, None, None]
        columns = torch.arange(width, device=device)[None, :, None, None]
        shape = (height, width, len(steps), len(steps))

        def cell(row: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
            flat = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
            return flat.expand(shape).reshape(height * width, -1)

        row, column = rows - steps[:, None], columns - steps
        beyond = (row < 0) | (row >= height) | (column < 0) | (column >= width)
        outside = torch.zeros(shape, device=device).masked_fill(beyond.expand(shape), HIDDEN)
        ahead = cell(rows + steps[:, None], columns + steps)
        return ahead, cell(row, column), outside.reshape(height * width, -1)
