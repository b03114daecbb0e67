"""A model that the tests of predictions share."""

from pathlib import Path

import pytest

from anomalib_vae_attention.common.mvtec_layout import list_images
from anomalib_vae_attention.thresholds.normal_quantile import NormalQuantile
from anomalib_vae_attention.train.fit import fit


@pytest.fixture(scope="package")
def checkpoint(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fit the default model to a few small images; tests must not change it."""
    files = list_images(tiny_root / "parts" / "washer" / "train")
    return fit(files, tmp_path_factory.mktemp("trained"), NormalQuantile(0.2))[0]
