"""Checkpoints are whole or not there, and damaged ones are not loaded."""

import contextlib
import shutil
from pathlib import Path

import pytest
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from support import clear_error, folder, make_engine, small_model, write_images

from anomalib_vae_attention import EmbeddedAD
from anomalib_vae_attention.anomalib_support.whole_checkpoints import WholeCheckpointIO, require_undamaged


def half(_source: str, target: str) -> None:
    """Copy to another disk, and be killed in the middle of it."""
    Path(target).write_bytes(b"half")
    raise KeyboardInterrupt


def test_a_checkpoint_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interruption while a checkpoint is moved from the folder for temporary files leaves the one before."""
    file = tmp_path / "model.ckpt"
    content = {"epoch": 1, "hyper_parameters": {"latent_dim": 2, "reference": "gaussian"}}
    WholeCheckpointIO().save_checkpoint(content, file)
    monkeypatch.setattr(shutil, "move", half)
    with pytest.raises(KeyboardInterrupt):
        WholeCheckpointIO().save_checkpoint({**content, "epoch": 2}, file)
    monkeypatch.undo()
    assert WholeCheckpointIO().load_checkpoint(file) == content
    assert list(tmp_path.iterdir()) == [file]


def test_the_engine_writes_whole_checkpoints(small_data: EmbeddedAD, tmp_path: Path) -> None:
    """A fit uses it, and leaves a way that the user chose alone."""
    engine = make_engine(tmp_path / "default")
    engine.fit(model=small_model(), datamodule=small_data)
    assert isinstance(engine.trainer.strategy.checkpoint_io, WholeCheckpointIO)
    chosen = TorchCheckpointIO()
    engine = make_engine(tmp_path / "chosen", plugins=[chosen])
    engine.fit(model=small_model(), datamodule=small_data)
    assert engine.trainer.strategy.checkpoint_io is chosen


def test_a_damaged_checkpoint_is_not_used(small_data: EmbeddedAD, tmp_path: Path) -> None:
    """The engine, too, refuses a checkpoint with one wrong byte, and names it."""
    engine = make_engine(tmp_path)
    engine.fit(model=small_model(), datamodule=small_data)
    file = Path(engine.best_model_path)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.ckpt has changed since it was written"):
        make_engine(tmp_path).test(model=small_model(), datamodule=small_data, ckpt_path=file)
    require_undamaged("s3://bucket/model.ckpt")
    with pytest.raises(FileNotFoundError):
        require_undamaged(tmp_path / "missing.ckpt")


@pytest.mark.parametrize("bit", [0, 7])
def test_every_damage_is_found(bit: int, tmp_path: Path) -> None:
    """With one bit changed, at any place, a checkpoint is refused by name, by torch, or is what it was."""
    file, content = tmp_path / "model.ckpt", {"a": torch.arange(6.0), "text": "b"}
    torch.save(content, file)
    whole, refused = file.read_bytes(), 0
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << bit
        file.write_bytes(damaged)
        with clear_error(ValueError, names=r"model\.ckpt (is not a checkpoint|has changed)"):
            require_undamaged(file)
            with contextlib.suppress(RuntimeError, KeyError, EOFError):
                loaded = torch.load(file, weights_only=True)
                assert torch.equal(loaded["a"], content["a"])
                assert loaded["text"] == "b"
            continue
        refused += 1
    assert refused > 0.4 * len(whole)


def test_predictions_of_sixteen_bits_are_refused(tmp_path: Path) -> None:
    """Images of 16 bits, which anomalib would read as white, end a fit with an error that names one."""
    from PIL import Image

    write_images(tmp_path / "data", good=1)
    Image.fromarray(torch.full((64, 64), 5000, dtype=torch.uint16).numpy()).save(tmp_path / "data" / "good" / "1.png")
    with pytest.raises(ValueError, match=r"1\.png would be read wrongly: it has levels from 5000 to 5000"):
        make_engine(tmp_path / "results").fit(
            model=small_model(),
            datamodule=folder(tmp_path / "data", normal_test_dir="good"),
        )
