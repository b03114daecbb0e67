"""The exemplars: the posteriors of the normal images themselves."""

import math
from collections.abc import Iterator

import torch
from torch.nn import functional as F  # noqa: N812

from anomalib_vae_attention.vae import NOT_COMPARED, Posterior

from .base import HIDDEN, LeftOut, Match, NormalReference, require_images
from .byte_latents import GREATEST, KeptLatents
from .departure_metric import departure_metric, metric_power, moments
from .energy_levels import LEVEL_POWER, energy_levels, judge_by_level
from .exemplar_choice import LAYOUT_TOLERANCE, MAX_EXEMPLARS, TOLERANCE, choose_common, choose_own
from .place_prior import PRIOR_STEP, place_prior
from .search import Found, attend, joined, parts

RELATIVE_TEMPERATURE = 0.5
"""Temperature of the exemplars' weights, as a share of the mean energy between normal images and their nearest."""
LEAST_TEMPERATURE = 2.0
"""Least temperature: at 2, weights are the likelihoods under each exemplar's Gaussian. Copies of one image need it."""
CALIBRATION_IMAGES = 256
"""Number of normal images, evenly spaced over those seen, from which the energy of normal data is estimated."""
CALIBRATION_BATCH = 32
"""Normal images that are left out and matched at a time."""


class Exemplars(NormalReference):
    """The posteriors of the normal images themselves.

    A cell is compared with exemplars ``mu^n`` by the square of eq. 4's mean over its variance,
    ``e_n(p) = sum_i (mu_i(p) - mu_i^n)^2 / (v_i + v_i)``. Its match ``mu*`` is their mean, weighted by
    ``exp(-e_n / T)``; ``e(p)`` is the energy between the two, in a metric that normal images set (see
    :func:`departure_metric`). The match depends smoothly on the image: where two exemplars are equally near, a
    runtime's last digit does not choose the map.

    The exemplars are those of the images at that very cell, less those that others stand for, kept with a byte per
    latent: what is normal at one place need not be so at another. Few images show little of what is normal at a cell,
    less so if parts turn or do not always lie alike. So all cells share :data:`.COMMON` more, of any cell of any image,
    chosen to be unlike each other.

    The weights are those of a mixture, as in the aggregate posterior of a VampPrior (Tomczak and Welling, AISTATS
    2018), conditioned on the place. Half of it are the cell's own exemplars, all alike. The other half are the shared
    ones, each by its prior there: how often it is the nearest to normal images at the cell and its neighbours. A part
    that is normal elsewhere only does not explain what is seen here.

    Each exemplar carries the *level* of its own energy when its image is left out (:func:`energy_levels`), as one more
    latent. An energy is judged by the level of its match (:func:`judge_by_level`), less so in homogeneous textures,
    where levels are alike.

    Args:
        max_exemplars: Most images to choose from. Of more, a random sample of that size is taken (reservoir sampling,
            seeded). An exemplar takes ``(d + 5) h w`` bytes: 102 KiB for 96 latents and both levels on 32x32 cells.
    """

    bank: torch.Tensor
    step: torch.Tensor
    half_norm: torch.Tensor
    common: torch.Tensor
    common_centre: torch.Tensor
    prior: torch.Tensor
    centre: torch.Tensor
    scale: torch.Tensor
    metric: torch.Tensor
    temperature: torch.Tensor
    level_power: torch.Tensor
    mean_energy: torch.Tensor

    def __init__(self, max_exemplars: int = MAX_EXEMPLARS) -> None:
        super().__init__()
        self.max_exemplars = max_exemplars
        self.register_buffer("bank", torch.zeros(0, dtype=torch.int8))
        self.register_buffer("prior", torch.zeros(0, dtype=torch.uint8))
        for name in ("step", "half_norm", "common", "common_centre", "centre", "scale", "metric"):
            self.register_buffer(name, torch.zeros(0))
        for name in ("temperature", "level_power", "mean_energy"):
            self.register_buffer(name, torch.zeros(()))
        self.start()

    def start(self, one_layout: bool = False) -> None:
        """Forget everything and get ready to collect; see :meth:`NormalReference.start`."""
        self._tolerance = LAYOUT_TOLERANCE if one_layout else TOLERANCE
        self._kept = KeptLatents()
        self._variance = torch.zeros(0)
        # Image of each exemplar of a cell; image and cell of each shared one.
        self._image = torch.zeros(0, 0, dtype=torch.int64)
        self._origin = torch.zeros(2, 0, dtype=torch.int64)

    def update(self, posterior: Posterior) -> None:
        """Keep the posteriors of a batch of normal images, each with the probability that keeps the sample fair."""
        # The level is one more latent, unknown until all others are, and not compared.
        self._variance = F.pad(posterior.variance, (0, 1), value=NOT_COMPARED)
        for mean in F.pad(posterior.mean.detach(), (0, 0, 0, 0, 0, 1)):
            self._kept.sample(mean, self.max_exemplars)

    def finish(self) -> LeftOut:
        """Build the banks; see :meth:`NormalReference.finish`."""
        require_images(len(self._kept))
        self.scale = (2 * self._variance).rsqrt().detach().clone()
        total = torch.zeros_like(self._kept[0], dtype=torch.float64)
        for mean in self._kept:
            total += mean.double()
        self.centre = (total / len(self._kept)).float()
        common = choose_common(self._kept, self.scale)
        self.common, self.common_centre = common.latent, common.centre
        self._origin = torch.stack([common.image, common.cell]).to(self.scale.device)
        self.step = self._kept.align(self.centre, self.scale)
        self.bank, self._image = choose_own(self._kept, self.step, self._tolerance)
        self.half_norm = 0.5 * torch.stack([(cell * self.step[:, None]).square().sum(0) for cell in self.bank])[:, None]
        chosen = torch.linspace(0, len(self._kept) - 1, min(CALIBRATION_IMAGES, len(self._kept))).round().long()
        self.temperature.fill_(LEAST_TEMPERATURE)
        self.level_power.zero_()
        self.metric = torch.eye(len(self.scale), device=self.scale.device)
        self.prior = self._count_nearest(chosen)
        nearest = torch.cat([self._search_own(query, some).nearest for query, _, some in self._left_out(chosen)], 1)
        if len(self._kept) == 1:
            # It has no other image to be near to at its own cell.
            nearest = self._judge_left_out(chosen)[1]
        self.temperature.copy_((RELATIVE_TEMPERATURE * nearest.mean()).clamp_min(LEAST_TEMPERATURE))
        mahalanobis, some = self._learn_metric(chosen)
        if some[0].numel() > 1 and some.any():
            energy = some.new_empty(len(self._kept), *self.grid_size)
            energy[chosen] = some
            others = torch.ones(len(self._kept), dtype=torch.bool).index_fill(0, chosen, value=False).nonzero()[:, 0]
            if len(others):
                energy[others] = self._judge_left_out(others)[0]
            self._learn_levels(energy, LEVEL_POWER * (1 - mahalanobis))
        left_out = LeftOut(*self._judge_left_out(chosen), mahalanobis)
        self.start()
        return left_out

    def _learn_metric(self, chosen: torch.Tensor) -> tuple[float, torch.Tensor]:
        """Find the metric of what images depart by, each left out; return its power, at least 0, and their energies."""
        departures = [self._search(mean, some)[0].transpose(0, 1) for _, mean, some in self._left_out(chosen)]
        covariance, square = moments(departures)
        power = metric_power(covariance, square)
        self.metric = departure_metric(covariance, power).float()
        energy = torch.cat([self._energy(departure)[0] for departure in departures])
        return max(power, 0.0), energy.unflatten(1, self.grid_size)

    def _learn_levels(self, energy: torch.Tensor, power: float) -> None:
        """Let the exemplars carry the levels of energies ``(N, h, w)`` of all images, each left out."""
        self.mean_energy.copy_(energy.mean())
        level = energy_levels(energy).flatten(1) * self.scale[-1]
        image, cell = self._origin
        self.common[-1] = level[image, cell]
        self.step[-1] = level.abs().amax() / GREATEST
        self.bank[:, -1] = (level.T.gather(1, self._image) / self.step[-1]).round().to(self.bank.dtype)
        self.level_power.fill_(power)

    def _judge_left_out(self, chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return energies of some of the images, of shape ``(n, h, w)``, and those to the nearest, each left out."""
        energies, nearest = [], []
        for _, mean, some in self._left_out(chosen):
            departure, latent, to_nearest = self._search(mean, some)
            energy = self._energy(departure)[0].T.reshape(to_nearest.shape)
            energies.append(judge_by_level(energy, latent[:, -1], self.level_power, self.mean_energy)[0])
            nearest.append(to_nearest)
        # A single image of a single cell has nothing left to be compared with.
        least = torch.cat(nearest)
        return torch.cat(energies), least.where(least < HIDDEN, 0.0)

    def _left_out(self, chosen: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Yield queries ``(h w, B, d)``, means ``(B, d, h, w)`` and numbers ``(B,)`` of some images, few at a time."""
        for some in chosen.split(CALIBRATION_BATCH):
            whitened = torch.stack([self._kept[index] for index in some.tolist()])
            mean = whitened / self.scale[:, None, None] + self.centre
            yield self._by_cell(mean - self.centre), mean, some.to(self.bank.device)

    def _count_nearest(self, chosen: torch.Tensor) -> torch.Tensor:
        """Return the shared exemplars' prior (:func:`place_prior`), from some images, each's own left out."""
        batches = self._left_out(chosen) if len(self._kept) > 1 else ()
        normal = (
            (query - self.common_centre, number)
            for _, mean, some in batches
            for query, number in zip(self._by_cell(mean).unbind(1), some, strict=True)
        )
        return place_prior(self.grid_size, self.common, self._origin[0], normal)

    @property
    def grid_size(self) -> tuple[int, ...]:
        """Height and width of the grid that the reference was collected on."""
        return tuple(self.centre.shape[1:])

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        """Load exemplars of before the metric or the levels, too, and where no cells share any, of before the prior."""
        scale = state_dict.get(prefix + "scale")
        if scale is not None:
            state_dict.setdefault(f"{prefix}metric", torch.eye(scale.numel()))
            for name in ("level_power", "mean_energy"):
                state_dict.setdefault(prefix + name, torch.zeros(()))
        common = state_dict.get(prefix + "common")
        if common is not None and not common.numel() and f"{prefix}prior" not in state_dict:
            state_dict[f"{prefix}prior"] = torch.zeros(1, 0, dtype=torch.uint8)
            state_dict[f"{prefix}common_centre"] = torch.zeros(len(common))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes that the buffers should have; see :meth:`NormalReference.shapes`."""
        latent_dim, height, width = self.centre.shape
        cells, count = height * width, self.bank.shape[-1]
        return {
            "bank": (cells, latent_dim, count),
            "step": (latent_dim,),
            "half_norm": (cells, 1, count),
            "common": (latent_dim, self.common.shape[-1]),
            "common_centre": (latent_dim,),
            "prior": (cells, self.common.shape[-1]),
            "centre": (latent_dim, height, width),
            "scale": (latent_dim,),
            "metric": (latent_dim, latent_dim),
            "temperature": (),
            "level_power": (),
            "mean_energy": (),
        }

    def match(self, posterior: Posterior) -> Match:
        """Mix the exemplars of every cell; see :meth:`NormalReference.match`."""
        compared = posterior.mean.shape[1]
        # Exemplars of before have no level.
        mean = F.pad(posterior.mean, (0, 0, 0, 0, 0, len(self.centre) - compared))
        departure, latent, nearest = self._search(mean)
        plain, gradient = self._energy(departure)
        plain = plain.T.reshape(nearest.shape)
        energy, factor = judge_by_level(plain, latent[:, -1], self.level_power, self.mean_energy)
        gradient = gradient.permute(1, 2, 0).reshape(latent.shape) * self.scale[:, None, None] * factor[:, None]
        return Match(energy, gradient[:, :compared], latent[:, :compared], nearest)

    def _energy(self, departure: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the energy of departures ``(..., d)``, of shape ``(...)``, and half its gradient, ``(..., d)``."""
        gradient = departure @ self.metric.to(departure.dtype)
        return (departure * gradient).sum(-1).clamp_min(0), gradient

    def _search(self, mean: torch.Tensor, leave_out: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
        """Attend to the exemplars.

        Args:
            mean: Posterior means, of shape ``(B, d, h, w)``.
            leave_out: Number of the image whose exemplars are hidden from each, of shape ``(B,)``; where there is no
                other, those of the same cell are hidden.

        Returns:
            Departure ``(h w, B, d)``, whitened, match ``(B, d, h, w)`` and energy to the nearest ``(B, h, w)``.
        """
        # Relative to the centre, where latents are small and differences lose no digits.
        query = self._by_cell(mean - self.centre)
        departure, log_weight, nearest = self._search_own(query, leave_out)
        if self.common.shape[1]:
            # From the query, as bringing latents to cells takes a copy.
            common = self._search_common(query + self._by_cell(self.centre[None]), leave_out)
            share = (common.log_weight - log_weight + math.log(self.bank.shape[2])).sigmoid()[..., None]
            departure = departure + share * (common.departure - departure)
            nearest = torch.minimum(nearest, common.nearest)
        # Matches are held fixed in the gradient.
        matched = (query - departure).detach()
        latent = matched.permute(1, 2, 0).reshape(mean.shape) / self.scale[:, None, None] + self.centre
        return query - matched, latent, nearest.T.reshape(-1, *mean.shape[2:])

    def _by_cell(self, latent: torch.Tensor) -> torch.Tensor:
        """Whiten latents ``(B, d, h, w)`` and bring them to the shape ``(h w, B, d)``."""
        return (latent * self.scale[:, None, None]).flatten(2).permute(2, 0, 1).contiguous()

    def _search_own(self, query: torch.Tensor, leave_out: torch.Tensor | None) -> Found:
        """Search the exemplars of each cell for queries ``(h w, B, d)`` relative to its centre."""
        cells, batch, latent_dim = query.shape
        exemplars = self.bank.shape[2]
        # The step goes into the query and the match, which are shorter than the bank. An export multiplies the bank by
        # it: OpenVINO keeps bytes only of what is scaled next, and makes floats of the rest.
        exporting = torch.compiler.is_compiling()
        step = torch.ones_like(self.step) if exporting else self.step
        found = []
        for some in parts(cells, exemplars * (latent_dim + batch), query.device):
            bank = self.bank[some].to(query.dtype)
            bank = bank * self.step[:, None] if exporting else bank
            hidden = None if leave_out is None else leave_out[:, None] == self._image[some, None]
            found.append(attend(query[some], bank, self.half_norm[some], step, self.temperature, hidden))
        return joined(found)

    def _search_common(self, query: torch.Tensor, leave_out: torch.Tensor | None) -> Found:
        """Search the exemplars that all cells share for queries ``(h w, B, d)``."""
        cells, batch, latent_dim = query.shape
        query = query - self.common_centre
        bank, half_norm = self.common[None], 0.5 * self.common.square().sum(0)
        hidden = None
        if leave_out is not None:
            image, cell = self._origin
            hidden = (leave_out[:, None] == image).expand(cells, -1, -1)
            if len(self._kept) == 1:
                hidden = (torch.arange(cells, device=cell.device)[:, None, None] == cell).expand(-1, batch, -1)
        found, ones = [], torch.ones_like(self.scale)
        for some in parts(cells, batch * bank.shape[2], query.device):
            # One product for all cells of a part, as the exemplars are the same.
            rows = query[some].reshape(1, -1, latent_dim)
            unseen = None if hidden is None else hidden[some].reshape(1, rows.shape[1], -1)
            prior = -PRIOR_STEP * self.prior[some, None].to(rows.dtype)
            of_part = attend(rows, bank, half_norm, ones, self.temperature, unseen, prior)
            found.append(Found(*(part.reshape(-1, batch, *part.shape[2:]) for part in of_part)))
        return joined(found)
