"""Images larger than the default and not square, from the fit to the exports, with either packaged backbone."""

from pathlib import Path

import numpy as np
import onnxruntime
import openvino
import pytest
import torch
from PIL import Image
from support import folder, make_engine, write_images

from anomalib_vae_attention import VaeAttention
from anomalib_vae_attention.backbone import WEIGHTS_PACKAGES

SIZE = (384, 256)
"""Height and width; the images that are read have another shape."""


@pytest.mark.parametrize("backbone", WEIGHTS_PACKAGES)
def test_large_images_that_are_not_square(backbone: str, tmp_path: Path) -> None:
    """The grid grows with the size, maps, masks and pictures have its shape, and runtimes agree to 1e-5."""
    package = WEIGHTS_PACKAGES[backbone]
    pytest.importorskip(package.module, reason=f"no weights of {backbone}: {package.install}")
    write_images(tmp_path / "data", size=(90, 60))
    datamodule, engine = folder(tmp_path / "data"), make_engine(tmp_path / "results")
    model = VaeAttention(backbone=backbone, input_size=SIZE, latent_dim=32)
    engine.fit(model=model, datamodule=datamodule)
    loaded = VaeAttention.load_from_checkpoint(engine.best_model_path).eval()
    assert loaded.model.reference.grid_size == (48, 32)
    batch = engine.predict(model=loaded, datamodule=datamodule)[0]
    assert batch.anomaly_map.shape[-2:] == batch.pred_mask.shape[-2:] == SIZE
    pictures = list((tmp_path / "results").rglob("images/**/*.png"))
    assert pictures
    for file in pictures:
        with Image.open(file) as picture:
            assert (picture.height, picture.width % SIZE[1]) == (SIZE[0], 0)

    image = next(iter(datamodule.test_data)).image[None]
    with torch.no_grad():
        expected, fitted = loaded(image), model.eval()(image)
    path = loaded.to_onnx(tmp_path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    in_onnx = dict(
        zip([one.name for one in session.get_outputs()], session.run(None, {"input": image.numpy()}), strict=True)
    )
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    in_openvino = {next(iter(output.names)): value for output, value in compiled(image.numpy()).items()}
    for name in ("pred_score", "anomaly_map"):
        wanted = getattr(expected, name).numpy()
        for found in (getattr(fitted, name).numpy(), in_onnx[name], in_openvino[name]):
            assert found.shape == wanted.shape
            assert np.abs(found - wanted).max() < 1e-5, name
