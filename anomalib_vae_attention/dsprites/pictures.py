"""Pictures of a run: what the latents mean, by traversals and attention maps."""

from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from torch.nn import functional as F  # noqa: N812
from torchvision.utils import make_grid

from anomalib_vae_attention.common.argument_checks import require_choice

from .attention_loss import AttentionDisentanglement
from .dataset import DSprites
from .drawing import SIZE
from .models import BetaVAE
from .networks import LAYERS

STEPS = 9
REACH = 2.0
"""How far a traversal goes to each side, in standard deviations of the prior."""


@torch.no_grad()
def latent_traversals(model: BetaVAE, image: torch.Tensor) -> torch.Tensor:
    """Decode the latents of an image ``(1, 64, 64)``, each from -2 to 2 while the others stay.

    The result is probabilities of white, shape ``(d, 9, 64, 64)``.
    """
    mean = model(image[None])
    latents = mean.expand(model.latent_dim, STEPS, -1).clone()
    for latent in range(model.latent_dim):
        latents[latent, :, latent] = torch.linspace(-REACH, REACH, STEPS)
    return model.decoder(latents.flatten(0, 1)).sigmoid().view(model.latent_dim, STEPS, SIZE, SIZE)


@torch.no_grad()
def traversal_attention(model: BetaVAE, traversals: torch.Tensor, layer: str) -> torch.Tensor:
    """Compute where each latent looks along its own traversal, ``(d, 9, 64, 64)`` (Liu et al., eq. 1 and 2).

    The maps, of the same shape, are those of the posterior mean at a layer; each row's maximum is 1.
    """
    attention = AttentionDisentanglement(layer=layer, score="mean")  # type: ignore[arg-type]
    rows = []
    for latent, images in enumerate(traversals):
        encoded = model.encoder.encode(images[:, None])
        maps = attention.maps(model.encoder, encoded, torch.zeros_like(encoded.mean), [latent])
        maps = F.interpolate(maps, (SIZE, SIZE), mode="bilinear", align_corners=False)[:, 0]
        rows.append(maps / maps.max().clamp_min(torch.finfo(maps.dtype).tiny))
    return torch.stack(rows)


def draw_pictures(model: BetaVAE, data: DSprites, folder: Path, layer: str) -> list[Path]:
    """Write latent traversals and per-latent attention maps, starting from an image of each shape, as PNG files.

    The folder is made if it is missing; the layer of the maps is ``conv1`` to ``conv4``.

    Raises:
        ValueError: If there is no such layer.
        OSError: If a file cannot be written.
    """
    require_choice("--layer", layer, LAYERS)
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    colours = mpl.colormaps["inferno"]
    for number, shape in enumerate(("square", "ellipse", "heart")):
        image = data.images_of(torch.tensor([[number, 4, 5, 16, 16]]))[0]
        traversals = latent_traversals(model, image)
        maps = traversal_attention(model, traversals, layer).numpy()
        grey = traversals[:, :, None].expand(-1, -1, 3, -1, -1)
        heat = torch.from_numpy(colours(maps)[..., :3]).movedim(-1, 2)
        for name, images in ((f"traversal_{shape}.png", grey), (f"attention_{shape}.png", 0.4 * grey + 0.6 * heat)):
            files.append(folder / name)
            label_rows(images).savefig(files[-1])
    return files


def label_rows(images: torch.Tensor) -> Figure:
    """Lay images ``(d, 9, 3, 64, 64)`` of a traversal, pixels from 0 to 1, out in rows, with latents and values."""
    picture = make_grid(images.flatten(0, 1), STEPS, pad_value=0.5).clamp(0, 1).permute(1, 2, 0).numpy()
    height, width = picture.shape[:2]
    left, above, edge, rows = 60, 50, 8, len(images)
    whole = (left + width + edge, edge + height + above)
    figure = Figure(figsize=(whole[0] / 100, whole[1] / 100), dpi=100)
    axes = figure.add_axes((left / whole[0], above / whole[1], width / whole[0], height / whole[1]))
    axes.imshow(picture, extent=(0, STEPS, rows, 0), aspect="auto", interpolation="none")
    values = np.linspace(-REACH, REACH, STEPS)
    axes.set_xticks(np.arange(STEPS) + 0.5, [f"{value:g}" for value in values])
    axes.set_yticks(np.arange(rows) + 0.5, [str(latent) for latent in range(rows)])
    axes.set(xlabel="value of the latent (standard deviations of the prior)", ylabel="latent")
    axes.tick_params(length=0)
    return figure
