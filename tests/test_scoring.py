"""How models score: what cannot be judged, what is no image, and scores in (0, 1) from maps."""

import re
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from anomalib.data import InferenceBatch
from support import small_image_model, small_model

from anomalib_vae_attention.scoring import (
    as_floats,
    call_defective,
    fail_safe,
    full_precision,
    highest_means,
    only_scorable,
    require_raw_images,
    to_unit_interval,
)

NAN = float("nan")


def test_only_scorable() -> None:
    """Pixels that are not finite, or huge, become 0 and mark their image; all others stay."""
    image = torch.rand(5, 3, 4, 6)
    bad = image.clone()
    for index, value in enumerate((NAN, float("inf"), -float("inf"), 1e20)):
        bad[index, 1, 2, 3] = value
    clean, whole = only_scorable(bad)
    assert whole.tolist() == [False, False, False, False, True]
    expected = image.clone()
    expected[:4, 1, 2, 3] = 0
    assert torch.equal(clean, expected)


def test_fail_safe() -> None:
    """A score or a map that is no number, or an image that is not whole, makes score and map 1."""
    score, anomaly_map = torch.tensor([0.2, NAN, 0.3, 0.4, float("inf")]), torch.full((5, 1, 2, 2), 0.5)
    anomaly_map[2, 0, 1, 1] = NAN
    output = fail_safe(torch.tensor([True, True, True, False, True]), score, anomaly_map)
    torch.testing.assert_close(output.pred_score, torch.tensor([0.2, 1, 1, 1, 1]))
    torch.testing.assert_close(output.anomaly_map.mean((1, 2, 3)), torch.tensor([0.5, 1, 1, 1, 1]))


def test_call_defective() -> None:
    """Labels and masks are true, where there are some; others are left alone."""
    given = InferenceBatch(torch.tensor([0.1, 0.2]), torch.tensor([False, False]), None, torch.zeros(2, 1, 2, 2).bool())
    output = call_defective(torch.tensor([False, True]), given)
    assert output.pred_label.tolist() == [False, True]
    assert output.pred_mask.flatten(1).all(1).tolist() == [False, True]
    assert output.pred_score.tolist() == pytest.approx([0.1, 1])
    assert output.anomaly_map is None


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (torch.rand(1, 8, 8, 3), "move the colours to the second place"),
        (torch.rand(1, 4, 8, 8), "transparency"),
        (torch.rand(3, 8, 8), r"\(3, 8, 8\)"),
        (torch.full((1, 3, 8, 8), 200, dtype=torch.uint8), "divide bytes by 255"),
        (torch.rand(1, 3, 8, 8) * 255, "between 0 and 1, but they lie between .*divide by 255"),
        (-torch.rand(1, 3, 8, 8) * 255, "between 0 and 1"),
        (torch.rand(0, 3, 8, 8), "There are no images"),
    ],
)
def test_what_is_no_image_is_refused(image: torch.Tensor, words: str) -> None:
    """One error says what is wrong, what to do, and which file it was."""
    with pytest.raises(ValueError, match=words) as error:
        require_raw_images(image, ["a.png"])
    assert "a.png" in str(error.value)


def test_an_array_is_refused() -> None:
    """PyTorch's own error would name an attribute that arrays do not have."""
    with pytest.raises(TypeError, match="must be a tensor"):
        require_raw_images(np.zeros((1, 3, 8, 8), np.float32))  # type: ignore[arg-type]


def test_images_are_not_refused() -> None:
    """Grey ones, augmented ones a little beyond [0, 1], and what is for the fail-safe."""
    for image in (torch.rand(2, 1, 8, 8), 3 * torch.rand(1, 3, 8, 8) - 1, torch.full((1, 3, 8, 8), NAN)):
        require_raw_images(image)
    require_raw_images(torch.full((1, 3, 8, 8), float("inf")))


@pytest.mark.parametrize(
    "image",
    [torch.rand(0, 3, 8, 8), torch.rand(3, 8, 8), torch.zeros(1, 3, 8, 8, dtype=torch.uint8)],
    ids=["empty", "one axis less", "bytes"],
)
def test_a_torch_model_takes_floats_only(image: torch.Tensor) -> None:
    """Otherwise one error says what it got, also of a model that is called without its pre-processor."""
    for model in (small_model(pre_trained=False).model.eval(), small_image_model().model.eval()):
        with pytest.raises(ValueError, match=re.escape(f"not {image.dtype} of {tuple(image.shape)}")):
            model(image)


def test_floats_of_any_precision_are_those_of_the_weights() -> None:
    """Double and half precision become the model's."""
    model = torch.nn.Linear(2, 2)
    for dtype in (torch.float64, torch.float16):
        assert as_floats(torch.ones(1, 3, 2, 2, dtype=dtype), model).dtype == torch.float32


def test_unit_interval_is_strictly_monotonic() -> None:
    """Steps of 1 in 1000 up to a million, and of a millionth next to 0, still differ in float32, inside (0, 1)."""
    near = 1e-6 * torch.arange(1000, dtype=torch.float64)
    far = 1e-3 * 1.001 ** torch.arange(20740, dtype=torch.float64)
    assert far[-1] > 1e6
    ratio = torch.cat([-far.flip(0), -near[1:].flip(0), near, far]).float()
    assert (ratio.diff() > 0).all()
    unit = to_unit_interval(ratio)
    assert unit.dtype == torch.float32
    assert (unit.diff() > 0).all()
    assert unit[0] > 0
    assert unit[-1] < 1


def test_unit_interval_of_some_numbers() -> None:
    """0 is a half, and no finite number however large or tiny is mapped onto an end or out of order."""
    assert to_unit_interval(torch.tensor([0.0, 1.0, 100.0])).tolist() == pytest.approx([0.5, 0.705, 0.911], abs=1e-3)
    extreme = to_unit_interval(torch.tensor([-3e38, -1e30, -1e-30, 0, 1e-30, 1e-6, 1e30, 3e38]))
    assert (extreme.diff() >= 0).all()
    assert 0 < extreme[0] < extreme[-1] < 1


def test_image_scores_are_made_of_the_means_of_the_highest_shares_of_the_map() -> None:
    """They are a tenth of a percent, one, ten and all of the cells, by sorting: at least one cell each."""
    anomaly_map = torch.randn(5, 40, 50)
    highest_first = anomaly_map.flatten(1).sort(descending=True).values
    expected = torch.stack([highest_first[:, :count].mean(1) for count in (2, 20, 200, 2000)], 1)
    torch.testing.assert_close(highest_means(anomaly_map), expected)
    assert highest_means(torch.eye(3)[None]).flatten().tolist() == pytest.approx([1.0, 1.0, 1.0, 1 / 3])


def precisions() -> list[str]:
    """Read PyTorch's settings of products and convolutions on a GPU: by older names, which may refuse, and newer."""

    def read(owner: object, name: str) -> str:
        try:
            return str(getattr(owner, name))
        except (AttributeError, RuntimeError) as error:
            return type(error).__name__

    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    newer = [read(owner, "fp32_precision") for owner in (products, getattr(convolutions, "conv", None))]
    return [read(products, "allow_tf32"), read(convolutions, "allow_tf32"), *newer]


@pytest.fixture
def unchanged() -> Iterator[None]:
    """Put back what is PyTorch's default."""
    yield
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_full_precision_whatever_the_program_allows(precision: str) -> None:
    torch.set_float32_matmul_precision(precision)
    before = precisions()
    assert before[0] == str(precision != "highest")
    with full_precision(torch.device("cuda")), full_precision(torch.device("cuda")):
        assert precisions()[:2] == ["False", "False"]
    assert torch.get_float32_matmul_precision() == precision
    assert precisions()[:2] == before[:2]


@pytest.mark.usefixtures("unchanged")
@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="PyTorch has these names since 2.9")
@pytest.mark.parametrize("of_convolutions", ["ieee", "tf32"])
def test_full_precision_where_a_program_uses_the_newer_names(of_convolutions: str) -> None:
    """PyTorch refuses to read the older names then."""
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    torch.backends.cudnn.conv.fp32_precision = of_convolutions
    before = precisions()
    assert "RuntimeError" in before
    with full_precision(torch.device("cuda")):
        assert not {"tf32", "True"} & set(precisions())
    assert precisions() == before
