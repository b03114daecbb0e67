"""Bad input, drawn at random: each case ends in the right result or in one clear error."""

import pickle
import re
import shutil
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from anomalib.data.utils import read_image
from anomalib.deploy import TorchInferencer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from support import SIZE, Fitted, folder, make_engine, small_model, write_images

from anomalib_vae_attention import EmbeddedAD, NormalQuantile, VaeAttention
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


@settings(max_examples=200, **CASES)
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
    small: Fitted,
) -> None:
    """A tensor of any shape, type and content is scored, or refused in words about images."""
    image = torch.full((batch, channels, height, width), value, dtype=torch.float32).to(dtype)
    image[..., : height // 2, :] = 0
    names = "image|pixel|channel|size|type|shape|dimension|float"
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
        assert 1 <= model.model.vae.latent_dim < sum(model.model.backbone.channels)
        assert model.fit_procedure.elbo_steps >= 0
        assert model.fit_procedure.learning_rate > 0
        assert isinstance(model.fit_procedure.elbo_steps, int)


@contextmanager
def changed(small: Fitted, change: Callable[[dict], None]) -> Generator[Path, None, None]:
    """Write a checkpoint with something changed."""
    checkpoint = torch.load(small.checkpoint, weights_only=True)
    change(checkpoint)
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "changed.ckpt"
        torch.save(checkpoint, file)
        yield file


def is_the_same(loaded: VaeAttention, small: Fitted) -> None:
    """Demand the state of the fitted model."""
    for name, tensor in small.model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor) or tensor.isnan().all(), name


@settings(max_examples=30, **CASES)
@given(
    place=st.floats(0, 1),
    damage=st.sampled_from(["cut", "flip", "zero", "append"]),
)
def test_damaged_checkpoints(place: float, damage: str, small: Fitted) -> None:
    """A checkpoint that is cut off or changed in any byte is an error, or loads as it was."""
    content = bytearray(small.checkpoint.read_bytes())
    start = min(int(place * len(content)), len(content) - 1)
    if damage == "cut":
        del content[start:]
    elif damage == "flip":
        content[start] ^= 0xFF
    elif damage == "zero":
        content[start : start + 4096] = bytes(len(content[start : start + 4096]))
    else:
        content += b"more"
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "damaged.ckpt"
        file.write_bytes(content)
        with clear_error(ValueError, names=re.escape(str(file))):
            is_the_same(VaeAttention.load_from_checkpoint(file), small)


STATE = st.sampled_from([
    "model.reference.bank",
    "model.reference.half_norm",
    "model.reference.centre",
    "model.reference.scale",
    "model.reference.temperature",
    "model.grid.mean",
    "model.vae.encoder.weight",
    "model.energy_scale",
    "model.score_mean",
    "model.is_fitted",
    "post_processor._image_threshold",
])


@settings(max_examples=25, **CASES)
@given(name=STATE, change=st.sampled_from(["missing", "one less", "one more axis", "scalar", "nan", "inf", "text"]))
def test_changed_checkpoints(name: str, change: str, small: Fitted) -> None:
    """A checkpoint with a tensor that is missing, misshapen or no number is an error that names it."""

    def alter(checkpoint: dict) -> None:
        state = checkpoint["state_dict"]
        tensor = state[name]
        if change == "missing":
            del state[name]
        elif change in {"nan", "inf"} and tensor.is_floating_point():
            state[name] = torch.full_like(tensor, float(change))
        elif change == "one less" and tensor.ndim:
            state[name] = tensor[..., :-1]
        elif change == "one more axis":
            state[name] = tensor[None]
        elif change == "scalar" and tensor.ndim:
            state[name] = tensor.flatten()[0]
        elif change == "text":
            state[name] = "tensor"

    last = re.escape(name.rpartition(".")[2]) + "|shapes of the normal reference"
    with changed(small, alter) as file, clear_error(RuntimeError, ValueError, names=last):
        loaded = VaeAttention.load_from_checkpoint(file).eval()
        if name.startswith("model."):
            is_the_same(loaded, small)
        is_sound(loaded, torch.rand(2, 3, *SIZE))


@settings(max_examples=15, **CASES)
@given(
    name=st.sampled_from(["latent_dim", "layers", "reference", "vae", "unknown"]), value=st.sampled_from(["x", 3, None])
)
def test_changed_hyper_parameters(name: str, value: object, small: Fitted) -> None:
    """A checkpoint with arguments that are none is an error that names one of them, or what does not fit it."""

    def alter(checkpoint: dict) -> None:
        checkpoint["hyper_parameters"][name] = value

    with changed(small, alter) as file, clear_error(ValueError, TypeError, RuntimeError, names=f"{name}|size mismatch"):
        is_sound(VaeAttention.load_from_checkpoint(file).eval(), torch.rand(1, 3, *SIZE))


class Malicious:
    """Writes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple:
        """Pickle as a call."""
        return (Path.write_text, (self.file, "run"))


@pytest.mark.parametrize("place", ["alone", "hyper_parameters", "state_dict", "callbacks", "zip"])
def test_code_in_checkpoints_is_not_run(place: str, small: Fitted, tmp_path: Path) -> None:
    """A pickle that wants to run code is refused, by every way to load a checkpoint, and does not run."""
    file, proof = tmp_path / "malicious.ckpt", tmp_path / "proof"
    write_images(tmp_path / "data", good=1)
    checkpoint = torch.load(small.checkpoint, weights_only=True)
    if place == "alone":
        file.write_bytes(pickle.dumps(Malicious(proof)))
    elif place == "zip":
        torch.save(Malicious(proof), file)
    else:
        checkpoint[place]["model.malicious"] = Malicious(proof)
        torch.save(checkpoint, file)
    refused = r"Weights only|is not a checkpoint"
    with pytest.raises((pickle.UnpicklingError, ValueError), match=refused):
        VaeAttention.load_from_checkpoint(file)
    with pytest.raises((pickle.UnpicklingError, ValueError), match=refused):
        make_engine(tmp_path).predict(model=small_model(), ckpt_path=file, data_path=tmp_path / "data")
    assert not proof.exists()


def test_exported_models_of_others_need_consent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """anomalib's PyTorch export is a pickle: it is only loaded where the user says that it is trusted."""
    monkeypatch.delenv("TRUST_REMOTE_CODE", raising=False)
    proof = tmp_path / "proof"
    torch.save({"model": Malicious(proof)}, tmp_path / "model.pt")
    with pytest.raises((ValueError, RuntimeError, pickle.UnpicklingError)):
        TorchInferencer(tmp_path / "model.pt", device="cpu")
    assert not proof.exists()


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
def test_folders(entries: dict[str, str], small: Fitted) -> None:
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
            batches = small.engine.predict(model=small.model, data_path=root)
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
