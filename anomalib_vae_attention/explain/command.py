"""The command ``vae-attention explain``: why a trained model judges as it does, image by image."""

import argparse
import os
import shlex
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from tqdm import tqdm

from anomalib_vae_attention.common.argument_checks import command_parser, require_whole
from anomalib_vae_attention.common.atomic_files import explaining
from anomalib_vae_attention.common.images import read_tensor
from anomalib_vae_attention.common.models import SHEET, find_model
from anomalib_vae_attention.common.pictures import inline, write_page
from anomalib_vae_attention.image_vae.model import ImageVaeModel
from anomalib_vae_attention.lightning_model import VaeAttention

from .data import find_images
from .explainers import count_latents, explain_image, parse_latents
from .pictures import make_tiles, write_picture, write_sheet

TEMPLATE = Path(__file__).with_name("page.html.j2")
LINES = {"mininterval": 10, "bar_format": "{desc}: {n_fmt} of {total_fmt}, {remaining} left\n"}
"""How progress is told where there is no terminal: a line every ten seconds, in place of a bar that moves."""
DISTANCES = {
    True: "the mean of the normal difference distribution (eq. 4) over its standard deviation",
    False: "the root of the latent's part in the energy, averaged over the image",
}
EPILOG = """
--data is a folder of images (in MVTec AD's layout: its test images; the label of an image is the name of its folder) or
a config, whose test images are taken. Each image becomes a PNG file, and all of them one page, index.html, which needs
no other file and no network. worst_first.png has them ranked on one sheet, for a slide. Scores and verdicts are those
of vae-attention predict.

examples:
  vae-attention explain --ckpt_path model.ckpt --data datasets/MVTecAD/bottle
  vae-attention explain --ckpt_path model.ckpt --data configs/paper/mnist_1.yaml --latents 3,7 data.init_args.root=DIR
"""


def describe(module: VaeAttention) -> str:
    """Describe a model in a line."""
    kept = {name: module.hparams.get(name) for name in ("vae", "attention", "latent_dim")}
    if isinstance(module.model, ImageVaeModel):
        kept["attention_layers"] = ", ".join(module.model.attention_layers)
    return "vae_attention " + " ".join(f"{name}={value}" for name, value in kept.items())


def run(arguments: argparse.Namespace, command: str) -> Path:
    """Explain the images, write everything, and return the page.

    Raises:
        FileNotFoundError: If there is no checkpoint or no image.
        ValueError: If there is no such latent, a count is out of range, or no image can be read.
    """
    require_whole("--limit", arguments.limit, 1)
    file = find_model(arguments.ckpt_path, (".ckpt",))
    module: VaeAttention = VaeAttention.load_from_checkpoint(file, map_location="cpu").eval()
    parse_latents(arguments.latents, count_latents(module))
    found = find_images(arguments.data, arguments.overrides, arguments.limit)
    # Now, not when all is explained.
    with explaining(f"--output {arguments.output} cannot be written", "name a folder that can"):
        arguments.output.mkdir(parents=True, exist_ok=True)
    read, pictures = [], []
    for path in tqdm(found, desc="images", unit="image", **({} if sys.stderr.isatty() else LINES)):
        try:
            pixels = read_tensor(path)[None]
        except OSError as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        pictures.append(explain_image(module, pixels, arguments.latents))
        read.append(path)
    if not read:
        msg = f"--data {arguments.data}: none of its {len(found)} images can be read."
        raise ValueError(msg)
    shown: list[dict[str, Any]] = []
    # An image has the name of its folder, and of those above that it takes to tell it from others.
    above = os.path.commonpath([path.parent.parent for path in read])
    stems = Counter(path.with_suffix("") for path in read)
    for path, picture, tiles in zip(read, pictures, make_tiles(pictures), strict=True):
        label, name = path.parent.name, path.relative_to(above).as_posix()
        stem = path.stem if stems[path.with_suffix("")] == 1 else path.name
        file = arguments.output / path.relative_to(above).with_name(f"{stem}.png")
        write_picture(file, f"{name}: {picture.verdict} {picture.score:.4f}", tiles)
        inlined = [{"caption": tile.caption, "source": inline(tile.pixels)} for tile in tiles]
        first = len(tiles) - len(picture.latents.number)
        told = {"name": name, "label": label, "score": picture.score, "verdict": picture.verdict}
        shown.append({**told, "groups": [inlined[:first], inlined[first:]]})
    write_sheet(arguments.output / SHEET, [image["name"] for image in shown], pictures)
    page = arguments.output / "index.html"
    write_page(
        page,
        TEMPLATE,
        model=describe(module),
        distance=DISTANCES[isinstance(module.model, ImageVaeModel)],
        in_false_colours=pictures[0].counterfactual.in_false_colours,
        labels=Counter(image["label"] for image in shown),
        images=shown,
        command=command,
    )
    return page


def main(arguments: list[str]) -> None:
    """Run the command."""
    parser = command_parser(
        "explain",
        "Show why a trained model judges as it does: maps, what a good part would have shown, latents.",
        EPILOG,
    )
    parser.add_argument("--ckpt_path", type=Path, required=True, help="checkpoint of vae_attention, or its folder")
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER_OR_CONFIG")
    parser.add_argument(
        "--latents", default="top8", help="top8: those furthest from normal, as many as you say; all; or 3,7 (top8)"
    )
    parser.add_argument("--limit", type=int, default=20, help="most images of each label, evenly spaced (20)")
    parser.add_argument("--output", type=Path, default=Path("results/explain"), help="folder (results/explain)")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="of a config, such as data.init_args.root=DIR"
    )
    parsed = parser.parse_intermixed_args(arguments)
    page = run(parsed, shlex.join(["vae-attention", "explain", *arguments]))
    print(f"pictures {page.parent}, one per image\nsheet    {page.with_name(SHEET)}\npage     {page}")
