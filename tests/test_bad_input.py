"""Bad input, drawn at random: each case ends in the right result or in one clear error."""

import re
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from anomalib.data.utils import read_image
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from support import SIZE, Fitted, make_engine, small_model

from anomalib_vae_attention import EmbeddedAD, VaeAttention
from anomalib_vae_attention.unreadable import require_eight_bits

# The same cases in every run; fixtures are of the module and never changed.
CASES = {"derandomize": True, "deadline": None, "suppress_health_check": list(HealthCheck), "database": None}


@pytest.fixture(scope="module")
def small(small_data: EmbeddedAD, tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    """Fit a small model once."""
    model, engine = small_model(), make_engine(tmp_path_factory.mktemp("small_fit"))
    engine.fit(model=model, datamodule=small_data)
    return Fitted(model.eval(), engine, Path(engine.best_model_path))


@contextmanager
def clear_error(*kinds: type[Exception], names: str) -> Generator[None, None, None]:
    """Allow an error of certain kinds, if its message names what it is about."""
    try:
        yield
    except kinds as error:
        if not re.search(names, str(error)):
            raise


def is_sound(model: VaeAttention, image: torch.Tensor) -> None:
    """Demand scores and maps of an image batch that are numbers in [0, 1]."""
    with torch.no_grad():
        prediction = model(image)
    assert prediction.pred_score.shape == (len(image),)
    assert prediction.anomaly_map.shape == (len(image), 1, *SIZE)
    for tensor in (prediction.pred_score, prediction.anomaly_map):
        assert bool(((tensor >= 0) & (tensor <= 1)).all())


@st.composite
def pictures(draw: st.DrawFn) -> tuple[Image.Image, str]:
    """Draw an image of any mode, size and content, with a format that holds it."""
    mode, formats = draw(
        st.sampled_from([
            ("1", ["png", "bmp", "tiff"]),
            ("L", ["png", "jpeg", "bmp", "webp", "tiff"]),
            ("LA", ["png"]),
            ("P", ["png", "bmp"]),
            ("RGB", ["png", "jpeg", "bmp", "webp", "tiff"]),
            ("RGBA", ["png", "webp", "tiff"]),
            ("CMYK", ["jpeg", "tiff"]),
            ("I;16", ["png", "tiff"]),
            ("I", ["tiff"]),
            ("F", ["tiff"]),
        ]),
    )
    height, width = draw(st.tuples(*[st.sampled_from([1, 2, 3, 17, 64, 65, 200, 2000])] * 2))
    channels = {"LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4}.get(mode, 1)
    shape = (height, width, channels) if channels > 1 else (height, width)
    random = np.random.default_rng(draw(st.integers(0, 9)))
    top = draw(st.sampled_from([0, 1, 255, 65535])) if mode in {"I;16", "I", "F"} else 255
    kinds = {
        "black": np.zeros(shape),
        "white": np.full(shape, top),
        "noise": random.random(shape) * top,
        "ramp": np.broadcast_to(np.linspace(0, top, width)[None, :, None], (height, width, channels)).reshape(shape),
    }
    pixels = kinds[draw(st.sampled_from(sorted(kinds)))]
    if mode in {"I;16", "I", "F"}:
        image = Image.fromarray(pixels.astype({"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]))
    else:
        image = Image.fromarray(pixels.astype(np.uint8), {"1": "L", "P": "L"}.get(mode, mode)).convert(mode)
    return image, draw(st.sampled_from(formats))


@settings(max_examples=150, **CASES)
@given(picture=pictures())
def test_image_files(picture: tuple[Image.Image, str], small: Fitted) -> None:
    """An image file of any mode, size and content is scored, or refused by name where anomalib would misread it."""
    image, ending = picture
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / f"part.{ending}"
        image.save(file)
        levels = np.asarray(image, dtype=float)
        misread = image.mode == "F" or levels.max() > 255
        if misread:
            with pytest.raises(ValueError, match=re.escape(str(file))):
                require_eight_bits([file])
            return
        require_eight_bits([file])
        is_sound(small.model, read_image(file, as_tensor=True)[None])


@settings(max_examples=100, **CASES)
@given(
    batch=st.integers(0, 3),
    channels=st.integers(0, 4),
    height=st.sampled_from([0, 1, 63, 64, 300]),
    width=st.sampled_from([1, 64, 65]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.float16, torch.uint8]),
    value=st.sampled_from([0.0, 0.5, 1.0, 255.0, -1e30, 1e38, float("nan"), float("inf")]),
)
def test_tensors(
    batch: int,
    channels: int,
    height: int,
    width: int,
    dtype: torch.dtype,
    value: float,
    small: Fitted,
) -> None:
    """A tensor of any shape, type and content is scored, or refused in words about images."""
    image = torch.full((batch, channels, height, width), value, dtype=torch.float32).to(dtype)
    image[..., : height // 2, :] = 0
    names = "image|pixel|channel|size|dtype|type|shape|dimension"
    with clear_error(ValueError, RuntimeError, TypeError, names=names):
        is_sound(small.model, image)
        assert image.isfinite().all() or not image.numel()


ARGUMENTS = {
    "vae": st.sampled_from(["feature", "conv2", "", 3]),
    "attention": st.sampled_from(["energy", "grad", None]),
    "reference": st.sampled_from(["exemplars", "gaussian", "mean", "", 1]),
    "backbone": st.sampled_from(["tf_efficientnet_lite0", "no_such_model", "", 5]),
    "layers": st.sampled_from([
        ["blocks.1"],
        ["blocks.2", "blocks.4"],
        [],
        ["blocks.4", "blocks.1"],
        ["blocks.1", "blocks.1"],
        ["no.such"],
        "blocks.1",
        [1],
    ]),
    "latent_dim": st.one_of(st.integers(-3, 300), st.sampled_from([1.5, "8", None])),
    "max_exemplars": st.one_of(st.integers(-2, 10), st.sampled_from(["3", 2.5])),
    "cache_features": st.sampled_from([True, False, "auto", "sometimes", None, 7]),
    "elbo_steps": st.one_of(st.integers(-2, 5), st.sampled_from([1.5, "2"])),
    "learning_rate": st.sampled_from([0.0, 1e-4, -1.0, float("nan"), float("inf"), "fast"]),
    "post_processor": st.sampled_from([True, False, "normal_quantile", 3]),
}


@settings(max_examples=150, **CASES)
@given(arguments=st.fixed_dictionaries({}, optional=ARGUMENTS), order=st.randoms(use_true_random=False))
def test_arguments(arguments: dict, order: object) -> None:
    """Arguments of any kind make a model that can be fitted, or an error that names one of them."""
    names = list(arguments)
    order.shuffle(names)
    # Two at a time: with more, nearly every case would fail at the first.
    chosen = {name: arguments[name] for name in names[:2]}
    with clear_error(ValueError, TypeError, names="|".join([*chosen, "Passed object", "none"])):
        model = VaeAttention(pre_trained=False, visualizer=False, **chosen)
        assert 1 <= model.model.vae.latent_dim < sum(model.model.backbone.channels)
        assert model.elbo_steps >= 0
        assert model.learning_rate > 0
        assert isinstance(model.elbo_steps, int)
