"""Five drawn textures on which nothing was tuned: ``python docs/studies/drawn_textures.py FOLDER``.

Writes woven, knit, carpet, leather and wood, each with 64 good training images, 22 good test images and seven of each
of six kinds of defects, in MVTec AD's layout. What was decided on real fabrics can be judged on them, with
``vae-attention benchmark`` or ``docs/studies/ablation.py``.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter, map_coordinates
from tqdm import tqdm

SIDE = 256
TRAIN, GOOD, OF_EACH_KIND = 64, 22, 7
Y, X = np.mgrid[0:SIDE, 0:SIDE].astype(float)

Random = np.random.Generator
Array = np.ndarray


def noise(random: Random, sigma: float, stretch: float = 1) -> Array:
    """Return smooth noise of shape ``(SIDE, SIDE)`` and deviation 1; ``sigma`` in pixels."""
    margin = 16
    white = random.standard_normal((SIDE + 2 * margin, SIDE + 2 * margin))
    smooth = gaussian_filter(white, (sigma * stretch, sigma))[margin:-margin, margin:-margin]
    return smooth / smooth.std()


def woven(random: Random) -> Array:
    """Threads over and under each other, each a little darker or brighter, not quite straight."""
    width, height, slant = *random.uniform(8.5, 9.5, 2), random.uniform(-0.04, 0.04)
    start = random.uniform(0, 9, 2)
    x = X + slant * Y + start[0] + 0.6 * noise(random, 20)
    y = Y - slant * X + start[1] + 0.6 * noise(random, 20)
    column, row = np.floor(x / width).astype(int), np.floor(y / height).astype(int)
    warp, weft = np.abs(np.sin(np.pi * x / width)), np.abs(np.sin(np.pi * y / height))
    tone = random.normal(0, 0.06, (2, 400))
    above = warp * (0.75 + 0.25 * weft) + tone[0][column % 400]
    below = weft * (0.75 + 0.25 * warp) + tone[1][row % 400]
    return 0.27 + 0.3 * np.where((column + row) % 2 == 0, above, below) + 0.03 * noise(random, 0.7)


def knit(random: Random) -> Array:
    """Columns of stitches."""
    width, start = random.uniform(13, 15), random.uniform(0, 20, 2)
    x, y = X + start[0] + 0.8 * noise(random, 16), Y + start[1] + 0.8 * noise(random, 16)
    across = (x % width) / width - 0.5
    stitch = np.abs(np.sin(np.pi * (y + 10 * np.abs(across)) / 8)) * np.cos(np.pi * across) ** 0.5
    return 0.4 + 0.25 * stitch + 0.03 * noise(random, 0.8)


def carpet(random: Random) -> Array:
    """Loops of two sizes, anywhere."""
    return 0.45 + 0.1 * noise(random, 1.2) + 0.05 * noise(random, 3)


def leather(random: Random) -> Array:
    """Grooves along the zeros of smooth noise."""
    return 0.45 + 0.12 * np.tanh(2 * np.abs(noise(random, 2.5)) - 1) + 0.02 * noise(random, 1)


def wood(random: Random) -> Array:
    """Rings, bent by smooth noise, and fibres along them."""
    rings = (0.35 * X + 6 * noise(random, 14, 3) + random.uniform(0, 50)) / random.uniform(2, 2.6)
    return 0.5 + 0.1 * np.sin(rings) + 0.05 * noise(random, 0.8, 6)


TEXTURES: dict[str, tuple[Callable[[Random], Array], tuple[float, float, float]]] = {
    "woven": (woven, (0.95, 1, 1.05)),
    "knit": (knit, (0.8, 0.95, 1.15)),
    "carpet": (carpet, (1.1, 1, 0.85)),
    "leather": (leather, (1.2, 0.9, 0.7)),
    "wood": (wood, (1.25, 0.95, 0.7)),
}
"""How each is drawn, and its tint: a factor for red, green and blue."""


def line(random: Random, image: Array, x: float, y: float) -> tuple[Array, Array]:
    """Draw a missing or thick thread: a straight band, brighter or darker."""
    angle = random.choice([0, np.pi / 2]) + random.normal(0, 0.03)
    across = np.abs((X - x) * np.sin(angle) - (Y - y) * np.cos(angle))
    along = np.abs((X - x) * np.cos(angle) + (Y - y) * np.sin(angle))
    mask = (across < random.uniform(2, 4)) & (along < random.uniform(20, 70))
    return image + random.choice([-1, 1]) * random.uniform(0.06, 0.14) * mask, mask


def stain(random: Random, image: Array, x: float, y: float) -> tuple[Array, Array]:
    """Darken a patch with soft edges."""
    mask = np.hypot(X - x, Y - y) / random.uniform(14, 32) + 0.25 * noise(random, 12) < 1
    return image - random.uniform(0.05, 0.12) * gaussian_filter(mask.astype(float), 3), mask


def hole(random: Random, image: Array, x: float, y: float) -> tuple[Array, Array]:
    """Make a small hole."""
    mask = np.hypot(X - x, (Y - y) * random.uniform(0.6, 1.4)) < random.uniform(4, 9)
    return np.where(mask, 0.12 + 0.03 * noise(random, 1), image), mask


def wear(random: Random, image: Array, x: float, y: float) -> tuple[Array, Array]:
    """Smooth the texture of a patch."""
    mask = np.hypot(X - x, Y - y) < random.uniform(14, 28)
    return np.where(mask, gaussian_filter(image, 1.6) + 0.02 * noise(random, 1), image), mask


def shift(random: Random, image: Array, x: float, y: float) -> tuple[Array, Array]:
    """Push the texture of a patch aside."""
    bump = np.exp(-((X - x) ** 2 + (Y - y) ** 2) / (2 * random.uniform(12, 22) ** 2))
    amount = random.uniform(5, 8) * random.choice([-1, 1])
    return map_coordinates(image, [Y, X + amount * bump], order=1, mode="reflect"), bump > 0.5


def fibre(random: Random, image: Array, x: float, y: float) -> tuple[Array, Array]:
    """Lay a thin foreign fibre on it."""
    step, angle, length = np.linspace(0, 1, 400), random.uniform(0, 2 * np.pi), random.uniform(30, 80)
    along = length * (step - 0.5)
    column = x + along * np.cos(angle) + 8 * np.sin(6 * step + angle)
    row = y + along * np.sin(angle) + 8 * np.cos(5 * step)
    drawn = np.zeros((SIDE, SIDE))
    drawn[np.clip(row, 0, SIDE - 1).astype(int), np.clip(column, 0, SIDE - 1).astype(int)] = 1
    drawn = gaussian_filter(drawn, 1)
    drawn /= drawn.max()
    return image + random.choice([-0.3, 0.3]) * drawn, drawn > 0.35


DEFECTS = {"line": line, "stain": stain, "hole": hole, "wear": wear, "shift": shift, "fibre": fibre}


def write(folder: Path, name: str) -> None:
    """Write one texture's images and masks."""
    random = np.random.default_rng(sum(map(ord, name)))
    draw, tint = TEXTURES[name]

    def save(image: Array, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        light = 1 + 0.05 * random.standard_normal()
        colours = np.stack([image * channel * light for channel in tint], axis=2)
        Image.fromarray((255 * colours.clip(0, 1)).round().astype(np.uint8)).save(file)

    for number in range(TRAIN):
        save(draw(random), folder / name / "train" / "good" / f"{number:03}.png")
    for number in range(GOOD):
        save(draw(random), folder / name / "test" / "good" / f"{number:03}.png")
    for kind, defect in DEFECTS.items():
        for number in range(OF_EACH_KIND):
            image, mask = defect(random, draw(random), *random.uniform(40, SIDE - 40, 2))
            save(image, folder / name / "test" / kind / f"{number:03}.png")
            file = folder / name / "ground_truth" / kind / f"{number:03}_mask.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(255 * mask.astype(np.uint8)).save(file)


def main(arguments: list[str] | None = None) -> None:
    """Write all textures below a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the textures' folders go")
    folder = parser.parse_args(arguments).folder
    for name in tqdm(TEXTURES, desc="textures"):
        write(folder, name)
    print(f"Written to {folder}: {', '.join(TEXTURES)}.")


if __name__ == "__main__":
    main()
