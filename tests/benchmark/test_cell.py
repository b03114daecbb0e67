"""A cell in this process: fitted, scored, kept and loaded again."""

import re
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from anomalib_vae_attention.benchmark import cell as module
from anomalib_vae_attention.benchmark.jobs import RESULT
from anomalib_vae_attention.benchmark.models import build_model, find_model_class, load_model, require_memory
from anomalib_vae_attention.benchmark.plan import BACKBONE, Cell
from anomalib_vae_attention.benchmark.runtimes import eager, to_input
from anomalib_vae_attention.common.atomic_files import read_json, write_json
from anomalib_vae_attention.common.measures import MEASURES
from anomalib_vae_attention.torch_model import DEFAULT_LAYERS


def make_cell(tiny_root: Path, model: str) -> Cell:
    """Make a cell that is kept and not exported, with the layers in another order."""
    folder = str(tiny_root / "parts" / "washer")
    layers = tuple(reversed(DEFAULT_LAYERS))
    return Cell("parts/washer", folder, model, 0, "tf_efficientnet_lite0", layers, 64, keep=True, export=False)


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("model", ["vae_attention:gaussian", "patchcore:0.05", "padim:8", "stfpm:1"])
def test_what_is_kept_gives_the_scores_that_were_measured(model: str, tiny_root: Path, tmp_path: Path) -> None:
    cell = make_cell(tiny_root, model)
    write_json(tmp_path / "cell.json", asdict(cell))
    module.run(tmp_path / "cell.json")
    result = read_json(tmp_path / RESULT)
    assert result["status"] == "done"
    assert (result["train_images"], result["input_size"]) == (5, [96, 96])
    # Every image of the folder, none of them set apart for validation.
    assert result["test_images"] == len(list((tiny_root / "parts" / "washer" / "test").glob("*/*")))
    assert all(0 <= result[metric] <= 1 for metric in MEASURES)
    shown = np.load(tmp_path / "examples.npz")
    loaded = load_model(cell, tmp_path / "model.ckpt")
    image = torch.from_numpy(to_input(module.read_image(Path(str(shown["path"][0])))[None]))
    with torch.no_grad():
        # As in the engine; called as a whole, anomalib's models resize without anti-aliasing, as their exports do.
        output = loaded.model(loaded.pre_processor.transform(image))
    assert output.pred_score.flatten().numpy() == pytest.approx(shown["score"][:1], rel=1e-3)
    assert eager(cell, tmp_path, (1, 96, 96), torch.get_num_threads())(np.zeros((1, 96, 96, 3), np.uint8)) is not None


@pytest.mark.usefixtures("hub")
def test_all_models_have_the_same_pre_processing_and_layers_finest_first(tiny_root: Path) -> None:
    image = torch.rand(1, 3, 96, 96)
    models = [build_model(make_cell(tiny_root, name)) for name in (BACKBONE, "vae_attention", "patchcore", "padim")]
    expected = models[0].pre_processor.transform(image)
    assert expected.shape[-2:] == (64, 64)
    assert all(torch.equal(model.pre_processor.transform(image), expected) for model in models)
    for model in models[2:]:
        assert tuple(model.model.layers) == DEFAULT_LAYERS
        features = model.model.feature_extractor(expected)
        theirs = [features[layer] for layer in DEFAULT_LAYERS]
        # Ours runs in another memory order, which rounds otherwise.
        for one, other in zip(theirs, models[0].backbone(expected), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_uncached_variants_keep_no_features(tiny_root: Path) -> None:
    for name, cache in (("vae_attention:gaussian-uncached", False), ("vae_attention:gaussian", "auto")):
        model = build_model(make_cell(tiny_root, name))
        assert (model.hparams["reference"], model.hparams["cache_features"]) == ("gaussian", cache)


def test_a_coreset_that_does_not_fit_is_skipped(
    tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anomalib_vae_attention.benchmark.models.available_gib", lambda: 1e-3)
    cell = make_cell(tiny_root, "patchcore:0.05")
    write_json(tmp_path / "cell.json", asdict(cell))
    module.run(tmp_path / "cell.json")
    result = read_json(tmp_path / RESULT)
    assert result["status"] == "skipped"
    assert re.fullmatch(r"needs about [\d.]+ GiB for its fit, 0.0 GiB available", result["error"])
    require_memory(make_cell(tiny_root, "padim"))
    require_memory(make_cell(tiny_root, BACKBONE))


def test_any_model_of_anomalib_on_this_backbone_or_its_own() -> None:
    assert find_model_class("stfpm").__name__ == "Stfpm"
    for name in ("stfpmx", "list_models", "components"):
        with pytest.raises(ValueError, match=f"models: '{name}' is not available; anomalib has .*padim"):
            find_model_class(name)
