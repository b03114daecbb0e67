"""Image files that cannot be read are named in the error."""

import re
from pathlib import Path

import pytest
from PIL import Image
from support import folder, make_engine, small_model, write_images

from anomalib_vae_attention import EmbeddedAD
from anomalib_vae_attention.anomalib_support.unreadable_images import unreadable_files


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


@pytest.mark.parametrize("place", ["good/3.png", "bad/1.png"])
def test_an_image_of_too_many_pixels_is_named(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image beyond what Pillow takes for an attack, such as a line scan, is an error that names it."""
    write_images(tmp_path / "data")
    Image.new("RGB", (400, 400)).save(tmp_path / "data" / place)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100 * 100)
    datamodule = folder(tmp_path / "data", normal_test_dir="good")
    with pytest.raises(Image.DecompressionBombError, match=re.escape(place)):
        make_engine(tmp_path / "results").fit(model=small_model(), datamodule=datamodule)


def test_an_error_of_the_disk_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the system says of a file, such as a folder on the network that is gone, names it, too."""
    write_images(tmp_path / "data")

    def fail(self: Image.Image) -> None:
        del self
        raise OSError(5, "Input/output error")

    datamodule = folder(tmp_path / "data", normal_test_dir="good")
    datamodule.setup()
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
    assert len(unreadable_files([datamodule.train_dataloader()])) == 6
    with pytest.raises(OSError, match=r"of the images cannot be read.*good/0\.png") as error:
        make_engine(tmp_path / "results").fit(model=small_model(), datamodule=datamodule)
    assert error.value.errno == 5
