"""What a trained model says of an image, for pictures: the same fields whatever the VAE."""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from anomalib.data import InferenceBatch

from anomalib_vae_attention.attention import energy_attention
from anomalib_vae_attention.common.folders import verdict_of
from anomalib_vae_attention.image_vae.model import ImageVaeModel
from anomalib_vae_attention.lightning_model import VaeAttention
from anomalib_vae_attention.scoring import as_floats, call_defective, full_precision, only_scorable
from anomalib_vae_attention.torch_model import Explanation, VaeAttentionModel


class Latents(NamedTuple):
    """What the latents of an image look at.

    Attributes:
        number: Which latents, those furthest from normal first, ``P`` of them.
        distance: How far each is from normal, in standard deviations, of shape ``(P,)``, not negative.
        maps: Map of each, ``M^i``, of shape ``(P, H, W)``.
        aggregate: Map of all latents together, of shape ``(H, W)``.
    """

    number: list[int]
    distance: torch.Tensor
    maps: torch.Tensor
    aggregate: torch.Tensor


class Counterfactual(NamedTuple):
    """What the model sees, beside what it would see if the part were a normal one.

    An image VAE shows the image and its reconstruction. The VAE of features shows its layer at the grid's resolution,
    in the same false colours: the three directions in which the normal one varies most.

    Attributes:
        seen: Shape ``(3, h, w)``, from 0 to 1.
        normal: Of the same shape.
        in_false_colours: Whether the two show features, not the image.
    """

    seen: torch.Tensor
    normal: torch.Tensor
    in_false_colours: bool


class Picture(NamedTuple):
    """What there is to show of an image.

    Attributes:
        image: The image as the model sees it, of shape ``(3, H, W)``, from 0 to 1.
        counterfactual: What a normal part would have shown.
        latents: What its latents look at.
        anomaly_map: Shape ``(H, W)``, from 0 to 1. Map, score and verdict are those of ``vae-attention predict``.
        score: Image score, from 0 to 1.
        verdict: Of :func:`.verdict_of`; empty where the model has no thresholds.
    """

    image: torch.Tensor
    counterfactual: Counterfactual
    latents: Latents
    anomaly_map: torch.Tensor
    score: float
    verdict: str


def parse_latents(text: str, count: int) -> tuple[list[int], int]:
    """Understand ``top8``, ``all`` or ``3,7`` of a model that has ``count`` latents.

    Returns:
        The latents to choose from, and how many of those furthest from normal to show.

    Raises:
        ValueError: If it is none of these, or a latent is out of range.
    """
    everything = list(range(count))
    if text == "all":
        return everything, count
    if text.startswith("top") and text[3:].isdecimal() and int(text[3:]) > 0:
        return everything, min(int(text[3:]), count)
    try:
        chosen = list(dict.fromkeys(int(number) for number in text.split(",")))
    except ValueError as error:
        msg = f"--latents {text}: write top8, all, or numbers such as 3,7."
        raise ValueError(msg) from error
    wrong = [number for number in chosen if number not in everything]
    if wrong:
        msg = f"--latents {text}: there is no latent {wrong}; the model's latents are 0 to {count - 1}."
        raise ValueError(msg)
    return chosen, len(chosen)


def count_latents(module: VaeAttention) -> int:
    """Return the number of a model's latents, of a cell where it has a grid of them."""
    model = module.model
    return model.latent_dim if isinstance(model, ImageVaeModel) else model.vae.latent_dim


@torch.no_grad()
def explain_image(module: VaeAttention, image: torch.Tensor, latents: str) -> Picture:
    """Explain an image of shape ``(1, 3, H, W)``, from 0 to 1 and of any size, by a model in evaluation mode.

    Which latents are shown, and what is an error, is said by :func:`parse_latents`.
    """
    chosen, most = parse_latents(latents, count_latents(module))
    model, (processed, out, explanation) = module.model, _judge(module, image)
    shown = torch.nn.functional.interpolate(image, processed.shape[-2:], mode="bilinear", antialias=True)
    if isinstance(model, ImageVaeModel):
        found = _image_latents(model, processed, chosen, most)
    else:
        found = _feature_latents(model, cast("Explanation", explanation), chosen, most)
    counterfactual, label = _imagine_normal(model, processed, explanation), out.pred_label
    judged = label is not None and label.dtype == torch.bool
    verdict = verdict_of(label) if judged else ""
    return Picture(shown[0].clamp(0, 1), counterfactual, found, out.anomaly_map[0, 0], float(out.pred_score), verdict)


@torch.no_grad()
def judge_and_imagine(module: VaeAttention, image: torch.Tensor) -> tuple[InferenceBatch, Counterfactual]:
    """Judge an image ``(1, 3, H, W)``, from 0 to 1, as a model does, and show what a normal part would have shown."""
    processed, out, explanation = _judge(module, image.to(module.device))
    return out, _imagine_normal(module.model, processed, explanation)


def _judge(module: VaeAttention, image: torch.Tensor) -> tuple[torch.Tensor, Any, Explanation | None]:
    """Compute what a module's ``forward`` does, but keep what it saw and what explains it: the model runs once."""
    model, explanation = module.model, None
    processed = cast("Any", module.pre_processor)(image) if module.pre_processor else image
    with full_precision(module.device):
        if isinstance(model, ImageVaeModel):
            out = model(processed)
        else:
            processed, whole = only_scorable(as_floats(processed, model))
            explanation = model.explain(processed)
            out = explanation.prediction(whole)
    judged = cast("Any", module.post_processor)(out) if module.post_processor else out
    return processed, call_defective(out.pred_score >= 1, judged), explanation


def _imagine_normal(
    model: ImageVaeModel | VaeAttentionModel, image: torch.Tensor, explanation: Explanation | None
) -> Counterfactual:
    if explanation is not None:
        return false_colours(explanation)
    model = cast("ImageVaeModel", model)
    seen = model.prepare_image(image)
    decoded = model.vae.decode(model.vae.posterior(seen).mean)
    seen, decoded = (one[0].expand(3, -1, -1).clamp(0, 1).cpu() for one in (seen, decoded))
    return Counterfactual(seen, decoded, in_false_colours=False)


def false_colours(explanation: Explanation) -> Counterfactual:
    """Show a layer of the first image that is explained, and its counterfactual, in the same false colours."""
    height = explanation.energy.shape[-2]
    # A finer one would show detail that no counterfactual restores.
    layer = next((index for index, one in enumerate(explanation.activations) if one.shape[-2] <= height), -1)
    seen, normal = (layers[layer][0].float().cpu() for layers in (explanation.activations, explanation.counterfactual))
    mean = normal.mean((1, 2), keepdim=True)
    directions = torch.linalg.eigh(torch.cov(normal.flatten(1))).eigenvectors[:, -3:].T
    seen, normal = (torch.einsum("dc,chw->dhw", directions, one - mean) for one in (seen, normal))
    low, high = (normal.flatten(1).quantile(share, dim=1)[:, None, None] for share in (0.01, 0.99))
    seen, normal = (((one - low) / (high - low).clamp_min(1e-6)).clamp(0, 1) for one in (seen, normal))
    return Counterfactual(seen, normal, in_false_colours=True)


def _furthest(distance: torch.Tensor, chosen: Sequence[int], most: int) -> list[int]:
    return sorted(chosen, key=lambda latent: -float(distance[latent]))[:most]


def _image_latents(model: ImageVaeModel, image: torch.Tensor, chosen: Sequence[int], most: int) -> Latents:
    """Explain the latents of an image VAE: eq. 1-3 of Liu et al., distances by eq. 4."""
    image = model.prepare_image(image)
    distance = model.normal.deviations(model.vae.posterior(image))[0].abs()
    number = _furthest(distance, chosen, most)
    maps = model.latent_maps(image)[0]
    return Latents(number, distance[number], maps[number], maps.mean(0))


def _feature_latents(model: VaeAttentionModel, explanation: Explanation, chosen: Sequence[int], most: int) -> Latents:
    """Explain the latents of the feature VAE: the part of each in the energy and its attention, which add up."""
    match = explanation.match
    mean = model.vae.posterior(model.grid(explanation.activations)).mean
    # Of the energy's two halves, the other is in the gradient.
    energy = (match.gradient * (mean - match.latent)).flatten(2)[0].clamp_min(0)
    distance = energy.mean(1).sqrt()
    number = _furthest(distance, chosen, most)

    def attend(gradient: torch.Tensor) -> torch.Tensor:
        gradients = model.grid.adjoint(model.vae.adjoint(gradient))
        layers = energy_attention(explanation.activations, explanation.counterfactual, gradients)
        return model.at_image_size(layers)[0]

    maps = []
    for latent in number:
        only = torch.zeros_like(match.gradient)
        only[:, latent] = match.gradient[:, latent]
        maps.append(attend(only))
    return Latents(number, distance[number], torch.stack(maps), attend(match.gradient))
