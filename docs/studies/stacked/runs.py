"""Several training runs in one set of tensors, advanced together, on a GPU by replaying a CUDA graph of whole steps."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812

from anomalib_vae_attention.dsprites.models import BetaVAE, FactorVAE
from anomalib_vae_attention.image_vae.elbo import kl_by_latent

from .draws import Draws, draw, empty_draws, unpack
from .layout import arrange, restore
from .losses import choose_pairs, density_ratio, overlap
from .networks import FULL_PRECISION, decode, encode
from .optimizers import apply, make_adam
from .structure import fit_together, settings, structure

STEPS = 20
"""Optimiser steps that :meth:`StackedRuns.advance` does at once."""


class StackedRuns:
    """Runs of one structure that are trained side by side.

    A run draws from a generator of its own: what it does is independent of the runs beside it, and runs of one seed
    see the same images, noise and permutations. The first call of :meth:`advance` does its steps one by one, which
    warms up what a CUDA graph needs; from the second on it replays one.

    Args:
        models: The models, with the weights to start from; runs of equal rates best side by side.
        seeds: Seed of each run's random numbers.
        bits: All images at one bit per pixel, shape ``(N, 512)``, on the device to train on.
        batch_size: Images in a batch, at least 2.
        working: Data type of the VAE's large products; weights, latents, losses and the discriminator stay in single
            precision.

    Raises:
        ValueError: If the models differ in structure, or their number is not that of the seeds.
    """

    def __init__(
        self,
        models: Sequence[BetaVAE],
        seeds: Sequence[int],
        bits: torch.Tensor,
        batch_size: int = 64,
        working: torch.dtype = torch.bfloat16,
    ) -> None:
        if len(models) != len(seeds) or not fit_together(models):
            msg = f"{len(models)} models of the structures {set(map(structure, models))} and {len(seeds)} seeds"
            raise ValueError(msg)
        device = bits.device
        named = [dict(model.named_parameters()) for model in models]
        stacked = {
            name: torch.stack([weights[name].detach().contiguous() for weights in named]).to(device)
            for name in named[0]
        }
        is_own = {name: name.startswith("discriminator.") for name in stacked}
        self.shapes = {name: value.shape[1:] for name, value in stacked.items()}
        self.vae = {name: arrange(name, value) for name, value in stacked.items() if not is_own[name]}
        self.leaves = {
            name: (value if name.startswith(FULL_PRECISION) else value.to(working)).detach().requires_grad_()
            for name, value in self.vae.items()
        }
        """The VAE's weights in the data type that they are multiplied in, for autograd."""
        self.discriminator = {
            name.removeprefix("discriminator."): value for name, value in stacked.items() if is_own[name]
        }
        self.bits, self.working = bits, working
        attentions = [model.attention for model in models]
        self.attention = next((attention for attention in attentions if attention and attention.weight > 0), None)

        def scalars(values: Sequence[float]) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.float32, device=device)

        self.settings = [f"batches of {batch_size}", *map(settings, models)]
        self.beta = scalars([model.beta for model in models])
        self.gamma = scalars([model.gamma if isinstance(model, FactorVAE) else 0.0 for model in models])
        self.weight = scalars([attention.weight if attention else 0.0 for attention in attentions])
        # Without warm-up, the first step has the full weight.
        self.warmup = scalars([max(1, attention.warmup_steps) if attention else 1 for attention in attentions])
        self.counter = torch.zeros((), device=device)
        self.optimizers = [make_adam(self.vae, [model.learning_rate for model in models], (0.9, 0.999))]
        if self.discriminator:
            rates = [model.discriminator_learning_rate for model in models if isinstance(model, FactorVAE)]
            self.optimizers.append(make_adam(self.discriminator, rates, (0.5, 0.9)))
        self.generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
        self.draws = empty_draws((STEPS, len(models), batch_size, models[0].latent_dim), device)
        self.steps = 0
        self.terms: dict[str, torch.Tensor] = {}
        """Terms of the loss of the last step, by name, shape ``(R,)``."""
        self._is_warm = False
        self._graph: torch.cuda.CUDAGraph | None = None
        self.stream = torch.cuda.Stream(device) if bits.is_cuda else None
        self.synchronize()

    def gradients(self, draws: Draws) -> list[Mapping[str, torch.Tensor]]:
        """Compute the gradients of one step, and keep the terms of the loss.

        Args:
            draws: The step's random numbers.

        Returns:
            Gradients by the weights of VAE and discriminator, the VAE's in the layout and data type of its leaves.
        """
        weights = self.leaves
        stale = [name for name, leaf in weights.items() if leaf.data_ptr() != self.vae[name].data_ptr()]
        if stale:
            torch._foreach_copy_([weights[name].detach() for name in stale], [self.vae[name] for name in stale])
        images = unpack(self.bits[draws.indices])
        encoded = encode(images.to(self.working), weights)
        latents = encoded.mean + (0.5 * encoded.log_variance).exp() * draws.noise
        logits = decode(latents, weights)
        error = F.binary_cross_entropy_with_logits(logits, images, reduction="none").sum((2, 3)).mean(1)
        divergence = kl_by_latent(encoded.mean, encoded.log_variance).mean(1)
        loss = error + self.beta * divergence.sum(1)
        self.terms = {"reconstruction": error.detach(), "kl": divergence.detach().sum(1)}
        if self.attention is not None:
            pairs = choose_pairs(self.attention, divergence.detach(), draws.uniform)
            shared = overlap(self.attention, weights, encoded, draws.noise, pairs)
            loss = loss + self.weight * ((self.counter + 1) / self.warmup).clamp_max(1) * shared
            self.terms["attention"] = shared.detach()
        own: list[Mapping[str, torch.Tensor]] = []
        if self.discriminator:
            fixed = latents.detach()
            ratio, gradients = density_ratio(self.discriminator, fixed, fixed.gather(1, draws.order))
            # Its value is not the total correlation's, but its gradient is.
            loss = loss + self.gamma * (latents * ratio.gradient).sum((1, 2))
            self.terms.update(total_correlation=ratio.total_correlation, discriminator=ratio.loss)
            own.append(gradients)
        made = torch.autograd.grad(loss.sum(), list(weights.values()))
        return [dict(zip(weights, made, strict=True)), *own]

    def step(self, draws: Draws) -> None:
        """Do one optimiser step of every network."""
        computed = self.gradients(draws)
        for optimizer, gradients, parameters in zip(
            self.optimizers, computed, (self.vae, self.discriminator), strict=False
        ):
            apply(optimizer, parameters, gradients)
        self.counter += 1

    def synchronize(self) -> None:
        """Wait for all work on the device: what one stream wrote, another may then read."""
        if self.stream is not None:
            torch.cuda.synchronize(self.bits.device)

    def on_stream(self) -> AbstractContextManager[object]:
        """Work on the runs' own CUDA stream, where there is one."""
        return nullcontext() if self.stream is None else torch.cuda.stream(self.stream)

    def advance(self) -> None:
        """Do the next :data:`STEPS` steps; on a GPU this returns before they are done."""
        with self.on_stream():
            draw(self.draws, self.generators, len(self.bits))
            if self.stream is None or not self._is_warm:
                self._do_steps()
                self._is_warm = True
            else:
                if self._graph is None:
                    self._graph = torch.cuda.CUDAGraph()
                    with torch.cuda.graph(self._graph, stream=self.stream):
                        self._do_steps()
                self._graph.replay()
        self.steps += STEPS

    def _do_steps(self) -> None:
        for step in range(STEPS):
            self.step(Draws(*(values[step] for values in self.draws)))

    def state_dict(self) -> dict[str, Any]:
        """Return all that the next step depends on."""
        self.synchronize()
        return {
            "settings": self.settings,
            "steps": self.steps,
            "vae": self.vae,
            "discriminator": self.discriminator,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "generators": [generator.get_state() for generator in self.generators],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state_dict` was called; before the first :meth:`advance` only.

        Raises:
            ValueError: If the runs had other settings.
        """
        for before, now in zip(state["settings"], self.settings, strict=True):
            if before != now:
                msg = f"the checkpoint is of runs with {before}, not {now}: name another output folder"
                raise ValueError(msg)
        self.steps = state["steps"]
        self.counter.fill_(self.steps)
        for part, parameters in (("vae", self.vae), ("discriminator", self.discriminator)):
            for name, value in parameters.items():
                value.copy_(state[part][name])
        for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        for generator, kept in zip(self.generators, state["generators"], strict=True):
            generator.set_state(kept.cpu())
        self.synchronize()

    def weights_of(self, run: int) -> dict[str, torch.Tensor]:
        """Return the weights of a run's VAE, named as in its Lightning module, on the processor."""
        self.synchronize()
        rows = {name: value[run : run + 1].cpu() for name, value in self.vae.items()}
        return {name: restore(name, value, self.shapes[name])[0] for name, value in rows.items()}
