"""Bad checkpoints: each loads as it was, or ends in one error that names what is wrong, and none runs code."""

import pickle
import re
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from anomalib.deploy import TorchInferencer
from hypothesis import given, settings
from hypothesis import strategies as st
from support import CASES, SIZE, Fitted, clear_error, is_sound, make_engine, small_model, write_images

from anomalib_vae_attention import VaeAttention


@contextmanager
def changed(fitted_small: Fitted, change: Callable[[dict], None]) -> Generator[Path, None, None]:
    """Write a checkpoint with something changed."""
    checkpoint = torch.load(fitted_small.checkpoint, weights_only=True)
    change(checkpoint)
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "changed.ckpt"
        torch.save(checkpoint, file)
        yield file


def is_the_same(loaded: VaeAttention, fitted_small: Fitted) -> None:
    """Demand the state of the fitted model."""
    for name, tensor in fitted_small.model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor) or tensor.isnan().all(), name


@settings(max_examples=30, **CASES)
@given(
    place=st.floats(0, 1),
    damage=st.sampled_from(["cut", "flip", "zero", "append"]),
)
def test_damaged_checkpoints(place: float, damage: str, fitted_small: Fitted) -> None:
    """A checkpoint that is cut off or changed in any byte is an error, or loads as it was."""
    content = bytearray(fitted_small.checkpoint.read_bytes())
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
            is_the_same(VaeAttention.load_from_checkpoint(file), fitted_small)


STATE = st.sampled_from([
    "model.reference.bank",
    "model.reference.half_norm",
    "model.reference.centre",
    "model.reference.scale",
    "model.reference.temperature",
    "model.grid.mean",
    "model.vae.encoder.weight",
    "model.energy_scale",
    "model.noise_weight",
    "model.border_weight",
    "model.is_fitted",
    "post_processor._image_threshold",
])


@settings(max_examples=25, **CASES)
@given(name=STATE, change=st.sampled_from(["missing", "one less", "one more axis", "scalar", "nan", "inf", "text"]))
def test_changed_checkpoints(name: str, change: str, fitted_small: Fitted) -> None:
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
    with changed(fitted_small, alter) as file, clear_error(RuntimeError, ValueError, names=last):
        loaded = VaeAttention.load_from_checkpoint(file).eval()
        if name.startswith("model."):
            is_the_same(loaded, fitted_small)
        is_sound(loaded, torch.rand(2, 3, *SIZE))


@settings(max_examples=15, **CASES)
@given(
    name=st.sampled_from(["latent_dim", "layers", "reference", "vae", "unknown"]), value=st.sampled_from(["x", 3, None])
)
def test_changed_hyper_parameters(name: str, value: object, fitted_small: Fitted) -> None:
    """A checkpoint with arguments that are none is an error that names one of them, or what does not fit it."""

    def alter(checkpoint: dict) -> None:
        checkpoint["hyper_parameters"][name] = value

    with (
        changed(fitted_small, alter) as file,
        clear_error(ValueError, TypeError, RuntimeError, names=f"{name}|size mismatch"),
    ):
        is_sound(VaeAttention.load_from_checkpoint(file).eval(), torch.rand(1, 3, *SIZE))


class Malicious:
    """Writes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple:
        """Pickle as a call."""
        return (Path.write_text, (self.file, "run"))


@pytest.mark.parametrize("place", ["alone", "hyper_parameters", "state_dict", "callbacks", "zip"])
def test_code_in_checkpoints_is_not_run(place: str, fitted_small: Fitted, tmp_path: Path) -> None:
    """A pickle that wants to run code is refused, by every way to load a checkpoint, and does not run."""
    file, proof = tmp_path / "malicious.ckpt", tmp_path / "proof"
    write_images(tmp_path / "data", good=1)
    checkpoint = torch.load(fitted_small.checkpoint, weights_only=True)
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
