"""All of dSprites, drawn once for the tests that read it."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from anomalib_vae_attention.dsprites.dataset import DSprites


@pytest.fixture(scope="session")
def sprites_root() -> Iterator[Path]:
    """Return a folder with the drawn images; 360 MiB, which pytest's own folders would keep for three runs."""
    with TemporaryDirectory(prefix="dsprites-") as folder:
        DSprites(folder)
        yield Path(folder)


@pytest.fixture(scope="session")
def sprites(sprites_root: Path) -> DSprites:
    """Return the drawn data set."""
    return DSprites(sprites_root)
