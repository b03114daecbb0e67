"""The study of how fast predictions are: its images, and shares of a model that does nothing."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from prediction_rate import compare, main, make_images

from anomalib_vae_attention.common.mvtec_layout import list_images
from anomalib_vae_attention.predict.inputs import find_inputs
from anomalib_vae_attention.predict.models import WHOLE, Model, Verdicts


def test_images_are_not_the_same(tiny_root: Path, tmp_path: Path) -> None:
    sources = list_images(tiny_root / "parts" / "washer" / "test")[:2]
    make_images(sources, 5, tmp_path / "made")
    made = [np.asarray(Image.open(file)) for file in list_images(tmp_path / "made")]
    assert len({image.tobytes() for image in made}) == 5
    assert {image.shape for image in made} == {np.asarray(Image.open(sources[0])).shape}


def test_shares_of_a_model_that_does_nothing(
    tiny_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All time is that of reading and drawing."""

    def score(batch: np.ndarray) -> Verdicts:
        count = len(batch)
        maps = np.zeros((count, 8, 8), np.float32)
        return Verdicts(np.zeros(count, np.float32), np.zeros(count, bool), maps, maps > 0)

    (tmp_path / "model.ckpt").write_bytes(b"none")
    model = Model(tmp_path / "model.ckpt", score, (0.5, 0.5), lambda _height, _width: WHOLE)
    make_images(list_images(tiny_root / "parts" / "washer" / "test"), 10, tmp_path / "made")
    rate, busy = compare(model, find_inputs([tmp_path / "made"]), tmp_path / "out", 2)
    assert 0 < rate < 0.1
    assert 0 < busy < 0.1
    printed = capsys.readouterr().out
    assert printed.count("MiB") == 5
    assert len(list_images(tmp_path / "out" / "0" / "pictures")) == 10


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "--skip_kill" in capsys.readouterr().out
