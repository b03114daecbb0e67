"""How strongly each term of the loss pulls at the encoder of a trained model: which lambda could matter at all.

    python docs/studies/gradient_norms.py --config configs/dsprites/ad_factor_vae.yaml

For each term it prints its value and, over batches, two norms of its gradient by the encoder's weights: ``rms``, the
root of the mean square, which is about what Adam divides its steps by; and ``mean``, that of the mean gradient, which
is what is left of it over many steps. The overlap of attention maps is taken with lambda 1, for every choice of pairs
and layer, with the gradient weights of the maps as functions of the encoder's weights (``second order``) and as
constants, and for all pairs of maps of both signs, normalised. Then it prints which maps are empty.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm import tqdm

from anomalib_vae_attention.common.argument_checks import take_overrides
from anomalib_vae_attention.dsprites.attention_loss import PAIRS, AttentionDisentanglement
from anomalib_vae_attention.dsprites.callbacks import load_weights
from anomalib_vae_attention.dsprites.discriminator import permute
from anomalib_vae_attention.dsprites.lightning_cli import make_cli
from anomalib_vae_attention.dsprites.models import BetaVAE, FactorVAE
from anomalib_vae_attention.dsprites.networks import LAYERS
from anomalib_vae_attention.image_vae.elbo import kl_by_latent


def losses(model: BetaVAE, images: torch.Tensor, seed: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Compute the terms of the loss one after the other.

    Args:
        model: The model.
        images: Shape ``(B, 1, 64, 64)``.
        seed: Seed of the random pairs, the same for all layers and orders.

    Yields:
        Name and value, a scalar that depends on the encoder's weights; the overlaps share one graph, to be retained.
    """
    attention, model.attention = model.attention, None
    terms = model.terms(images)
    model.attention = attention
    yield "ELBO", terms.loss
    if isinstance(model, FactorVAE):
        latents = terms.latents.detach()
        ratio = model.discriminator.estimate(latents, permute(latents, model.generator))
        stand_in = (terms.latents * ratio.gradient).sum()
        yield f"{model.gamma:g} TC", model.gamma * (stand_in - stand_in.detach() + ratio.total_correlation)
    choices: dict[str, dict[str, Any]] = {
        f"{pairs}, second order" if second_order else pairs: {"pairs": pairs, "second_order": second_order}
        for pairs, second_order in product(PAIRS, (True, False))
    }
    apart = {"pairs": "all", "both_signs": True, "normalise": True}
    choices["all, second order, both signs, normalised"] = apart
    choices["all, both signs, normalised"] = {**apart, "second_order": False}
    encoded = model.encoder.encode(images)
    for layer, (name, choice) in product(LAYERS, choices.items()):
        loss = AttentionDisentanglement(layer=layer, **choice)  # type: ignore[arg-type]
        generator = torch.Generator().manual_seed(seed)
        yield f"overlap, {layer}, {name}", loss(model.encoder, encoded, terms.noise, generator)


@torch.no_grad()
def empty_maps(model: BetaVAE, images: torch.Tensor) -> pd.DataFrame:
    """Count the attention maps (Liu et al., eq. 1 and 2) that are 0 everywhere: by eq. 5 they overlap with no other.

    The latents are sampled with PyTorch's own random numbers.

    Args:
        model: The model.
        images: Shape ``(B, 1, 64, 64)``.

    Returns:
        A row per latent, the most active first: ``KL``, its divergence from the prior in nats, averaged over the
        images, and for each layer the share of the images, from 0 to 1, whose map of it is empty.
    """
    encoded = model.encoder.encode(images)
    latents = list(range(encoded.mean.shape[1]))
    table = pd.DataFrame({"KL": kl_by_latent(encoded.mean, encoded.log_variance).mean(0).numpy()})
    noise = torch.randn_like(encoded.mean)
    for layer in LAYERS:
        loss = AttentionDisentanglement(layer=layer)  # type: ignore[arg-type]
        maps = loss.maps(model.encoder, encoded, noise, latents)
        table[layer] = (maps.amax((-2, -1)) == 0).float().mean(0).numpy()
    return table.rename_axis("latent").sort_values("KL", ascending=False)


def measure(model: BetaVAE, batches: Sequence[torch.Tensor]) -> pd.DataFrame:
    """Measure the gradients of each term of the loss by the encoder's weights.

    Args:
        model: The model.
        batches: Images ``(B, 1, 64, 64)``.

    Returns:
        A row per term: ``value``, its mean over the batches; ``rms`` and ``mean``, norms of its gradient.
    """
    weights = list(model.encoder.parameters())
    values: dict[str, float] = {}
    squares: dict[str, float] = {}
    sums: dict[str, torch.Tensor] = {}
    for seed, images in enumerate(tqdm(batches, disable=None)):
        for name, loss in losses(model, images, seed):
            parts: Sequence[torch.Tensor | None] = [None] * len(weights)
            # An overlap without pairs depends on nothing.
            if loss.requires_grad:
                parts = torch.autograd.grad(loss, weights, allow_unused=True, retain_graph=True)
            gradient = torch.cat([
                (torch.zeros_like(weight) if part is None else part).flatten()
                for weight, part in zip(weights, parts, strict=True)
            ])
            values[name] = values.get(name, 0.0) + float(loss.detach()) / len(batches)
            squares[name] = squares.get(name, 0.0) + float(gradient.square().sum()) / len(batches)
            sums[name] = sums[name] + gradient if name in sums else gradient
    rows = {
        name: {"value": values[name], "rms": squares[name] ** 0.5, "mean": float(sums[name].norm()) / len(batches)}
        for name in values
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def main(arguments: list[str] | None = None) -> int:
    """Measure and print.

    Args:
        arguments: Those of the command line by default.

    Returns:
        Exit code: 1 if there is no such checkpoint.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="config of the run")
    parser.add_argument("--ckpt_path", type=Path, help="checkpoint; the run's last by default")
    parser.add_argument("--batches", type=int, default=50, help="batches of the data to measure on (50)")
    parser.add_argument("overrides", nargs="*", help="KEY=VALUE, as --KEY VALUE of fit, such as the run's folder")
    overrides, rest = take_overrides(sys.argv[1:] if arguments is None else arguments)
    chosen = parser.parse_args(rest)
    changes = [f"--{part}" for part in (*overrides, *chosen.overrides)]
    cli = make_cli(["--config", str(chosen.config), *changes], run=False)
    try:
        load_weights(cli.model, chosen.ckpt_path or Path(cli.trainer.default_root_dir) / "checkpoints" / "last.ckpt")
    except (OSError, ValueError) as error:
        print(f"gradient_norms: {error}", file=sys.stderr)
        return 1
    torch.manual_seed(0)
    cli.datamodule.setup("fit")
    loader = iter(cli.datamodule.train_dataloader())
    batches = [next(loader).image for _ in range(chosen.batches)]
    print(measure(cli.model.train(), batches).to_string(float_format="{:.3g}".format))
    print("\nShare of attention maps that are 0 everywhere:")
    print(empty_maps(cli.model, torch.cat(batches[:8])).to_string(float_format="{:.2f}".format))
    return 0


if __name__ == "__main__":
    sys.exit(main())
