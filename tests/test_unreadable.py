"""Image files that cannot be read are named in the error."""

import re
from pathlib import Path

import pytest
from support import folder, make_engine, small_model, write_images

from anomalib_vae_attention import EmbeddedAD


@pytest.mark.parametrize("place", ["good/3.png", "bad/1.png"])
@pytest.mark.parametrize(("kept", "workers"), [(200, 0), (4, 0), (0, 1)])
def test_an_unreadable_image_is_named(kept: int, workers: int, place: str, tmp_path: Path) -> None:
    """A file that ends too early is an error that names it, whoever reads it."""
    write_images(tmp_path / "data")
    broken = tmp_path / "data" / place
    broken.write_bytes(broken.read_bytes()[:kept])
    datamodule = folder(tmp_path / "data", normal_test_dir="good", num_workers=workers)
    with pytest.raises(OSError, match=re.escape(str(broken))):
        make_engine(tmp_path / "results").fit(model=small_model(), datamodule=datamodule)


def test_an_unreadable_image_to_predict_is_named(small_data: EmbeddedAD, tmp_path: Path) -> None:
    """So it is where images are only predicted, and readable images are not blamed."""
    model, engine = small_model(), make_engine(tmp_path)
    engine.fit(model=model, datamodule=small_data)
    write_images(tmp_path / "data", good=2)
    broken = tmp_path / "data" / "good" / "1.png"
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(OSError, match="1 of the images") as error:
        engine.predict(model=model, data_path=tmp_path / "data" / "good")
    assert str(broken) in str(error.value)
    assert "0.png" not in str(error.value)
