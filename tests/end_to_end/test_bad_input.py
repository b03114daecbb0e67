"""Bad input, drawn at random: each case ends in the right result or in one clear error."""

import re
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from anomalib.data.utils import read_image
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support import CASES, SIZE, Fitted, clear_error, folder, is_sound, make_engine, small_model, write_images

from anomalib_vae_attention import NormalQuantile, VaeAttention
from anomalib_vae_attention.anomalib_support.unreadable_images import require_as_shown


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


@settings(max_examples=200, **CASES)
@given(picture=pictures())
def test_image_files(picture: tuple[Image.Image, str], fitted_small: Fitted) -> None:
    """An image file of any mode, size and content is scored, or refused by name where anomalib would misread it."""
    image, ending = picture
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / f"part.{ending}"
        image.save(file)
        levels = np.asarray(image, dtype=float)
        misread = image.mode == "F" or levels.max() > 255
        if misread:
            with pytest.raises(ValueError, match=re.escape(str(file))):
                require_as_shown([file])
            return
        require_as_shown([file])
        is_sound(fitted_small.model, read_image(file, as_tensor=True)[None])


@settings(max_examples=200, **CASES)
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
    fitted_small: Fitted,
) -> None:
    """A tensor of any shape, type and content is scored, or refused in words about images."""
    image = torch.full((batch, channels, height, width), value, dtype=torch.float32).to(dtype)
    image[..., : height // 2, :] = 0
    names = "image|pixel|channel|size|type|shape|dimension|float"
    with clear_error(ValueError, RuntimeError, TypeError, names=names):
        is_sound(fitted_small.model, image)
        bad = ~image.isfinite().flatten(1).all(1)
        with torch.no_grad():
            assert (fitted_small.model(image[bad]).pred_score == 1).all()


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
    "kl_weight": st.sampled_from([1.0, 0.5, -1.0, "2"]),
    "learning_rate": st.sampled_from([0.0, 1e-4, -1.0, float("nan"), float("inf"), "fast"]),
    "post_processor": st.sampled_from([True, False, "normal_quantile", 3]),
}


@settings(max_examples=90, **CASES)
@given(arguments=st.fixed_dictionaries({}, optional=ARGUMENTS), order=st.randoms(use_true_random=False))
def test_arguments(arguments: dict, order: object) -> None:
    """Arguments of any kind make a model that can be fitted, or an error that names one of them."""
    names = list(arguments)
    order.shuffle(names)
    # Two at a time: with more, nearly every case would fail at the first.
    chosen = {name: arguments[name] for name in names[:2]}
    with clear_error(ValueError, TypeError, names="|".join([*chosen, "Passed object"])):
        model = VaeAttention(pre_trained=False, visualizer=False, **chosen)
        assert 1 <= model.model.vae.latent_dim < sum(model.model.grid.channels)
        assert model.hparams["kl_weight"] == 1


NAMES = st.sampled_from([
    "a.png",
    "B.PNG",
    "ünï cödé 😀.png",
    "no ending",
    "text.txt",
    ".hidden.png",
    "a.b.c.png",
    "x" * 120 + ".png",
])
CONTENTS = st.sampled_from(["image", "link", "image", "dangling", "text", "empty", "folder"])


@settings(max_examples=40, **CASES)
@given(entries=st.dictionaries(NAMES, CONTENTS, max_size=4))
def test_folders(entries: dict[str, str], fitted_small: Fitted) -> None:
    """A folder of whatever is predicted image by image, or is an error that names the folder or the file."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "parts"
        (root / "nested").mkdir(parents=True)
        picture = Path(scratch) / "picture"
        Image.new("RGB", (80, 60), "grey").save(picture, "png")
        images = set()
        for name, content in entries.items():
            if content == "image":
                shutil.copy(picture, root / name)
            elif content in {"link", "dangling"}:
                (root / name).symlink_to(picture if content == "link" else root / "nowhere")
            elif content == "folder":
                (root / name).mkdir()
            else:
                (root / name).write_text("" if content == "empty" else "no image", encoding="utf-8")
            images |= {name} if content in {"image", "link"} and name.lower().endswith(".png") else set()
        names = "|".join(re.escape(str(root / name)) for name in ["", *entries])
        with clear_error(OSError, ValueError, names=names):
            batches = fitted_small.engine.predict(model=fitted_small.model, data_path=root)
            assert {Path(path).name for batch in batches for path in batch.image_path} == images
            assert all(batch.pred_score.isfinite().all() for batch in batches)


@settings(max_examples=15, **CASES)
@given(
    good=st.integers(0, 3),
    bad=st.integers(0, 2),
    damage=st.sampled_from(["", "", "text", "cut", "16 bit"]),
    post_processor=st.booleans(),
)
def test_training_folders(good: int, bad: int, damage: str, post_processor: bool) -> None:
    """A training folder with few images, none, or one that cannot be read is fitted, or is an error that says why."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "data"
        write_images(root, good=good, bad=bad, size=(40, 56))
        file = root / "good" / "0.png"
        if damage and good:
            if damage == "16 bit":
                Image.fromarray(np.full((40, 56), 4000, np.uint16)).save(file)
            else:
                file.write_bytes(b"text" if damage == "text" else file.read_bytes()[:100])
        model = small_model(post_processor=NormalQuantile(0.4) if post_processor else True)
        names = f"{re.escape(str(file))}|{re.escape(str(root))}|there must be two or more|no|No"
        with clear_error(OSError, ValueError, RuntimeError, names=names):
            datamodule = folder(root, normal_test_dir="good", val_split_mode="same_as_test")
            make_engine(Path(scratch) / "results").fit(model=model, datamodule=datamodule)
            assert not damage
            is_sound(model.eval(), torch.rand(1, 3, *SIZE))
