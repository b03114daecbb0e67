"""Attentions and layers side by side: the figures against other libraries', and what it writes."""

from pathlib import Path

import attentions
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from anomalib.data import ImageBatch
from hypothesis import given, settings
from hypothesis import strategies as st
from image_vaes import LAYERS, SMALL, make
from sklearn.metrics import jaccard_score
from support import make_engine, scores
from torchmetrics.functional.classification import binary_auroc

from anomalib_vae_attention import EmbeddedAD, VaeAttention
from anomalib_vae_attention.image_vae.attention_maps import ATTENTIONS


@settings(max_examples=20, deadline=None)
@given(levels=st.sampled_from([2, 5, 1000]), count=st.integers(2, 60), seed=st.integers(0, 100))
def test_best_iou_is_the_best_jaccard_score_of_all_thresholds(levels: int, count: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    truth, maps = random.random(count) < 0.3, random.integers(levels, size=count).astype(np.float32)
    truth[0] = True
    expected = max(jaccard_score(truth, maps >= threshold) for threshold in np.unique(maps))
    batch = ImageBatch(
        image=torch.zeros(1, 3, 1, 1),
        anomaly_map=torch.from_numpy(maps)[None, None],
        gt_mask=torch.from_numpy(truth)[None, None],
    )
    assert attentions.measure({("a", "b"): [batch]})[0]["best_IoU"] == pytest.approx(expected, abs=1e-6)


@pytest.fixture(scope="module")
def run(small_data: EmbeddedAD, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Train two small models; return a config of their data, and their checkpoints."""
    folder = tmp_path_factory.mktemp("run")
    checkpoints = []
    for seed in range(2):
        torch.manual_seed(seed)
        model = VaeAttention(vae="conv", input_size=(32, 32), latent_dim=4, hidden_dim=16, visualizer=False)
        engine = make_engine(folder / str(seed), max_epochs=2)
        engine.fit(model=model, datamodule=small_data)
        checkpoints.append(engine.best_model_path)
    data = {"class_path": "EmbeddedAD", "init_args": {"root": "nowhere", "train_augmentations": {"class_path": "X"}}}
    (folder / "config.yaml").write_text(yaml.safe_dump({"data": data}))
    return folder / "config.yaml", checkpoints


def test_all_attentions_of_two_checkpoints(
    run: tuple[Path, list[str]], small_data: EmbeddedAD, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, checkpoints = run
    output = tmp_path / "table.csv"
    arguments = ["--config", str(config), "--ckpt_path", *checkpoints, "--layers", "conv1", "conv2"]
    arguments += ["--output", str(output), f"data.init_args.root={small_data.root}"]
    assert attentions.main(arguments) == 0
    table = pd.read_csv(output)
    rows = sum(2 if attention.uses_layers else 1 for attention in ATTENTIONS.values())
    assert len(table) == 2 * rows
    assert table[["image_AUROC", "pixel_AUROC", "best_IoU"]].apply(lambda column: column.between(0, 1)).all().all()
    shown = capsys.readouterr().out
    assert shown.count("+-") == 3 * rows
    # What the model itself gives, before anomalib's post-processing, which clamps, and so makes ties.
    model = VaeAttention.load_from_checkpoint(checkpoints[0])
    found, maps = scores(model, small_data)
    batches = list(small_data.test_dataloader())
    label = torch.cat([batch.gt_label for batch in batches])
    mask = torch.cat([model.pre_processor.transform(batch.gt_mask[:, None]) for batch in batches])
    row = table[(table.checkpoint == checkpoints[0]) & (table.attention == "energy") & (table.layer == "conv2")]
    assert float(row.image_AUROC.iloc[0]) == pytest.approx(float(binary_auroc(found, label)), abs=1e-4)
    expected = float(binary_auroc(maps.flatten(), mask.flatten().int()))
    assert float(row.pixel_AUROC.iloc[0]) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--layers", "conv9"], "'conv9' is no layer of the encoder"),
        (["--ckpt_path", "missing.ckpt"], "There is no file or folder missing.ckpt"),
        (["root=1=2", "nothing"], "are no overrides"),
    ],
)
def test_errors_name_the_argument(
    changed: list[str],
    message: str,
    run: tuple[Path, list[str]],
    small_data: EmbeddedAD,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config, checkpoints = run
    arguments = [
        "--config",
        str(config),
        "--ckpt_path",
        checkpoints[0],
        "--output",
        str(tmp_path / "o.csv"),
    ]
    assert attentions.main([*arguments, f"data.init_args.root={small_data.root}", *changed]) == 1
    assert message in capsys.readouterr().err


def test_a_config_without_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text("model: {class_path: vae_attention}")
    arguments = ["--config", str(tmp_path / "config.yaml"), "--ckpt_path", "x.ckpt"]
    assert attentions.main(arguments) == 1
    assert "has no section data" in capsys.readouterr().err


def test_overrides_may_stand_after_a_list() -> None:
    """An override after --layers is no layer, and one after --ckpt_path no checkpoint."""
    parsed = attentions.parse([
        "--config",
        "a.yaml",
        "--layers",
        "conv1",
        "conv2",
        "data.x=1",
        "--ckpt_path",
        "a.ckpt",
        "y=2",
    ])
    assert (parsed.layers, parsed.ckpt_path) == (["conv1", "conv2"], [Path("a.ckpt")])
    assert parsed.overrides == ["data.x=1", "y=2"]


@pytest.mark.parametrize("name", SMALL)
def test_all_at_once_is_each_alone(name: str) -> None:
    model, image = make(name)
    found = attentions.explain_all(model, image, LAYERS[name])
    layers = {attention: LAYERS[name] if row.uses_layers else [""] for attention, row in ATTENTIONS.items()}
    assert list(found) == [(attention, layer) for attention in layers for layer in layers[attention]]
    for (attention, layer), both in found.items():
        for ours, theirs in zip(both, model.explain(image, attention, [layer] if layer else None), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
