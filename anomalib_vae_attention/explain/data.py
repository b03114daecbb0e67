"""The images that a command looks at: those of a folder, or the test images of a config's data."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from anomalib.data import AnomalibDataModule, get_datamodule
from omegaconf import OmegaConf

from anomalib_vae_attention.common.models import list_inputs
from anomalib_vae_attention.common.mvtec_layout import IMAGE_SUFFIXES, TEST

T = TypeVar("T")


def read_datamodule(config: Path, overrides: Sequence[str] = ()) -> AnomalibDataModule:
    """Make the datamodule of a config of ``anomalib train``, without augmentations, and set it up for testing.

    Args:
        config: YAML file with a section ``data``.
        overrides: ``KEY=VALUE`` each, such as ``data.init_args.category=cable``.

    Raises:
        ValueError: If the file has no such section, or an override is none.
    """
    wrong = [override for override in overrides if "=" not in override]
    if wrong:
        msg = f"{wrong} are no overrides; write data.init_args.root=DIR."
        raise ValueError(msg)
    merged = OmegaConf.merge(OmegaConf.load(config), OmegaConf.from_dotlist(list(overrides)))
    content: Any = OmegaConf.to_container(merged)
    if not isinstance(content, dict) or "class_path" not in (content.get("data") or {}):
        msg = f"{config} has no section data with a class_path."
        raise ValueError(msg)
    arguments = content["data"].get("init_args") or {}
    kept = {name: value for name, value in arguments.items() if not name.endswith("augmentations")}
    datamodule = get_datamodule({"data": {"class_path": content["data"]["class_path"], "init_args": kept}})
    datamodule.prepare_data()
    datamodule.setup("test")
    return datamodule


def find_images(source: Path, overrides: Sequence[str] = (), limit: int = 20) -> list[Path]:
    """Find images to look at, at most ``limit`` of each label, evenly spaced.

    The source is a folder of MVTec AD's layout, whose test images are taken, or of images, also in subfolders. Or it is
    a config, whose test images are taken; see :func:`read_datamodule` for its overrides.

    Raises:
        FileNotFoundError: If there is no such file or folder, or no image in it.
        ValueError: If the config has no images in files.
    """
    if source.is_dir():
        files = list_inputs(source / TEST if (source / TEST).is_dir() else source)
    elif source.suffix in {".yaml", ".yml"} and source.is_file():
        table = getattr(read_datamodule(source, overrides), "test_data").samples  # noqa: B009 - not in its type
        if Path(str(table["image_path"].iloc[0])).is_dir():
            msg = f"{source}: its data are videos; name a folder of their frames instead (--data FOLDER)."
            raise ValueError(msg)
        files = sorted(Path(str(path)) for path in table["image_path"])
    else:
        msg = f"--data {source}: there is no such folder, nor such a config."
        raise FileNotFoundError(msg)
    if not files:
        msg = f"--data {source}: there is no image in it ({', '.join(sorted(IMAGE_SUFFIXES))})."
        raise FileNotFoundError(msg)
    by_label: dict[str, list[Path]] = {}
    for file in files:
        by_label.setdefault(file.parent.name, []).append(file)
    return [file for some in by_label.values() for file in evenly_spaced(some, limit)]


def evenly_spaced(items: Sequence[T], most: int) -> list[T]:
    """Choose at most so many items, from the first to the last."""
    return [items[place] for place in torch.linspace(0, len(items) - 1, min(most, len(items))).round().int().tolist()]
