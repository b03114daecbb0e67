"""What a campaign is given: manifests, arms and arguments."""

from pathlib import Path

import campaign
import pytest
import torch
from stacked.arms import Arm, arguments_of, read_manifest

from anomalib_vae_attention.dsprites import lightning_cli

CONFIGS = Path(__file__).parents[2] / "configs" / "dsprites"


def test_manifest_of_the_documentation() -> None:
    """Every arm is what its name says; files are found from the manifest's place."""
    manifest = read_manifest([CONFIGS / "campaign.yaml", CONFIGS / "beta_vae.yaml"])
    assert manifest.arms[-1] == Arm("beta_vae", CONFIGS / "beta_vae.yaml")
    assert ("ad_apart_1e-4", "factor_vae_1e-4") in manifest.compare
    for arm in manifest.arms:
        cli = lightning_cli.make_cli(arguments_of(arm, 3, Path("somewhere"), []), run=False)
        assert cli.trainer.default_root_dir == "somewhere"
        assert cli.datamodule.batches.seed == 3
        if arm.name != "beta_vae":
            rate = float(arm.name.rpartition("_")[2])
            assert cli.model.learning_rate == cli.model.discriminator_learning_rate == pytest.approx(rate)
            assert (cli.model.attention is not None) == arm.name.startswith("ad_")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1, 2]", "is neither a config nor a manifest"),
        ("arms: [", "manifest.yaml is no YAML: "),
        ("{arms: {a: {config: x.yaml}}, compare: [[a, b]]}", "compare names the arm b; there are a"),
        ("{arms: {a: {config: x.yaml}}, compare: [a]}", "compare must be a list of pairs of arms"),
        ("{arms: {a: {config: x.yaml}}, compair: [[a, a]]}", "a manifest has arms and compare, .* has compair, too"),
        ("{arms: {a: {gamma: 3}}}", "arms must be names, and below each its config"),
        ("arms:", "arms must be names, and below each its config"),
        ("{arms: {a: {config: y.yaml}}}", "the config of the arm a, .*y.yaml, does not exist"),
    ],
)
def test_manifests_that_are_wrong(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").touch()
    (tmp_path / "manifest.yaml").write_text(content)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_manifest([tmp_path / "manifest.yaml"])
    with pytest.raises(ValueError, match="beta_vae is the name of more than one arm"):
        read_manifest([CONFIGS / "beta_vae.yaml"] * 2)


def test_arguments_of_an_arm_that_are_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are told before the first arm is trained."""
    content = f"arms: {{good: {{config: {CONFIGS}/vae.yaml}}, bad: {{config: {CONFIGS}/vae.yaml, model.bheta: 3}}}}"
    (tmp_path / "manifest.yaml").write_text(content)
    assert campaign.main([str(tmp_path / "manifest.yaml"), "--output", str(tmp_path / "out")]) == 1
    printed = capsys.readouterr().err
    assert "bheta" in printed
    assert "the arguments of the arm bad are wrong" in printed.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_gpu_that_there_is_not(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert campaign.main([str(CONFIGS / "vae.yaml"), "--accelerator", "gpu"]) == 1
    assert "--accelerator gpu: PyTorch finds no CUDA device" in capsys.readouterr().err


def test_a_limit_of_time_is_refused_on_a_processor(capsys: pytest.CaptureFixture[str]) -> None:
    assert campaign.main([str(CONFIGS / "vae.yaml"), "--minutes", "5"]) == 1
    assert "--minutes is of --accelerator gpu" in capsys.readouterr().err
