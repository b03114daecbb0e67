"""How strongly each term pulls: against autograd on the whole loss, and the command."""

from pathlib import Path

import gradient_norms
import pytest
import torch

from anomalib_vae_attention.dsprites.attention_loss import AttentionDisentanglement
from anomalib_vae_attention.dsprites.models import BetaVAE, FactorVAE

CONFIG = Path(__file__).parents[2] / "configs" / "dsprites" / "factor_vae.yaml"


def test_norms_are_those_of_the_gradients() -> None:
    """The ELBO's are those that a step without attention would have; of one batch, both norms are the same."""
    images = torch.rand(3, 1, 64, 64)
    model, twin = (BetaVAE(latent_dim=3, attention=AttentionDisentanglement()) for _ in range(2))
    twin.load_state_dict(model.state_dict())
    twin.attention = None
    table = gradient_norms.measure(model, [images])
    assert isinstance(model.attention, AttentionDisentanglement)
    loss = twin.terms(images).loss
    loss.backward()
    norm = torch.cat([weight.grad.flatten() for weight in twin.encoder.parameters()]).norm()
    assert table.loc["ELBO", "value"] == pytest.approx(float(loss.detach()), rel=1e-5)
    assert table.loc["ELBO", "rms"] == pytest.approx(float(norm), rel=1e-4)
    assert table["mean"].to_numpy() == pytest.approx(table["rms"].to_numpy(), rel=1e-4)
    assert len(table) == 1 + 4 * (3 * 2 + 2)


def test_what_differs_between_batches_is_left_out_of_the_mean() -> None:
    model = FactorVAE(latent_dim=3, gamma=7.0)
    table = gradient_norms.measure(model, list(torch.rand(3, 4, 1, 64, 64)))
    assert {"ELBO", "7 TC", "overlap, conv3, all", "overlap, conv3, all, second order"} <= set(table.index)
    assert (table["mean"] <= table["rms"] * (1 + 1e-5)).all()
    assert table.loc["7 TC", "mean"] < 0.999 * table.loc["7 TC", "rms"]


def test_maps_that_are_empty_are_counted() -> None:
    """A latent that every channel of the last layer argues against has no map of it; its negative has."""
    model = BetaVAE(latent_dim=3)
    with torch.no_grad():
        # After the flattened conv4 comes one layer with ReLUs: all of its weights are positive here.
        model.encoder.hidden.weight.abs_()
        model.encoder.posterior.weight[:3] = torch.tensor([1.0, -1.0, -1.0])[:, None]
        # Noise has no say.
        model.encoder.posterior.weight[3:] = 0
        model.encoder.posterior.bias[3:] = -30
    table = gradient_norms.empty_maps(model, torch.rand(5, 1, 64, 64))
    assert table["KL"].is_monotonic_decreasing
    assert table["conv4"].to_dict() == {0: 0, 1: 1, 2: 1}


def test_a_checkpoint_that_is_not_there(sprites_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--config", str(CONFIG), f"data.root={sprites_root}", "trainer.default_root_dir=nowhere"]
    assert gradient_norms.main(arguments) == 1
    assert "there is no such file" in capsys.readouterr().err
