"""The packaged weights where anomalib's own models look for them."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from anomalib_vae_attention.benchmark.weights import write_cache


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
