"""The metrics on codes whose score is known, and against an independent implementation."""

from collections.abc import Callable
from importlib import import_module

import numpy as np
import pytest
import torch

from anomalib_vae_attention.dsprites import metrics
from anomalib_vae_attention.dsprites.dataset import DSprites, sample_factors
from anomalib_vae_attention.dsprites.metrics import disentanglement_completeness_informativeness as dci
from anomalib_vae_attention.dsprites.metrics import sampling
from anomalib_vae_attention.dsprites.models import VAE

Code = Callable[[torch.Tensor], torch.Tensor]


class Synthetic:
    """A data set whose images are their factors, standardised."""

    factors = ("first", "second", "third")
    factor_sizes = (3, 4, 5)

    def sample_factors(self, count: int, generator: torch.Generator | None = None) -> torch.Tensor:
        return sample_factors(self.factor_sizes, count, generator)

    def images_of(self, factors: torch.Tensor) -> torch.Tensor:
        sizes = torch.tensor(self.factor_sizes)
        return (factors - (sizes - 1) / 2) / ((sizes**2 - 1) / 12).sqrt()


DATA = Synthetic()
ROTATION = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)))[0]


def noise_like(images: torch.Tensor) -> torch.Tensor:
    return torch.randn(len(images), 5, generator=torch.Generator().manual_seed(int(images.sum() * 1000) % 2**31))


CODES: dict[str, Code] = {
    # Order, sign, scale, and latents that carry nothing must not matter.
    "perfect": lambda images: torch.stack([images[:, 2], 0 * images[:, 0], -images[:, 0], 3 * images[:, 1]], 1),
    "rotated": lambda images: images @ ROTATION,
    "random": noise_like,
    "collapsed": lambda images: 0 * images + 1,
    "one latent": lambda images: images[:, 1:2],
}


def draw(code: Code, *counts: int) -> list[metrics.Sample]:
    return metrics.draw_samples(DATA, code, 0, *counts)


METRICS: dict[str, Callable[..., dict[str, float]]] = {
    "factor_vae_score": lambda code: metrics.factor_vae_score(DATA, code, votes=200),
    "beta_vae_score": lambda code: metrics.beta_vae_score(DATA, code, train=150, test=150),
    "explained": lambda code: metrics.explained_variance(*draw(code, 2000), DATA.factors),
    "mig": lambda code: metrics.mutual_information_gap(*draw(code, 2000)),
    "sap": lambda code: metrics.separated_attribute_predictability(*draw(code, 1000, 1000)),
    "dci": lambda code: dci(*draw(code, 400, 400), "boosting"),
    "dci lasso": lambda code: dci(*draw(code, 1000, 1000), "lasso"),
}

EXPECTED = {
    # Scores of perfect, rotated, random and collapsed codes, as bounds.
    "factor_vae_score": ((1, 1), (0.4, 0.9), (0.3, 0.55), (0, 0)),
    "beta_vae_score": ((1, 1), (0.7, 1), (0.2, 0.5), (1 / 3, 1 / 3)),
    "explained": ((0.99, 1), (0.3, 0.95), (0, 0.05), (0, 0)),
    "mig": ((0.99, 1), (0, 0.4), (0, 0.02), (0, 0)),
    "sap": ((0.25, 0.8), (0, 0.3), (0, 0.1), (0, 0)),
    "dci": ((0.99, 1), (0, 0.6), (0, 0.2), (0, 0)),
    "dci lasso": ((0.99, 1), (0, 0.7), (0, 1), (0, 0)),
}


@pytest.mark.parametrize("column", range(4), ids=["perfect", "rotated", "random", "collapsed"])
@pytest.mark.parametrize("name", METRICS)
def test_codes_whose_score_is_known(name: str, column: int) -> None:
    scores = METRICS[name](CODES[["perfect", "rotated", "random", "collapsed"][column]])
    least, greatest = EXPECTED[name][column]
    value = next(iter(scores.values()))
    assert least - 1e-9 <= value <= greatest + 1e-9
    assert all(np.isfinite(score) for score in scores.values())
    assert all(0 <= score <= 1 for key, score in scores.items() if not key.startswith("active_latents"))


@pytest.mark.parametrize("name", METRICS)
def test_one_latent_is_no_division_by_zero(name: str) -> None:
    assert all(np.isfinite(score) for score in METRICS[name](CODES["one latent"]).values())


@pytest.mark.parametrize("name", METRICS)
def test_same_seed_same_score(name: str) -> None:
    """Whatever the global generators have been used for."""
    first = METRICS[name](CODES["rotated"])
    torch.rand(7)
    np.random.default_rng().random(3)
    assert METRICS[name](CODES["rotated"]) == first


def test_perfect_codes_have_all_of_dci() -> None:
    assert METRICS["dci"](CODES["perfect"]) == pytest.approx({
        "dci_disentanglement": 1,
        "dci_completeness": 1,
        "dci_informativeness": 1,
    })


def test_votes_of_perfect_codes() -> None:
    score = metrics.factor_vae_score(DATA, CODES["perfect"], votes=60)
    strict = {"factor_vae_score_strict": 1, "active_latents_strict": 3}
    assert score == {"factor_vae_score": 1, "active_latents": 3, **strict}


def test_latents_of_a_small_deviation_vote_under_one_limit_only() -> None:
    """A latent of deviation .1 that tells its factor is active by the first limit, and collapsed by the strict one."""
    scores = metrics.factor_vae_score(DATA, lambda images: images * torch.tensor([1, 1, 0.1]), votes=200)
    assert (scores["factor_vae_score"], scores["active_latents"]) == (1, 3)
    assert (scores["factor_vae_score_strict"] < 0.9, scores["active_latents_strict"]) == (True, 2)


def test_explained_variance_by_hand() -> None:
    """Codes 0, 1 | 2, 3 by a first factor: of a variance of 1.25 it explains 1, the second factor .25."""
    codes, factors = np.array([[0.0], [1.0], [2.0], [3.0]]), np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    found = metrics.explained_variance(sampling.Sample(codes, factors), ["a", "b"])
    assert found == pytest.approx({"explained_a": 0.8, "explained_b": 0.2})
    collapsed = sampling.Sample(np.ones((4, 2)), factors)
    assert metrics.explained_variance(collapsed, ["a", "b"]) == {"explained_a": 0, "explained_b": 0}


def test_codes_that_are_not_finite() -> None:
    with pytest.raises(ValueError, match="codes that are not finite"):
        draw(lambda images: images / 0, 10)


def test_a_model_on_dsprites(sprites: DSprites) -> None:
    """The data set and a model fit the metrics' arguments; an untrained encoder tells hardly anything."""
    score = metrics.factor_vae_score(sprites, VAE(), votes=5)
    assert {"factor_vae_score", "active_latents"} < set(score)
    (sample,) = metrics.draw_samples(sprites, VAE(), 0, 500)
    assert metrics.mutual_information_gap(sample)["mig"] < 0.2


def disent(name: str) -> object:
    """Import a module of the independent implementation, or skip."""
    pytest.importorskip("disent", reason="pip install disent==0.8.0 to compare with it")
    return import_module(f"disent.metrics.{name}")


@pytest.fixture(params=["perfect", "rotated", "random"])
def samples(request: pytest.FixtureRequest) -> list[sampling.Sample]:
    """Two samples of codes without collapsed latents, which the other implementation keeps."""
    generator = torch.Generator().manual_seed(1)
    drawn = [sampling.draw_sample(DATA, CODES[request.param], 600, generator) for _ in range(2)]
    kept = sampling.active_latents(drawn[0].codes)
    return [sampling.Sample(sample.codes[:, kept], sample.factors) for sample in drawn]


def test_mig_against_disent(samples: list[sampling.Sample]) -> None:
    other = disent("_mig")._compute_mig(samples[0].codes.T, samples[0].factors.T)
    assert metrics.mutual_information_gap(samples[0])["mig"] == pytest.approx(next(iter(other.values())), abs=1e-6)


def test_sap_against_disent(samples: list[sampling.Sample]) -> None:
    seen, unseen = samples
    other = disent("_sap")._compute_sap(
        seen.codes.T, seen.factors.T, unseen.codes.T, unseen.factors.T, continuous_factors=False
    )
    assert metrics.separated_attribute_predictability(seen, unseen)["sap"] == pytest.approx(
        next(iter(other.values())), abs=0.01
    )


def test_dci_against_disent(samples: list[sampling.Sample]) -> None:
    seen, unseen = samples
    other = disent("_dci")._compute_dci(seen.codes.T, seen.factors.T, unseen.codes.T, unseen.factors.T)
    ours = dci(seen, unseen, "boosting")
    for part in ("disentanglement", "completeness"):
        assert ours[f"dci_{part}"] == pytest.approx(other[f"dci.{part}"], abs=0.02)
    assert ours["dci_informativeness"] == pytest.approx(other["dci.informativeness_test"], abs=0.02)
