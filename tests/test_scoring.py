"""What cannot be judged is defective, and what is no image is refused."""

import pytest
import torch
from anomalib.data import InferenceBatch

from anomalib_vae_attention.scoring import call_defective, fail_safe, only_scorable, require_raw_images

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
    ],
)
def test_what_is_no_image_is_refused(image: torch.Tensor, words: str) -> None:
    """One error says what is wrong, what to do, and which file it was."""
    with pytest.raises(ValueError, match=words) as error:
        require_raw_images(image, ["a.png"])
    assert "a.png" in str(error.value)


def test_images_are_not_refused() -> None:
    """Grey ones, augmented ones a little beyond [0, 1], and what is for the fail-safe."""
    for image in (torch.rand(2, 1, 8, 8), 3 * torch.rand(1, 3, 8, 8) - 1, torch.full((1, 3, 8, 8), NAN)):
        require_raw_images(image)
    require_raw_images(torch.full((1, 3, 8, 8), float("inf")))
