"""The link ``latest`` leads to a run with a model, whatever comes before, fails or is interrupted."""

from pathlib import Path

import pytest
from support import folder, make_engine, small_model, write_images

from anomalib_vae_attention import VaeAttention


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_images(tmp_path / "data")
    return tmp_path / "data"


def runs(tmp_path: Path) -> Path:
    return tmp_path / "results" / "VaeAttention" / "given"


def fit(tmp_path: Path, data: Path, model: VaeAttention | None = None) -> None:
    make_engine(tmp_path / "results").fit(model=model or small_model(), datamodule=folder(data))


def test_predictions_before_the_first_training(data: Path, tmp_path: Path) -> None:
    fit(tmp_path, data)
    checkpoint = (runs(tmp_path) / "latest").resolve() / "weights" / "lightning" / "model.ckpt"
    elsewhere = tmp_path / "elsewhere"
    model = small_model(visualizer=True)
    # A folder in place of the checkpoint, too.
    make_engine(elsewhere).predict(model, data_path=data / "bad", ckpt_path=checkpoint.parents[2])
    made = elsewhere / "VaeAttention"
    assert sorted(path.name for path in made.iterdir()) == ["without_training"]
    make_engine(elsewhere).fit(model=small_model(), datamodule=folder(data))
    assert (made / "given" / "latest" / "weights" / "lightning" / "model.ckpt").is_file()


def test_a_real_folder_and_a_disk_without_links(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (runs(tmp_path) / "latest").mkdir(parents=True)
    (runs(tmp_path) / "latest" / "old.png").touch()
    fit(tmp_path, data)
    assert (runs(tmp_path) / "latest").resolve() == runs(tmp_path) / "v0"
    assert (runs(tmp_path) / "latest-2" / "old.png").is_file()

    def refuse(self: Path, *_args: object, **_options: object) -> None:
        raise OSError(1, "Operation not permitted", str(self))

    monkeypatch.setattr(Path, "symlink_to", refuse)
    fit(tmp_path, data)
    assert (runs(tmp_path) / "v1" / "weights" / "lightning" / "model.ckpt").is_file()


@pytest.mark.parametrize("trained_before", [False, True])
def test_an_interrupted_training(
    trained_before: bool, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    latest = runs(tmp_path) / "latest"
    if trained_before:
        fit(tmp_path, data)
    seen = []

    def interrupt(self: VaeAttention, *_args: object) -> None:
        del self
        # As after a kill, which leaves no time to tidy up.
        seen.append(latest.resolve().name if latest.is_symlink() else None)
        raise RuntimeError

    with monkeypatch.context() as patch:
        patch.setattr(VaeAttention, "training_step", interrupt)
        with pytest.raises(RuntimeError):
            fit(tmp_path, data)
    assert seen == ["v0" if trained_before else None]
    fit(tmp_path, data)
    assert (latest / "weights" / "lightning" / "model.ckpt").is_file()
    assert latest.resolve().name == ("v2" if trained_before else "v1")
