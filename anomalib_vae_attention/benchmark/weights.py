"""The packaged weights in a Hugging Face cache, where anomalib's own models find them without a network.

    python -m anomalib_vae_attention.benchmark.weights FOLDER

writes them to FOLDER; a command started with ``HF_HUB_CACHE=FOLDER HF_HUB_OFFLINE=1`` then loads
``tf_efficientnet_lite0`` (or another of the packaged ones, with ``--backbone``) with pretrained weights.
"""

import argparse
import hashlib
import sys
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save

from anomalib_vae_attention.backbone import PACKAGED_BACKBONE, WEIGHTS_PACKAGES, Backbone, load_packaged_weights
from anomalib_vae_attention.common.atomic_files import replacing

from .models import require_model


def write_cache(cache: Path, name: str = PACKAGED_BACKBONE) -> Path:
    """Write the installed weights of one of the :data:`WEIGHTS_PACKAGES` into a folder as in ``HF_HUB_CACHE``.

    Other models in it stay. The file that is returned is complete before anybody can find it.
    """
    model: Any = timm.create_model(name, pretrained=False)
    load_packaged_weights(name, model)
    content = save(model.state_dict(), metadata={"format": "pt"})
    config: Any = timm.get_pretrained_cfg(name)
    repository = cache / f"models--{config.hf_hub_id.replace('/', '--')}"
    # A revision is a git commit there; here it names the content.
    revision = hashlib.sha256(content).hexdigest()[:40]
    file = repository / "snapshots" / revision / "model.safetensors"
    with replacing(file) as temporary:
        temporary.write_bytes(content)
    with replacing(repository / "refs" / "main") as temporary:
        temporary.write_text(revision, encoding="utf-8")
    return file


def main(arguments: list[str] | None = None) -> int:
    """Check backbone, layers and models, and write the cache; return 1 if one does not exist, which is printed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of the cache")
    parser.add_argument(
        "--backbone", default=PACKAGED_BACKBONE, help="backbone to check, and to write if it is packaged"
    )
    parser.add_argument("--accelerator", choices=("cpu", "gpu"), default="cpu", help="what there must be")
    parser.add_argument("--layers", nargs="*", default=[], help="layers that it must have")
    parser.add_argument("--models", nargs="*", default=[], help="models that there must be, with variants")
    parsed = parser.parse_args(arguments)
    if parsed.accelerator == "gpu" and not torch.cuda.is_available():
        print("accelerator: PyTorch finds no CUDA device; leave --accelerator out to run on the CPU.", file=sys.stderr)
        return 1
    try:
        if parsed.layers:
            Backbone(parsed.backbone, parsed.layers, pre_trained=False)
        for model in parsed.models:
            require_model(model)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    if parsed.backbone in WEIGHTS_PACKAGES:
        print(write_cache(parsed.folder, parsed.backbone))
    return 0


if __name__ == "__main__":
    sys.exit(main())
