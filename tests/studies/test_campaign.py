"""Campaigns: training side by side with scores and checkpoints, and what the comparison says."""

import json
from concurrent.futures import Future
from pathlib import Path
from threading import Timer

import campaign
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from stacked import campaign as stacked_campaign
from stacked import evaluation, launch, runs, scores
from stacked.arms import Schedule, read_manifest
from stacked.campaign import Run, StackedCampaign
from stacked.comparison import compare
from support import small_run

from anomalib_vae_attention.dsprites import callbacks
from anomalib_vae_attention.dsprites.callbacks import load_weights
from anomalib_vae_attention.dsprites.dataset import index_of
from anomalib_vae_attention.dsprites.metrics import Encode
from anomalib_vae_attention.dsprites.models import VAE, FactorVAE

CONFIGS = Path(__file__).parents[2] / "configs" / "dsprites"


@pytest.fixture
def scorer(monkeypatch: pytest.MonkeyPatch) -> scores.Scorer:
    """Score by the mean code of a few images, and test on a few; a round is two steps."""
    for module in (runs, stacked_campaign):
        monkeypatch.setattr(module, "STEPS", 2)
    monkeypatch.setattr(scores, "needed_indices", lambda: np.arange(5))
    others = {"mig": 0.0, "dci_disentanglement_lasso": 0.0}
    monkeypatch.setattr(scores, "score", lambda _, codes: {"factor_vae_score": float(codes.mean()), **others})
    monkeypatch.setattr(evaluation, "RandomBatches", lambda *_: [torch.arange(20)])
    return scores.Scorer(0)


def start(folder: Path, bits: torch.Tensor, scorer: scores.Scorer) -> StackedCampaign:
    """Start a campaign of three runs of two structures."""
    torch.manual_seed(0)
    kinds = {"factor-0": FactorVAE(3, learning_rate=1e-3), "vae-1": VAE(3), "factor-1": FactorVAE(3)}
    started = [Run(folder / name, int(name[-1]), model) for name, model in kinds.items()]
    return StackedCampaign(started, bits, folder, scorer, batch_size=2)


def test_stopped_campaign_goes_on_exactly(tmp_path: Path, bits: torch.Tensor, scorer: scores.Scorer) -> None:
    """Weights and rows are those of one that was never stopped; what came after the checkpoint is done again."""
    schedule = Schedule(6, 2, 6)
    whole = start(tmp_path / "whole", bits, scorer)
    assert not whole.resume()
    whole.fit(schedule)
    stopped = start(tmp_path / "parts", bits, scorer)
    stopped.fit(Schedule(2, 2, 2))
    stopped.fit(schedule._replace(save_every=0), is_late=lambda: stopped.steps >= 4)
    assert stopped.steps == 4
    resumed = start(tmp_path / "parts", bits, scorer)
    assert resumed.resume()
    assert resumed.steps == 2
    resumed.fit(schedule)
    for name in ("factor-0", "factor-1", "vae-1"):
        rows = [(tmp_path / part / name / "scores.csv").read_text() for part in ("whole", "parts")]
        assert rows[0] == rows[1]
        assert pd.read_csv(tmp_path / "parts" / name / "scores.csv")["step"].tolist() == [2, 4, 6]
        weights = [torch.load(tmp_path / part / name / "weights.ckpt")["state_dict"] for part in ("whole", "parts")]
        assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())
    campaign.collect(tmp_path / "parts")
    results = pd.read_csv(tmp_path / "parts" / "results.csv")
    assert results["model"].tolist() == ["FactorVAE", "FactorVAE", "VAE"]
    assert (results["step"] == 6).all()
    # What traverse reads: the weights without a discriminator.
    model = FactorVAE(3)
    load_weights(model, tmp_path / "parts" / "factor-0" / "weights.ckpt")
    stack = next(stack for stack in resumed.stacks if stack.discriminator)
    # The one of the greater learning rate.
    means = evaluation.encode_means(stack, np.arange(4))[1]
    images = evaluation.unpack(bits[:4])[:, None]
    np.testing.assert_allclose(model(images).detach(), means, rtol=1e-4, atol=1e-5)


def test_start_of_a_campaign(
    tmp_path: Path, sprites_root: Path, scorer: scores.Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the command does on a GPU, here on a processor; a second call finds the checkpoint, and is late at once."""
    monkeypatch.setattr(launch, "Scorer", lambda _: scorer)
    arms = read_manifest([CONFIGS / "vae.yaml", CONFIGS / "beta_vae.yaml"]).arms
    more = ["--data.root", str(sprites_root), "--data.batch_size", "2"]
    folders = launch.run_side_by_side(arms, [0], Schedule(2, 2, 2), tmp_path, more, device="cpu")
    assert [folder.name for folder in folders] == ["vae-0", "beta_vae-0"]
    late = launch.run_side_by_side(arms, [0], Schedule(4, 2, 2), tmp_path, more, minutes=0, device="cpu")
    assert pd.read_csv(late[0] / "scores.csv")["step"].tolist() == [2]
    arms[0] = arms[0]._replace(overrides=("--data.batch_size=3",))
    with pytest.raises(ValueError, match="side by side share their data and the size of their batches"):
        launch.run_side_by_side(arms, [0], Schedule(4, 2, 2), tmp_path, more[:2], device="cpu")


@pytest.mark.parametrize("is_copy", [True, False])
def test_seeds_that_are_added_later_join_those_that_are_done(
    tmp_path: Path,
    sprites_root: Path,
    scorer: scores.Scorer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    is_copy: bool,
) -> None:
    """Of both arms two seeds, a call each; what is not done is in no comparison, and keeps others from its folder."""
    monkeypatch.setattr(launch, "Scorer", lambda _: scorer)
    manifest = read_manifest([CONFIGS / "vae.yaml", CONFIGS / "beta_vae.yaml"])
    more = ["--data.root", str(sprites_root), "--data.batch_size", "2"]

    def call(seeds: list[int], steps: int) -> None:
        launch.run_side_by_side(manifest.arms, seeds, Schedule(steps, 2, 2), tmp_path, more, device="cpu")
        campaign.collect(tmp_path)

    call([0], 2)
    before = (tmp_path / "vae-0" / "scores.csv").stat().st_mtime_ns
    if is_copy:
        (tmp_path / "stacked.ckpt").unlink()
    call([0, 1], 2)
    assert (tmp_path / "vae-0" / "scores.csv").stat().st_mtime_ns == before
    campaign.print_tables(tmp_path, [("beta_vae", "vae")])
    assert pd.read_csv(tmp_path / "comparison.csv")["seeds"].tolist() == [2] * 4
    with pytest.raises(ValueError, match="name another output folder"):
        call([2], 4)
    (tmp_path / "stacked.ckpt").unlink()
    call([2], 4)
    capsys.readouterr()
    campaign.print_tables(tmp_path, [])
    assert "vae-0 is left out: it has done 2 of 4 steps" in capsys.readouterr().out


def test_checkpoint_of_other_runs(tmp_path: Path, bits: torch.Tensor, scorer: scores.Scorer) -> None:
    start(tmp_path, bits, scorer).save()
    other = start(tmp_path, bits, scorer)
    other.members[0].pop()
    with pytest.raises(ValueError, match=r"holds the runs .* name another output folder"):
        other.resume()
    for schedule in (Schedule(3), Schedule(4, 0), Schedule(4, 2, -2)):
        with pytest.raises(ValueError, match="multiples of 2, and only save_every may be 0"):
            other.fit(schedule)


def test_rows_are_written_before_the_checkpoint(tmp_path: Path, bits: torch.Tensor, scorer: scores.Scorer) -> None:
    """A run that is killed right after it lacks none, however long the scores take."""
    stacked = start(tmp_path, bits, scorer)
    late: list[Future[dict[str, float]]] = []
    stacked.scorer.submit = lambda _: late.append(Future()) or late[-1]
    stacked.score()
    assert not list(tmp_path.glob("*/scores.csv"))
    Timer(0.2, lambda: [future.set_result({"mig": 0.5}) for future in late]).start()
    stacked.save()
    assert [pd.read_csv(file)["mig"].tolist() for file in tmp_path.glob("*/scores.csv")] == [[0.5]] * 3


def test_looked_up_codes_give_the_scores_of_the_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """The images that are encoded beforehand are those that the metrics ask for."""

    def add_up(data: scores.CodeTable, encode: Encode, *_: object, boosting: bool) -> dict[str, float]:
        assert not boosting
        torch.manual_seed(0)
        return {"sum": float(encode(data.images_of(data.sample_factors(9))).sum())}

    monkeypatch.setattr(scores, "all_metrics", add_up)
    needed = scores.needed_indices()
    torch.manual_seed(0)
    drawn = index_of(scores.CodeTable(needed, np.empty(0)).sample_factors(9)).numpy()
    assert set(needed) == set(drawn)
    codes = np.stack([needed, 2 * needed], 1).astype(np.float32)
    assert scores.score(needed, codes)["sum"] == pytest.approx(3.0 * drawn.sum())
    assert scores.score(needed, codes * np.nan) == {}


def test_comparison_by_hand() -> None:
    """Three seeds that all gain: of eight signs, two are as extreme; a seed that only one arm has does not count."""
    table = pd.DataFrame({
        "config": ["ad"] * 4 + ["factor"] * 3,
        "seed": [0, 1, 2, 3, 2, 1, 0],
        "factor_vae_score": [0.8, 0.9, 0.7, 0.1, 0.6, 0.7, 0.5],
    })
    (row,) = compare(table, [("ad", "factor")]).to_dict("records")
    assert row["seeds"] == 3
    assert row["difference"] == pytest.approx(0.2)
    assert row["p"] == pytest.approx(2 / 8)
    # Student's 97.5 % quantile with two degrees of freedom is 4.3027.
    half = 4.3027 * 0.1 / 3**0.5
    assert (row["low"], row["high"]) == pytest.approx((0.2 - half, 0.2 + half), abs=1e-4)
    both = compare(table, [("ad", "factor"), ("factor", "ad")])
    assert both.iloc[-1]["arm"] == "all"
    assert both.iloc[-1]["difference"] == pytest.approx(0)


def test_campaign(
    tmp_path: Path, sprites_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model with every seed; what is done is not done again."""
    scores_found = {"factor_vae_score": 0.5, "mig": 0.25, "dci_disentanglement_lasso": 0.125}
    for name in ("quick_metrics", "all_metrics"):
        monkeypatch.setattr(callbacks, name, lambda *_: scores_found)
    folder = tmp_path / "campaign"
    arguments = [str(CONFIGS / "vae.yaml"), "--seeds", "0", "1", "--max_steps", "2", "--output", str(folder)]
    arguments += small_run(sprites_root)
    assert campaign.main(arguments) == 0
    courses = pd.read_csv(folder / "scores.csv")
    assert courses[["config", "seed", "step"]].to_numpy().tolist() == [
        ["vae", seed, step] for seed in (0, 1) for step in (1, 2)
    ]
    # Other seeds, other weights and batches.
    assert courses["reconstruction"].nunique() == 4
    assert "0.500 +- 0.000 (2 seeds)" in capsys.readouterr().out
    for name in ("disentanglement.png", "course.png"):
        with Image.open(folder / name) as picture:
            assert np.asarray(picture).std() > 0
    (folder / "vae-0" / "checkpoints" / "last.ckpt").unlink()
    assert campaign.main(arguments) == 0
    assert not (folder / "vae-0" / "checkpoints" / "last.ckpt").exists()


def test_a_run_that_fails_does_not_stop_the_others(
    tmp_path: Path, sprites_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor is there a row of scores in runs this short: the test alone makes the table."""
    monkeypatch.setattr(callbacks, "all_metrics", lambda *_: {"factor_vae_score": 0.5, "mig": 0.25})
    content = f"arms: {{far: {{config: {CONFIGS}/vae.yaml, model.init_args.learning_rate: 1.0e+30}}}}"
    (tmp_path / "far.yaml").write_text(content)
    arguments = [str(tmp_path / "far.yaml"), str(CONFIGS / "vae.yaml"), "--seeds", "0", "--max_steps", "2"]
    arguments += ["--output", str(tmp_path / "out"), *small_run(sprites_root), "--scores.every_n_steps", "9"]
    assert campaign.main(arguments) == 1
    assert "far-0 failed, the others go on: the loss is nan at step 1" in capsys.readouterr().err
    assert pd.read_csv(tmp_path / "out" / "results.csv")[["config", "step"]].to_numpy().tolist() == [["vae", 2]]
    assert not (tmp_path / "out" / "scores.csv").exists()


def test_runs_of_a_campaign_that_are_not_done_are_in_the_table(tmp_path: Path) -> None:
    """The table of all courses has them, that of the tests has not; seeds and configs come from the folders' names."""
    row = {"step": 5, "factor_vae_score": 0.5, "mig": 0.1, "dci_disentanglement_lasso": 0.2, "reconstruction": 9.0}
    for name, score in (("vae-0", 0.5), ("my-vae-12", 0.75)):
        (tmp_path / name).mkdir()
        callbacks.add_scores(tmp_path / name / "scores.csv", {**row, "factor_vae_score": score})
    (tmp_path / "vae-0" / "test.json").write_text(json.dumps({"model": "VAE", **row}))
    campaign.collect(tmp_path)
    table = pd.read_csv(tmp_path / "scores.csv")
    assert table[["config", "seed", "factor_vae_score"]].to_numpy().tolist() == [["my-vae", 12, 0.75], ["vae", 0, 0.5]]
    assert pd.read_csv(tmp_path / "results.csv")["config"].tolist() == ["vae"]
