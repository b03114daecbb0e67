"""On a GPU: the CPU's scores, nothing large computed elsewhere, graphs, and every way to train and to use a model.

Where there is none, ``VAE_ATTENTION_ACCELERATOR=cpu`` tries the tests themselves, which says nothing of GPUs.
"""

import os
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from anomalib.data import Folder
from lightning import seed_everything
from support import CHOICES, SMALL_IMAGE_VAES, Fitted, make_engine, small_image_model, small_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader

from anomalib_vae_attention import EmbeddedAD, NormalQuantile, VaeAttention
from anomalib_vae_attention.benchmark.data import category_datamodule
from anomalib_vae_attention.common.machine import cores
from anomalib_vae_attention.dsprites.attention_loss import AttentionDisentanglement
from anomalib_vae_attention.dsprites.dataset import Batch
from anomalib_vae_attention.dsprites.models import BetaVAE, FactorVAE
from anomalib_vae_attention.predict.models import load_model
from anomalib_vae_attention.scoring import full_precision

pytestmark = pytest.mark.gpu

ACCELERATOR = os.environ.get("VAE_ATTENTION_ACCELERATOR", "gpu")
DEVICE = "cuda" if ACCELERATOR == "gpu" else "cpu"
LARGE = 70_000
"""Floats that are more than a matrix of the resampling, and less than an image's latents."""
needs_cuda = pytest.mark.skipif(DEVICE == "cpu", reason="what is tested is the GPU's")


@pytest.fixture(scope="module", autouse=True)
def threads() -> Iterator[None]:
    """Let the CPU have more than the one thread of the other tests."""
    torch.set_num_threads(min(8, cores()))
    yield
    torch.set_num_threads(1)


class LargeOnCpu(TorchDispatchMode):
    """Records operations that read or write many floats in the CPU's memory."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(  # noqa: PLW3201 - torch calls it by this name
        self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        del types
        output = function(*args, **(kwargs or {}))
        for leaf in tree_leaves((args, kwargs, output)):
            if isinstance(leaf, torch.Tensor) and leaf.device.type == "cpu" and leaf.is_floating_point():
                self.found += [f"{function}, {tuple(leaf.shape)}"] if leaf.numel() > LARGE else []
        return output


class Watched(VaeAttention):
    """The model, watched in its steps but the first, which makes what depends on the size of the images."""

    watch: LargeOnCpu

    def training_step(self, batch: Any, index: int) -> Any:
        with self.watch if index else nullcontext():
            return super().training_step(batch)

    def validation_step(self, batch: Any, index: int) -> Any:
        with self.watch if index else nullcontext():
            return super().validation_step(batch)


def predictions(model: VaeAttention, datamodule: EmbeddedAD | Folder, device: str) -> list[torch.Tensor]:
    """Return raw scores and maps of all test images, on the CPU."""
    model.eval().to(device)
    with torch.no_grad(), full_precision(torch.device(device)):
        found = [model.model(model.pre_processor(batch.image.to(device))) for batch in datamodule.test_dataloader()]
    model.cpu()
    return [torch.cat([getattr(one, name) for one in found]).cpu() for name in ("pred_score", "anomaly_map")]


def agree(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> None:
    """Demand scores within 1e-3 and maps within 2e-3, and print how near they are."""
    score, anomaly_map = (float((one - other).abs().max()) for one, other in zip(ours, theirs, strict=True))
    print(f"score {score:.2e}, map {anomaly_map:.2e}")
    assert score < 1e-3
    assert anomaly_map < 2e-3


@pytest.fixture(scope="module", params=["default", "float32"])
def on_gpu(request: pytest.FixtureRequest, embedded: EmbeddedAD, tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    """Fit the default model to the embedded data on the GPU, with TF32 allowed to convolutions and not."""
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, request.param == "default"
    seed_everything(0)
    model, engine = Watched(visualizer=False), make_engine(tmp_path_factory.mktemp("gpu"), accelerator=ACCELERATOR)
    model.watch = LargeOnCpu()
    engine.fit(model=model, datamodule=embedded)
    yield Fitted(model.eval(), engine, Path(engine.best_model_path))
    torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize("device", ["cpu", DEVICE])
def test_a_fit_on_a_gpu_gives_the_cpus_scores(
    on_gpu: Fitted, fitted: Fitted, embedded: EmbeddedAD, device: str
) -> None:
    agree(predictions(on_gpu.model, embedded, device), predictions(fitted.model, embedded, "cpu"))


@needs_cuda
def test_no_step_computes_on_the_cpu(on_gpu: Fitted) -> None:
    assert on_gpu.model.watch.found == []


def test_the_same_on_bottle(data_root: Path, tmp_path: Path) -> None:
    found = []
    for accelerator, device in (("cpu", "cpu"), (ACCELERATOR, DEVICE)):
        seed_everything(0)
        model, datamodule = VaeAttention(visualizer=False), category_datamodule(data_root / "mvtec_ad" / "bottle")
        make_engine(tmp_path, accelerator=accelerator, limit_val_batches=0).fit(model=model, datamodule=datamodule)
        found.append(predictions(model, datamodule, device))
    agree(found[1], found[0])


@needs_cuda
def test_a_cuda_graph_gives_what_single_operations_give(on_gpu: Fitted, embedded: EmbeddedAD) -> None:
    """One can be captured of the whole model: nothing in it waits for the GPU, or reads values back."""
    model = on_gpu.model.cuda()
    images = next(iter(embedded.test_dataloader())).image[:4].cuda()
    with torch.inference_mode():
        expected = [tensor.clone() for tensor in model(images)]
        given, graph = torch.zeros_like(images), torch.cuda.CUDAGraph()
        model(given)
        with torch.cuda.graph(graph):
            found = model(given)
        given.copy_(images)
        graph.replay()
        torch.cuda.synchronize()
    model.cpu()
    for ours, theirs in zip(found, expected, strict=True):
        if ours.is_floating_point():
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


@needs_cuda
def test_compiled_models_give_what_single_operations_give(on_gpu: Fitted, embedded: EmbeddedAD) -> None:
    model = on_gpu.model.cuda()
    images = model.pre_processor(next(iter(embedded.test_dataloader())).image[:4].cuda())
    with torch.inference_mode():
        expected = model.model(images)
        found = torch.compile(model.model, fullgraph=True, dynamic=False)(images)
    model.cpu()
    agree([found.pred_score, found.anomaly_map], [expected.pred_score, expected.anomaly_map])


@pytest.mark.parametrize("options", CHOICES, ids=lambda options: "-".join(options.values()))
def test_thresholds_tests_predictions_and_exports(
    options: dict[str, Any], small_data: EmbeddedAD, tmp_path: Path
) -> None:
    found = []
    for accelerator in ("cpu", ACCELERATOR):
        seed_everything(0)
        model = small_model(post_processor=NormalQuantile(0.4, 0.35, held_out=0.3), **options)
        engine = make_engine(tmp_path / accelerator, accelerator=accelerator)
        engine.fit(model=model, datamodule=small_data)
        (measured,) = engine.test(model=model, datamodule=small_data)
        batches: Any = engine.predict(model=model, datamodule=small_data)
        score = torch.cat([batch.pred_score for batch in batches]).cpu()
        loaded = VaeAttention.load_from_checkpoint(engine.best_model_path, map_location="cpu").eval()
        with torch.no_grad():
            again = torch.cat([loaded(batch.image).pred_score for batch in small_data.test_dataloader()])
        torch.testing.assert_close(again, score, rtol=0, atol=1e-3)
        judged = load_model(Path(engine.best_model_path), DEVICE).score(small_data.test_data[0].image[None].numpy())
        assert judged.score == pytest.approx(score[:1].numpy(), abs=1e-3)
        found.append((model.post_processor, measured, score))
    (theirs, expected, scores), (ours, measured, own) = found
    for name in ("image_threshold", "pixel_threshold"):
        assert float(getattr(ours, name)) == pytest.approx(float(getattr(theirs, name)), abs=1e-3)
    torch.testing.assert_close(own, scores, rtol=0, atol=2e-3)
    assert measured == pytest.approx(expected, abs=0.02)
    import onnxruntime

    file = model.to_onnx(tmp_path, input_size=(64, 64))
    image = next(iter(small_data.test_dataloader())).image
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (exported,) = session.run(["pred_score"], {"input": image.numpy()})
    assert np.allclose(exported, own[: len(image)].numpy(), atol=1e-3)


@pytest.mark.parametrize("vae", SMALL_IMAGE_VAES)
def test_image_vaes(vae: str, small_data: EmbeddedAD, tmp_path: Path) -> None:
    """Trained on the GPU, they score there as on the CPU."""
    model = small_image_model(vae, visualizer=True)
    engine = make_engine(tmp_path, accelerator=ACCELERATOR, max_epochs=2)
    engine.fit(model=model, datamodule=small_data)
    engine.test(model=model, datamodule=small_data)
    assert list(tmp_path.rglob("*.png"))
    agree(predictions(model, small_data, DEVICE), predictions(model, small_data, "cpu"))


@pytest.mark.parametrize("model_class", [BetaVAE, FactorVAE])
def test_dsprites(model_class: type[BetaVAE], tmp_path: Path) -> None:
    """The noise is drawn alike, so that a step on the GPU is that of the CPU; and Lightning trains there."""
    image = (torch.rand(32, 1, 64, 64) < 0.1).float()
    batch, logged = Batch(image, torch.zeros(32, 5, dtype=torch.int64)), []
    for device in ("cpu", DEVICE):
        torch.manual_seed(0)
        model = model_class(attention=AttentionDisentanglement())
        model.to(device)
        optimizers = model.configure_optimizers()
        logged.append([model.optimise(image.to(device), optimizers) for _ in range(3)])
    for ours, theirs in zip(*logged, strict=True):
        for name, value in ours.items():
            assert float(value) == pytest.approx(float(theirs[name]), rel=1e-2, abs=1e-3), name
    trainer = pl.Trainer(
        accelerator=ACCELERATOR, default_root_dir=tmp_path, max_steps=4, logger=False, enable_progress_bar=False
    )
    trainer.fit(model, DataLoader([batch] * 4, batch_size=None))
    assert trainer.global_step == 4
