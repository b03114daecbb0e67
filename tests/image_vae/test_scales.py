"""Scales of maps and scores are kept by the attention's name, whatever a checkpoint and a model know of each other."""

import pytest
import torch
from image_vaes import SMALL, make

from anomalib_vae_attention.image_vae.attention_maps import ATTENTIONS, Attention, LayerMaps, NormalStatistics
from anomalib_vae_attention.image_vae.encoder_gradients import EncoderGradients
from anomalib_vae_attention.image_vae.model import ImageVaeModel
from anomalib_vae_attention.image_vae.scales import SAVED_ORDER

KEYS = {
    "departures.conv2",
    "normal_mean",
    "normal_variance",
    "average_variance",
    "map_scale",
    "score_mean",
    "score_std",
    "is_fitted",
}
"""What checkpoints call the tensors beside those of the VAE and the reference; it must not change."""


def brightness(seen: EncoderGradients, _normal: NormalStatistics) -> LayerMaps:
    """Return the image as its own anomaly map: an attention for tests."""
    return [seen.image.mean(1)], None


def load(state: dict[str, torch.Tensor], **options: object) -> ImageVaeModel:
    """Load a state into a fresh model."""
    model = ImageVaeModel(**SMALL["conv"], **options).eval()
    model.load_state_dict(state)
    return model


def test_names_in_the_state_dict() -> None:
    state = ImageVaeModel(**SMALL["conv"]).state_dict()
    parts = ("vae.encoder.", "vae.decoder.", "reference.")
    later = {f"scale_{attention}" for attention in ATTENTIONS if attention not in SAVED_ORDER}
    assert {name for name in state if not name.startswith(parts)} == KEYS | later
    assert all(any(name.startswith(part) for name in state) for part in parts)
    assert {len(state[name]) for name in ("map_scale", "score_mean", "score_std")} == {len(SAVED_ORDER)}


def test_an_attention_that_a_checkpoint_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoint loads and gives what it gave; the new attention is refused until it is calibrated."""
    old, image = make("conv", attention="mean")
    state = {name: tensor.clone() for name, tensor in old.state_dict().items()}
    with torch.no_grad():
        expected = old(image)
    monkeypatch.setitem(ATTENTIONS, "brightness", Attention(brightness, uses_layers=False))
    for model in (load(state, attention="brightness"), load(load(state).state_dict(), attention="brightness")):
        with torch.no_grad(), pytest.raises(RuntimeError, match=r"does not know attention='brightness'.*train again"):
            model(image)
        assert torch.equal(model.explain(image)[0], image.mean(1))
        model.attention = "mean"
        with torch.no_grad():
            assert torch.equal(model(image).anomaly_map, expected.anomaly_map)
    model.attention = "brightness"
    model.collect(image.split(1))
    assert float(model.scales.of("brightness").map_mean) == pytest.approx(float(image.mean()))
    again = load(model.state_dict(), attention="brightness")
    with torch.no_grad():
        assert torch.equal(again(image).pred_score, model(image).pred_score)
    state = model.state_dict()
    monkeypatch.delitem(ATTENTIONS, "brightness")
    with torch.no_grad():
        assert load(state, attention="mean")(image).pred_score.isfinite().all()


def test_the_order_of_the_registry_does_not_matter() -> None:
    model, image = make("conv")
    state, rows = model.state_dict(), dict(ATTENTIONS)
    with torch.no_grad():
        expected = model(image)
    try:
        ATTENTIONS.clear()
        ATTENTIONS.update(reversed(rows.items()))
        with torch.no_grad():
            found = load(state)(image)
    finally:
        ATTENTIONS.clear()
        ATTENTIONS.update(rows)
    assert list(ATTENTIONS) == list(rows)
    assert torch.equal(found.pred_score, expected.pred_score)
    assert torch.equal(found.anomaly_map, expected.anomaly_map)
