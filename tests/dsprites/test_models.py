"""The models' steps: what they compute, that they learn, and that a resumed run goes on as if nothing had happened."""

from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from anomalib_vae_attention.dsprites.attention_loss import AttentionDisentanglement
from anomalib_vae_attention.dsprites.datamodule import DSpritesDataModule
from anomalib_vae_attention.dsprites.dataset import DSprites
from anomalib_vae_attention.dsprites.models import VAE, BetaVAE, FactorVAE

MODELS = {
    "vae": lambda: VAE(learning_rate=2e-3),
    "beta_vae": lambda: BetaVAE(beta=4.0, learning_rate=2e-3),
    "factor_vae": lambda: FactorVAE(learning_rate=2e-3),
    "ad_factor_vae": lambda: FactorVAE(learning_rate=2e-3, attention=AttentionDisentanglement()),
    "ad_beta_vae": lambda: BetaVAE(learning_rate=2e-3, attention=AttentionDisentanglement(pairs="all", layer="conv3")),
}


@pytest.fixture
def images(sprites: DSprites) -> torch.Tensor:
    return sprites.images_of(sprites.sample_factors(16))


@pytest.mark.parametrize("name", MODELS)
def test_steps_lower_the_reconstruction_error(name: str, images: torch.Tensor) -> None:
    model = MODELS[name]()
    optimizers = model.configure_optimizers()
    logged = [model.optimise(images, optimizers) for _ in range(15)]
    assert logged[-1]["reconstruction"] < 0.9 * logged[0]["reconstruction"]
    assert all(torch.isfinite(value) for terms in logged for value in terms.values())
    assert model.steps == 15


def test_step_of_factor_vae_is_algorithm_2_on_one_batch(images: torch.Tensor) -> None:
    """One step equals that of two plain losses, each differentiated by autograd, before either network is updated."""
    model, twin = FactorVAE(gamma=10.0), FactorVAE(gamma=10.0)
    twin.load_state_dict(model.state_dict())
    logged = model.optimise(images, model.configure_optimizers())
    encoded = twin.encoder.encode(images)
    noise = torch.randn(16, 10, generator=twin.generator)
    latents = encoded.mean + (0.5 * encoded.log_variance).exp() * noise
    reconstruction = F.binary_cross_entropy_with_logits(twin.decoder(latents), images, reduction="sum") / 16
    prior = torch.distributions.Normal(0, 1)
    posterior = torch.distributions.Normal(encoded.mean, (0.5 * encoded.log_variance).exp())
    divergence = torch.distributions.kl_divergence(posterior, prior).sum() / 16
    logits = twin.discriminator(latents)
    total_correlation = (logits[:, 0] - logits[:, 1]).mean()
    order = torch.rand(16, 10, generator=twin.generator).argsort(0)
    both = twin.discriminator(torch.cat([latents, latents.gather(0, order)]).detach())
    own = F.cross_entropy(both, torch.tensor([0] * 16 + [1] * 16))
    for name, value in (
        ("reconstruction", reconstruction),
        ("kl", divergence),
        ("total_correlation", total_correlation),
        ("discriminator", own),
    ):
        torch.testing.assert_close(logged[name], value.detach(), rtol=1e-4, atol=1e-6)
    vae = [*twin.encoder.parameters(), *twin.decoder.parameters()]
    loss = reconstruction + divergence + 10 * total_correlation
    ours = [*model.encoder.parameters(), *model.decoder.parameters()]
    for mine, theirs in zip(ours, torch.autograd.grad(loss, vae), strict=True):
        torch.testing.assert_close(mine.grad, theirs, rtol=1e-3, atol=1e-4)


def test_attention_is_added_with_its_weight(images: torch.Tensor) -> None:
    attention = AttentionDisentanglement(weight=3.0)
    model = BetaVAE(attention=attention)
    terms = model.terms(images)
    expected = terms.logged["reconstruction"] + terms.logged["kl"] + 3 * terms.logged["attention"]
    torch.testing.assert_close(terms.loss.detach(), expected)
    assert terms.logged["attention"] > 0


class Still(torch.optim.SGD):
    """An optimiser that only clears the gradients, so that they can be looked at."""

    def step(self, closure: object = None) -> None:
        del closure


def test_bf16_s_gradients_are_those_of_single_precision_but_for_rounding(images: torch.Tensor) -> None:
    """Of all weights of VAE and discriminator, with every term of the loss, after a few steps."""
    attention = AttentionDisentanglement(40.0, "all", "conv3", normalise=True, both_signs=True)
    model = FactorVAE(learning_rate=2e-3, attention=attention)
    for _ in range(15):
        model.optimise(images, model.configure_optimizers())
    vae = [*model.encoder.parameters(), *model.decoder.parameters()]
    optimizers = [Still(vae), Still(model.discriminator.parameters())]
    found = []
    for bf16 in (False, True):
        model.generator.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logged = model.optimise(images, optimizers)
        found.append((logged, {name: weight.grad for name, weight in model.named_parameters()}))
    (logged, gradients), (rounded, others) = found
    for name, value in logged.items():
        assert rounded[name].dtype == torch.float32, name
        torch.testing.assert_close(rounded[name], value, rtol=0.02, atol=0.01)
    for name, gradient in gradients.items():
        assert others[name].dtype == torch.float32, name
        assert not torch.equal(others[name], gradient), name
        assert F.cosine_similarity(others[name].flatten(), gradient.flatten(), dim=0) > 0.98, name


def make_trainer(folder: Path, epochs: int, precision: str = "32-true") -> pl.Trainer:
    return pl.Trainer(
        default_root_dir=folder,
        max_epochs=epochs,
        precision=precision,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[pl.callbacks.ModelCheckpoint(folder, save_last=True)],
    )


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_resumed_run_ends_where_an_uninterrupted_one_does(precision: str, sprites_root: Path, tmp_path: Path) -> None:
    """To the last bit: weights, optimisers, noise, permutations, pairs of latents and batches all go on."""

    def run(folder: str, epochs: int, resume: bool = False) -> tuple[pl.LightningModule, pl.Trainer]:
        torch.manual_seed(0)
        model = MODELS["ad_factor_vae"]()
        # Whatever else draws from the global generator must not matter.
        torch.manual_seed(epochs)
        data = DSpritesDataModule(sprites_root, batch_size=4, batches_per_epoch=3)
        trainer = make_trainer(tmp_path / folder, epochs, precision)
        trainer.fit(model, data, ckpt_path="last" if resume else None)
        return model, trainer

    whole, trainer = run("whole", 2)
    run("parts", 1)
    resumed, _ = run("parts", 2, resume=True)
    assert trainer.global_step == resumed.steps == whole.steps == 6
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key


def test_loss_that_is_not_a_number_stops_before_the_update(images: torch.Tensor) -> None:
    model = FactorVAE()
    optimizers = model.configure_optimizers()
    with torch.no_grad():
        model.decoder.linears[0].bias[0] = float("nan")
    before = model.encoder.hidden.weight.clone()
    with pytest.raises(
        FloatingPointError, match=r"the loss is nan at step 0 \(reconstruction nan.*lower learning_rate"
    ):
        model.optimise(images, optimizers)
    assert torch.equal(model.encoder.hidden.weight, before)


def test_batch_of_one(images: torch.Tensor) -> None:
    model = FactorVAE()
    with pytest.raises(ValueError, match="batch_size must be at least 2"):
        model.optimise(images[:1], model.configure_optimizers())


@pytest.mark.parametrize(
    ("make", "wrong"),
    [
        (lambda: BetaVAE(latent_dim=1), "latent_dim"),
        (lambda: BetaVAE(beta=-1), "beta"),
        (lambda: FactorVAE(gamma=-1), "gamma"),
    ],
)
def test_arguments_out_of_range(make: object, wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        make()


def test_foreign_checkpoint() -> None:
    with pytest.raises(ValueError, match="ckpt_path must name one that was"):
        VAE().on_load_checkpoint({})
