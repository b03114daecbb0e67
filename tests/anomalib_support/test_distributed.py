"""Several processes: as one, with shares of unequal size; a process that dies; each image predicted once."""

import os
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from support import SIZE, folder, make_engine, small_model, write_images
from torch.utils.data import DataLoader, DistributedSampler

from anomalib_vae_attention import EmbeddedAD, NormalQuantile, VaeAttention
from anomalib_vae_attention.anomalib_support.distributed import Anchor, OwnImages, agree_on_folder, gather, interleave
from anomalib_vae_attention.fit.feature_statistics import FeatureMoments
from anomalib_vae_attention.reference import REFERENCES

IMAGES = 7


def run(*arguments: object, seconds: int = 240) -> subprocess.CompletedProcess[str]:
    """Run the script that fits on several processes."""
    script = Path(__file__).with_name("distributed_run.py")
    command = [sys.executable, str(script), *map(str, arguments)]
    path = os.pathsep.join([str(script.parents[1]), os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds, check=False)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write an odd number of good images."""
    root = tmp_path_factory.mktemp("data")
    write_images(root, good=IMAGES)
    return root


@pytest.fixture(scope="module")
def fitted_by_two(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fit with each reference on two processes, and predict on them."""
    output = tmp_path_factory.mktemp("two")
    finished = run(data, output, "--quantile", "--references", *REFERENCES)
    assert finished.returncode == 0, finished.stderr[-3000:]
    return output


def is_as_one(output: Path, processes: int, reference: str, data: Path, alone_in: Path) -> None:
    """Demand the state, the scores and the thresholds of a fit by one process, to 1e-5, of all processes."""
    post_processor = NormalQuantile(0.4, held_out=0.3)
    alone = small_model(reference=reference, post_processor=post_processor)
    datamodule = folder(data, normal_test_dir="good", train_batch_size=2)
    make_engine(alone_in).fit(model=alone, datamodule=datamodule)
    image = torch.rand(4, 3, *SIZE)
    with torch.no_grad():
        expected = alone.eval()(image)
    states = [torch.load(output / f"{reference}-{rank}.pt", weights_only=True) for rank in range(processes)]
    for state in states:
        assert state.keys() == alone.state_dict().keys()
        for name, tensor in states[0].items():
            assert torch.equal(tensor, state[name]), name
    other = small_model(reference=reference, post_processor=NormalQuantile())
    other.load_state_dict(states[0])
    with torch.no_grad():
        found = other.eval()(image)
    for name in ("pred_score", "anomaly_map"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=0, atol=1e-5)
    for name in ("image_threshold", "pixel_threshold"):
        threshold = getattr(other.post_processor, name)
        torch.testing.assert_close(threshold, getattr(post_processor, name), rtol=0, atol=2e-5)
    if reference == "exemplars":
        # Two of the seven were held out, and none was counted twice.
        assert other.model.reference.bank.shape[2] == IMAGES - 2


def predicted(output: Path, processes: int) -> list[list[str]]:
    """Return the images that each process predicted."""
    return [(output / f"predicted-{rank}.txt").read_text(encoding="utf-8").split() for rank in range(processes)]


@pytest.mark.parametrize("reference", REFERENCES)
def test_two_processes_are_as_one(reference: str, data: Path, fitted_by_two: Path, tmp_path: Path) -> None:
    is_as_one(fitted_by_two, 2, reference, data, tmp_path)


def test_three_processes_with_uneven_shares_are_as_one(data: Path, tmp_path: Path) -> None:
    """Seven images are dealt out as 3, 2 and 2, of which the sampler makes 3 each; so it does in prediction."""
    finished = run(data, tmp_path, "--quantile", "--processes", 3, seconds=480)
    assert finished.returncode == 0, finished.stderr[-3000:]
    is_as_one(tmp_path, 3, "exemplars", data, tmp_path / "alone")
    shares = predicted(tmp_path, 3)
    assert [len(share) for share in shares] == [3, 2, 2]
    assert sorted(name for share in shares for name in share) == [f"{index}.png" for index in range(IMAGES)]


def test_one_folder_for_all(fitted_by_two: Path) -> None:
    """Processes write to one folder, and the link to the latest run leads to the checkpoint."""
    for reference in REFERENCES:
        (latest,) = (fitted_by_two / reference).rglob("latest")
        assert (latest / "weights" / "lightning" / "model.ckpt").is_file()
        assert len([path for path in latest.parent.iterdir() if not path.is_symlink()]) == 1


def test_each_image_is_predicted_once(fitted_by_two: Path) -> None:
    """Two processes share the images of a folder: none is predicted twice, and every picture is written."""
    names = Counter(name for share in predicted(fitted_by_two, 2) for name in share)
    assert names == {f"{index}.png": 1 for index in range(IMAGES)}
    written = [path.name for path in fitted_by_two.rglob("images/**/*.png")]
    assert sorted(written) == sorted(names)


def test_checkpoint_is_that_of_one_process(fitted_by_two: Path) -> None:
    """The checkpoint of two processes loads like any other and has no parameter that only several processes need."""
    for checkpoint in fitted_by_two.rglob("*.ckpt"):
        VaeAttention.load_from_checkpoint(checkpoint)
        assert not [name for name in torch.load(checkpoint, weights_only=True)["state_dict"] if "anchor" in name]


def test_a_resumed_training_ends_where_an_uninterrupted_one_does(data: Path, tmp_path: Path) -> None:
    """An image VAE that goes on from a checkpoint, under another seed, ends with the same weights, to the last bit."""
    finished = run(data, tmp_path, "--resume")
    assert finished.returncode == 0, finished.stderr[-3000:]
    states = [torch.load(tmp_path / f"{name}-{rank}.pt") for name in ("whole", "resumed") for rank in range(2)]
    for state in states[1:]:
        for name, tensor in states[0].items():
            assert torch.equal(tensor, state[name]), name


@pytest.mark.parametrize("rank", [0, 1])
def test_a_dead_process_ends_the_job(rank: int, data: Path, tmp_path: Path) -> None:
    """A process that is killed in the middle of training ends the job with an error, and leaves no checkpoint."""
    started = time.monotonic()
    finished = run(data, tmp_path, "--die", rank, seconds=120)
    assert finished.returncode != 0
    assert time.monotonic() - started < 100
    assert not list(tmp_path.rglob("*.ckpt"))
    assert not list(tmp_path.rglob("*.pt"))


def test_batches_are_exchanged_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images dealt to three processes come out in their order, in each, also where one has fewer batches or none."""
    dealt = [torch.arange(7)[rank::3].split(2) for rank in range(2)] + [()]
    barrier, place, slots = threading.Barrier(3, timeout=10), threading.local(), [None] * 3

    def gather_threads(part: object) -> list:
        slots[place.rank] = part
        barrier.wait()
        parts = list(slots)
        barrier.wait()
        return parts

    def exchange(rank: int) -> list[list[int]]:
        place.rank = rank
        return [batch.tolist() for batch in interleave(dealt[rank])]

    monkeypatch.setattr("anomalib_vae_attention.anomalib_support.distributed.gather", gather_threads)
    monkeypatch.setattr("anomalib_vae_attention.anomalib_support.distributed.world_size", lambda: 3)
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(exchange, range(3)))
    assert results == [[[0, 1, 3, 4], [6]]] * 3


@pytest.mark.parametrize(("images", "own"), [(7, [4, 3]), (6, [3, 3]), (1, [1, 0])])
def test_repeated_images_are_known(images: int, own: list[int]) -> None:
    """Of the images that a DistributedSampler deals out, those that it repeats are not a process's own."""
    for rank in range(2):
        sampler = DistributedSampler(range(images), num_replicas=2, rank=rank, shuffle=False)
        counter = OwnImages(DataLoader(range(images), sampler=sampler, batch_size=2))
        sizes = [len(batch) for batch in torch.tensor(list(sampler)).split(2)]
        assert sum(counter.among(size) for size in sizes) == own[rank]


def test_one_process_changes_nothing(small_data: EmbeddedAD) -> None:
    """With one process every image is its own, and nothing is exchanged."""
    batches = [torch.zeros(2, 3), torch.ones(1, 3)]
    assert [id(batch) for batch in interleave(batches)] == [id(batch) for batch in batches]
    assert gather("part") == ["part"]
    assert OwnImages(small_data.train_dataloader()).among(5) == 5
    trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    before = trainer.default_root_dir
    agree_on_folder(trainer)
    assert trainer.default_root_dir == before


def test_moments_of_shares_add_up() -> None:
    """Sums of shares, one of them empty, give the moments of all features, also far from 0."""
    features = torch.randn(7, 5, 7, 6, dtype=torch.float64) + 1e4
    parts, whole = [FeatureMoments() for _ in range(4)], FeatureMoments()
    for part, some in zip(parts[1:], features.split(3), strict=True):
        part.update(some)
    for part in parts:
        whole.add(*part.sums())
    expected = FeatureMoments()
    expected.update(features)
    for ours, theirs in zip(whole.compute(), expected.compute(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_anchor_is_in_no_checkpoint() -> None:
    """The parameter that only several processes need is neither saved nor asked for, and its loss is 0."""
    anchor = Anchor()
    assert not anchor.state_dict()
    anchor.load_state_dict({})
    assert anchor().requires_grad
    assert not anchor().item()
