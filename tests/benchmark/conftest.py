"""A category of a dozen drawn images, and the packaged weights where anomalib's own models look for them."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants
from PIL import Image

from anomalib_vae_attention.benchmark.weights import write_cache
from anomalib_vae_attention.data.drawing import draw_category

SIDE = 96


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Draw a category ``parts/washer`` in MVTec AD's layout, a few small images of it."""
    drawn, root = tmp_path_factory.mktemp("drawn") / "washer", tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        for name, count in (("TRAIN_GOOD", 5), ("TEST_GOOD", 2), ("TEST_PER_DEFECT", 1)):
            patch.setattr(f"anomalib_vae_attention.data.drawing.{name}", count)
        draw_category("washer", drawn)
    for file in drawn.rglob("*.png"):
        target = root / "parts" / "washer" / file.relative_to(drawn)
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.open(file).resize((SIDE, SIDE), Image.Resampling.NEAREST).save(target)
    return root


@pytest.fixture(scope="session")
def weights_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the packaged weights into a Hugging Face cache."""
    cache = tmp_path_factory.mktemp("weights")
    write_cache(cache)
    return cache


@pytest.fixture
def hub(weights_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Let this process find its weights in that cache."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(weights_cache))
    return weights_cache
