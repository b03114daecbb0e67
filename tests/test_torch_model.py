"""The torch model on its own: scores, errors, sizes, weights and counterfactuals."""

import math
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from anomalib.data import InferenceBatch
from support import Fitted
from torch.nn import functional as F  # noqa: N812

from anomalib_vae_attention import VaeAttention
from anomalib_vae_attention.fit.closed_form import fit_model
from anomalib_vae_attention.fit.feature_statistics import FeatureMoments
from anomalib_vae_attention.reference import REFERENCES
from anomalib_vae_attention.scoring import highest_means
from anomalib_vae_attention.torch_model import VaeAttentionModel


def fit(model: VaeAttentionModel, images: torch.Tensor) -> VaeAttentionModel:
    """Fit a model to normalised images, as the Lightning model does but for the refinement."""
    moments = FeatureMoments()
    with torch.no_grad():
        features = model.train()(images)
        moments.update(features)
        fit_model(model, moments.compute(), lambda: [features])
    return model.eval()


@pytest.fixture(scope="module")
def small() -> VaeAttentionModel:
    """Fit a model to six images of 64x64 noise; tests must not change it."""
    torch.manual_seed(0)
    return fit(VaeAttentionModel(latent_dim=16), torch.randn(6, 3, 64, 64))


def check_output(output: InferenceBatch, batch: int, size: tuple[int, int]) -> None:
    """Demand scores and maps of the right shapes, finite and strictly inside (0, 1)."""
    assert output.pred_score.shape == (batch,)
    assert output.anomaly_map.shape == (batch, 1, *size)
    for tensor in (output.pred_score, output.anomaly_map):
        assert tensor.isfinite().all()
        assert tensor.min() > 0
        assert tensor.max() < 1


@pytest.mark.parametrize("reference", ["exemplars", "gaussian"])
def test_unfitted(reference: str) -> None:
    """A model that has not been fitted says so instead of scoring."""
    with pytest.raises(RuntimeError, match="not been fitted"):
        VaeAttentionModel(pre_trained=False, reference=reference).eval()(torch.randn(1, 3, 64, 64))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_pixels_that_are_not_finite(small: VaeAttentionModel, value: float) -> None:
    """An image with one bad pixel is defective, score and map 1; the others of the batch are as without it."""
    image = torch.rand(3, 3, 64, 64)
    good = small(image)
    image[1, 2, 5, 7] = value
    prediction = small(image)
    assert prediction.pred_score[1] == 1
    assert (prediction.anomaly_map[1] == 1).all()
    for ours, theirs in ((prediction.pred_score, good.pred_score), (prediction.anomaly_map, good.anomaly_map)):
        torch.testing.assert_close(ours[::2], theirs[::2])
        assert (ours[::2] < 1).all()
    if not math.isfinite(value):
        with pytest.raises(ValueError, match=r"images at \[1\]"):
            small.explain(image)


def test_grey_tensor(small: VaeAttentionModel) -> None:
    """An image of one channel is an image of three equal channels."""
    grey = torch.randn(2, 1, 64, 64)
    ours, theirs = small(grey), small(grey.expand(-1, 3, -1, -1))
    torch.testing.assert_close(ours.pred_score, theirs.pred_score)
    torch.testing.assert_close(ours.anomaly_map, theirs.anomaly_map)


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (3, 50), (33, 77), (96, 64), (64, 200)])
@pytest.mark.parametrize("reference", ["exemplars", "gaussian"])
def test_input_sizes(size: tuple[int, int], reference: str) -> None:
    """Images of any shape, not square or tiny, can be fitted and scored as they are; foreign ones score more."""
    normal = 0.1 * torch.randn(5, 3, *size) + 0.5
    model = fit(VaeAttentionModel(latent_dim=16, reference=reference), normal)
    with torch.no_grad():
        output = model(torch.cat([normal[:2], 3 * torch.randn(2, 3, *size)]))
    check_output(output, 4, size)
    assert output.pred_score[2:].min() > output.pred_score[:2].max()


def test_no_pre_processor() -> None:
    """Without a pre-processor the Lightning model takes images as they come."""
    model = VaeAttention(pre_processor=False, visualizer=False, latent_dim=16)
    assert model.pre_processor is None
    fit(model.model, torch.rand(4, 3, 40, 72))
    with torch.no_grad():
        check_output(model.eval()(torch.rand(2, 3, 40, 72)), 2, (40, 72))


@pytest.mark.parametrize("size", [(64, 96), (128, 128), (32, 32), (8, 8), (57, 64)])
def test_images_of_another_size(small: VaeAttentionModel, size: tuple[int, int]) -> None:
    """Images of another grid than the model was fitted on are one clear error, and break nothing."""
    with pytest.raises(ValueError, match="size"):
        small(torch.randn(1, 3, *size))
    with torch.no_grad():
        check_output(small(torch.randn(1, 3, 64, 64)), 1, (64, 64))


def test_sizes_seen_before_change_nothing(small: VaeAttentionModel) -> None:
    """What a model makes of an image does not depend on the sizes of the images before it."""
    image = torch.randn(1, 3, 63, 63)

    def result(model: VaeAttentionModel) -> torch.Tensor | str:
        try:
            return model(image).pred_score
        except ValueError as error:
            return str(error)

    fresh = VaeAttentionModel(latent_dim=16).eval()
    fresh.load_state_dict(small.state_dict())
    with torch.no_grad():
        small(torch.randn(1, 3, 64, 64))
        assert result(fresh) == result(small)


def test_threads_that_call_a_fresh_model_at_once(small: VaeAttentionModel) -> None:
    """Eight threads get what one would have got, of models that have never seen an image."""
    images = torch.randn(8, 1, 3, 64, 64)
    with torch.no_grad():
        expected = [small(image) for image in images]
    for _ in range(5):
        fresh = VaeAttentionModel(latent_dim=16).eval()
        fresh.load_state_dict(small.state_dict())
        barrier = threading.Barrier(len(images))

        def call(image: torch.Tensor, model: VaeAttentionModel = fresh, start: threading.Barrier = barrier) -> object:
            start.wait()
            with torch.no_grad():
                return model(image)

        with ThreadPoolExecutor(len(images)) as pool:
            found = list(pool.map(call, images))
        for ours, theirs in zip(found, expected, strict=True):
            assert torch.equal(ours.pred_score, theirs.pred_score)
            assert torch.equal(ours.anomaly_map, theirs.anomaly_map)


def test_a_thousand_calls_from_eight_threads(small: VaeAttentionModel) -> None:
    """Each is what it would be alone."""
    images = torch.randn(8, 1, 3, 64, 64)

    def call(image: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return small(image).pred_score

    expected = [call(image) for image in images]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(call, [image for _ in range(125) for image in images]))
    assert len(found) == 1000
    assert all(torch.equal(score, expected[index % 8]) for index, score in enumerate(found))


def test_an_export_of_a_fresh_model_leaves_it_usable(small: VaeAttentionModel) -> None:
    """The program gives what the model gives, before and after, and a second export does, too."""
    image = torch.randn(2, 3, 64, 64)
    fresh = VaeAttentionModel(latent_dim=16).eval()
    fresh.load_state_dict(small.state_dict())
    with torch.no_grad():
        expected = small(image).pred_score
        for _ in range(2):
            program = torch.export.export(fresh, (image,)).module()
            torch.testing.assert_close(program(image).pred_score, expected)
        torch.testing.assert_close(fresh(image).pred_score, expected)


@pytest.mark.parametrize("reference", ["exemplars", "gaussian"])
@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("size", [8, 64])
def test_one_image_or_copies_of_it(images: int, size: int, reference: str) -> None:
    """One normal image, or copies of it, is little to learn from, but scores are finite, a foreign image's higher."""
    normal = torch.randn(1, 3, size, size)
    model = fit(VaeAttentionModel(latent_dim=8, reference=reference), normal.repeat(images, 1, 1, 1))
    with torch.no_grad():
        output = model(torch.cat([normal, torch.randn(1, 3, size, size)]))
    check_output(output, 2, (size, size))
    assert output.pred_score[1] > output.pred_score[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"reference": "mean"}, r"reference must be one of .*'exemplars'.*'mean'"),
        ({"max_exemplars": 0}, r"max_exemplars must be at least 1, and a whole number, but is 0"),
        ({"latent_dim": 352}, r"latent_dim must be from 1 to 351"),
        ({"backbone": "resnet1"}, r"backbone='resnet1'.*'resnet18'"),
        ({"backbone": "no such thing"}, r"backbone='no such thing'.*'tf_efficientnet_lite0'"),
        ({"layers": ["blocks.1", "blocks.9"]}, r"layers=\['blocks.1', 'blocks.9'\].*'blocks.0', 'blocks.1'"),
        ({"layers": ["blocks.1", "blocks.1"]}, r"layers=.* are not distinct"),
        ({"layers": []}, r"layers=\[\].*'blocks.0', 'blocks.1'"),
    ],
)
def test_arguments_out_of_range(arguments: dict, message: str) -> None:
    """An argument out of range is a ValueError that names it and what there is."""
    with pytest.raises(ValueError, match=message):
        VaeAttentionModel(**{"pre_trained": False, **arguments})


def test_another_backbone() -> None:
    """Another backbone, with random weights, can be fitted."""
    model = VaeAttentionModel(backbone="resnet18", layers=["layer2", "layer1"], pre_trained=False, latent_dim=16)
    assert model.backbone.layers == ["layer1", "layer2"]
    fit(model, torch.randn(4, 3, 64, 64))
    with torch.no_grad():
        check_output(model(torch.randn(2, 3, 64, 64)), 2, (64, 64))


def test_batch_does_not_matter(small: VaeAttentionModel) -> None:
    """An image scores in a batch what it scores alone."""
    images = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        together = small(images)
        for index, image in enumerate(images):
            alone = small(image[None])
            torch.testing.assert_close(alone.pred_score[0], together.pred_score[index], rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(alone.anomaly_map[0], together.anomaly_map[index], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("reference", list(REFERENCES))
def test_forward_is_one_graph(reference: str) -> None:
    """Dynamo refuses a forward pass that reads a value or branches on one, as a capture on a GPU would."""
    torch.manual_seed(0)
    images = torch.randn(6, 3, 64, 64)
    model = fit(VaeAttentionModel(latent_dim=16, reference=reference), images)
    torch.compiler.reset()
    with torch.inference_mode():
        expected = model(images)
        found = torch.compile(model, fullgraph=True, dynamic=False, backend="eager")(images)
    torch.testing.assert_close(found.pred_score, expected.pred_score)
    torch.testing.assert_close(found.anomaly_map, expected.anomaly_map)


def test_counterfactual_is_nearer_to_normal_parts(fitted: Fitted, test_images: dict[str, torch.Tensor]) -> None:
    """At every layer, held-out normal images are reconstructed with less relative error than defects are."""
    label = test_images["label"]
    good, bad = (~label).nonzero().flatten()[:6], label.nonzero().flatten()[::3]
    with torch.no_grad():
        normal, defective = (fitted.model.model.explain(test_images["image"][chosen]) for chosen in (good, bad))
    assert len(normal.activations) == 3
    for layer in range(3):

        def error(explanation: object, layer: int = layer) -> torch.Tensor:
            activation = explanation.activations[layer]
            return (activation - explanation.counterfactual[layer]).norm(dim=1) / activation.norm(dim=1)

        inside = F.adaptive_avg_pool2d(test_images["mask"][bad].float(), normal.activations[layer].shape[-2:]) > 0.5
        assert inside.sum() >= 5
        assert error(normal).mean() < error(defective)[inside].mean(), layer


def test_image_score_is_what_the_map_shows(fitted: Fitted, test_images: dict[str, torch.Tensor]) -> None:
    """Scores and the highest shares of the blurred maps that users see put the images into nearly one order."""
    model = fitted.model.model
    with torch.no_grad():
        explanation = model.explain(test_images["image"])
    shown = (highest_means(explanation.anomaly_map) * model.share_weights).sum(1)
    order = torch.stack([explanation.score, shown]).argsort(1).argsort(1).double()
    assert float(torch.corrcoef(order)[0, 1]) > 0.95
