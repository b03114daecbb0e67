"""Steps a second of FactorVAE and AD-FactorVAE beside a plain PyTorch step, and what each change brought.

    python docs/studies/dsprites_speed.py --threads 2

The plain step is FactorVAE the usual way: contiguous fp32, a second batch to permute, autograd for both losses of the
discriminator, PyTorch's default Adam. Each further row adds one change to the row before; the last ones are this
package's models, then these and the plain step in bfloat16 autocast, which is slow on a processor that has no
instructions for it. All take turns in one run, a few steps each, so that whatever else the machine does strikes all
alike.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from anomalib_vae_attention.dsprites.attention_loss import AttentionDisentanglement
from anomalib_vae_attention.dsprites.discriminator import Discriminator, permute
from anomalib_vae_attention.dsprites.models import FactorVAE
from anomalib_vae_attention.dsprites.networks import CHANNELS, HIDDEN, SMALLEST

LATENTS, GAMMA = 10, 40.0


class PlainStep:
    """A step of FactorVAE made of PyTorch's own layers and losses.

    Args:
        second_batch: Permute the latents of a second batch, as in Kim and Mnih's algorithm 2, instead of the same one.
        one_pass: Take both losses of the discriminator from one pass in closed form, instead of autograd.
        fused: Use the fused Adam.
        channels_last: Keep the convolutions' weights and activations channels last.
    """

    def __init__(
        self,
        *,
        second_batch: bool = True,
        one_pass: bool = False,
        fused: bool = False,
        channels_last: bool = False,
    ) -> None:
        self.second_batch, self.one_pass = second_batch, one_pass
        encoder: list[nn.Module] = []
        for before, after in pairwise(CHANNELS):
            encoder += [nn.Conv2d(before, after, 4, 2, 1), nn.ReLU()]
        encoder += [nn.Flatten(), nn.Linear(CHANNELS[-1] * SMALLEST**2, HIDDEN), nn.ReLU()]
        self.encoder = nn.Sequential(*encoder, nn.Linear(HIDDEN, 2 * LATENTS))
        decoder: list[nn.Module] = [nn.Linear(LATENTS, HIDDEN), nn.ReLU()]
        decoder += [nn.Linear(HIDDEN, CHANNELS[-1] * SMALLEST**2), nn.ReLU()]
        decoder += [nn.Unflatten(1, (CHANNELS[-1], SMALLEST, SMALLEST))]
        for before, after in pairwise(CHANNELS[::-1]):
            decoder += [nn.ConvTranspose2d(before, after, 4, 2, 1), nn.ReLU()]
        self.decoder = nn.Sequential(*decoder[:-1])
        if channels_last:
            self.encoder.to(memory_format=torch.channels_last)
            self.decoder.to(memory_format=torch.channels_last)
        self.discriminator = Discriminator(LATENTS)
        vae = [*self.encoder.parameters(), *self.decoder.parameters()]
        # None leaves the choice to PyTorch.
        choice = True if fused else None
        self.vae_optimizer = torch.optim.Adam(vae, 1e-4, fused=choice)
        self.discriminator_optimizer = torch.optim.Adam(
            self.discriminator.parameters(), 1e-4, betas=(0.5, 0.9), fused=choice
        )

    def _sample(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Encode and sample; return latents, means and log variances."""
        mean, log_variance = self.encoder(images).chunk(2, 1)
        return mean + (0.5 * log_variance).exp() * torch.randn_like(mean), mean, log_variance

    def __call__(self, images: torch.Tensor, more: torch.Tensor) -> None:
        """Do one step on a batch, with a second batch to permute."""
        latents, mean, log_variance = self._sample(images)
        loss = F.binary_cross_entropy_with_logits(self.decoder(latents), images, reduction="sum") / len(images)
        loss += 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum() / len(images)
        others = latents.detach()
        if self.second_batch:
            with torch.no_grad():
                others = self._sample(more)[0]
        permuted = permute(others)
        self.vae_optimizer.zero_grad()
        if self.one_pass:
            ratio = self.discriminator.estimate(latents.detach(), permuted)
            (loss + GAMMA * (latents * ratio.gradient).sum()).backward()
        else:
            logits = self.discriminator(latents)
            loss += GAMMA * (logits[:, 0] - logits[:, 1]).mean()
            loss.backward(retain_graph=True)
            self.discriminator_optimizer.zero_grad()
            own, other = torch.zeros(len(images)).long(), torch.ones(len(images)).long()
            # The inputs named: otherwise the backward pass would run on into the VAE.
            (0.5 * (F.cross_entropy(logits, own) + F.cross_entropy(self.discriminator(permuted), other))).backward(
                inputs=list(self.discriminator.parameters())
            )
        self.vae_optimizer.step()
        self.discriminator_optimizer.step()


Step = Callable[[torch.Tensor, torch.Tensor], None]


def _ours(attention: AttentionDisentanglement | None) -> Step:
    """Make a step of this package's model."""
    model = FactorVAE(LATENTS, GAMMA, attention=attention)
    optimizers = model.configure_optimizers()

    def step(images: torch.Tensor, more: torch.Tensor) -> None:
        del more
        model.optimise(images, optimizers)

    return step


def _in_bf16(step: Step) -> Step:
    """Take a step as Lightning's precision ``bf16-mixed`` would."""

    def mixed(images: torch.Tensor, more: torch.Tensor) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            step(images, more)

    return mixed


STEPS: dict[str, Callable[[], Step]] = {
    "plain PyTorch": PlainStep,
    "+ permute the same batch": lambda: PlainStep(second_batch=False),
    "+ one discriminator pass": lambda: PlainStep(second_batch=False, one_pass=True),
    "+ fused Adam": lambda: PlainStep(second_batch=False, one_pass=True, fused=True),
    "+ channels last": lambda: PlainStep(second_batch=False, one_pass=True, fused=True, channels_last=True),
    "FactorVAE": lambda: _ours(None),
    "AD-FactorVAE, random": lambda: _ours(AttentionDisentanglement()),
    "AD-FactorVAE, all": lambda: _ours(AttentionDisentanglement(pairs="all")),
    "plain PyTorch, bf16": lambda: _in_bf16(PlainStep()),
    "FactorVAE, bf16": lambda: _in_bf16(_ours(None)),
    "AD-FactorVAE, random, bf16": lambda: _in_bf16(_ours(AttentionDisentanglement())),
    "AD-FactorVAE, all, bf16": lambda: _in_bf16(_ours(AttentionDisentanglement(pairs="all"))),
    "AD-FactorVAE, apart, bf16": lambda: _in_bf16(
        _ours(AttentionDisentanglement(40.0, "all", "conv3", normalise=True, both_signs=True))
    ),
}


def measure(batch_size: int, rounds: int, steps: int) -> dict[str, list[float]]:
    """Time all kinds of step in turns.

    Args:
        batch_size: Images in a batch.
        rounds: Turns of each.
        steps: Steps in a turn.

    Returns:
        Seconds a step, one value a turn, by kind.
    """
    images, more = (torch.rand(2, batch_size, 1, 64, 64) > 0.95).float()
    kinds = {name: make() for name, make in STEPS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    for turn in range(rounds + 1):
        for name, step in kinds.items():
            start = time.perf_counter()
            for _ in range(steps):
                step(images, more)
            # The first turn allocates and chooses kernels.
            if turn:
                seconds[name].append((time.perf_counter() - start) / steps)
    return seconds


def profile(name: str, batch_size: int, steps: int) -> str:
    """Tabulate which operations a kind of step spends its time in.

    Args:
        name: One of :data:`STEPS`.
        batch_size: Images in a batch.
        steps: Steps that are profiled, after one that is not.

    Returns:
        The profiler's table, the operation that takes most first.
    """
    images, more = (torch.rand(2, batch_size, 1, 64, 64) > 0.95).float()
    step = STEPS[name]()
    step(images, more)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as recorded:
        for _ in range(steps):
            step(images, more)
    return recorded.key_averages().table(sort_by="self_cpu_time_total", row_limit=20, max_name_column_width=40)


def main() -> None:
    """Measure and print medians over the turns, and each kind's cost beside plain PyTorch in the same turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=3, help="steps in a turn")
    parser.add_argument("--output", type=Path, help="JSON file of all turns")
    parser.add_argument("--profile", choices=list(STEPS), help="show where the time of one kind of step goes, instead")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    if arguments.profile:
        print(profile(arguments.profile, arguments.batch_size, arguments.steps))
        return
    seconds = measure(arguments.batch_size, arguments.rounds, arguments.steps)
    plain = seconds["plain PyTorch"]
    print(f"{'':<28} {'ms a step':>10} {'steps/s':>8} {'faster than plain':>18}")
    for name, values in seconds.items():
        median = statistics.median(values)
        # Turn by turn, so that a slow minute of the machine is on both sides of the ratio.
        ratio = statistics.median(first / second for first, second in zip(plain, values, strict=True))
        print(f"{name:<28} {1000 * median:>10.1f} {1 / median:>8.2f} {ratio:>18.2f}")
    if arguments.output:
        arguments.output.write_text(json.dumps(seconds, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
