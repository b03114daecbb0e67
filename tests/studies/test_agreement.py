"""The comparison of two runtimes' predictions."""

import numpy as np
import pytest
from agreement import Prediction, compare


def prediction(score: float, pixels: list[float]) -> Prediction:
    """Make a prediction of an image of some pixels, thresholds at one half."""
    anomaly_map = np.array(pixels)[None]
    label, mask = np.array([score > 0.5]), anomaly_map > 0.5
    return {"pred_score": np.array([score]), "anomaly_map": anomaly_map, "pred_label": label, "pred_mask": mask}


def test_equal_predictions() -> None:
    """Between equal predictions there is no difference."""
    same = [prediction(0.3, [0.1, 0.9]), prediction(0.8, [0.5, 0.7])]
    assert not any(compare(same, same, [False, True]).values())


def test_differences_are_the_greatest_over_all_images() -> None:
    """Each image counts once for labels and masks; the distance is that of the pixel furthest from the threshold."""
    expected = [prediction(0.3, [0.1, 0.9]), prediction(0.8, [0.501, 0.47])]
    found = [prediction(0.32, [0.1, 0.9]), prediction(0.4, [0.499, 0.52])]
    assert compare(expected, found, [True, False]) == pytest.approx({
        "score_difference": 0.4,
        "map_difference": 0.05,
        "labels_differ": 1,
        "good_labels_differ": 1,
        "masks_differ": 1,
        "mask_pixels_differ": 2,
        "distance_from_threshold": 0.03,
        "image_AUROC_gain": 0,
    })


def test_gain_of_the_image_auroc() -> None:
    """It is what the other runtime's ranking has more."""
    expected = [prediction(0.3, [0.1]), prediction(0.4, [0.1])]
    found = [prediction(0.45, [0.1]), prediction(0.4, [0.1])]
    found_gain = compare(expected, found, [True, False])
    assert found_gain["image_AUROC_gain"] == 1
    assert found_gain["good_labels_differ"] == found_gain["labels_differ"] == 0
