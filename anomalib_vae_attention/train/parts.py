"""What there is to train and test on in a folder: good parts, defective ones and masks, by the names of folders."""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from anomalib_vae_attention.common.folders import DEFECTIVE, GOOD, NAMES, Pairs, kind_of, pair_masks
from anomalib_vae_attention.common.images import UNREADABLE, doubtful_masks, is_turned, why_misread
from anomalib_vae_attention.common.models import list_inputs
from anomalib_vae_attention.common.mvtec_layout import TEST, list_images


class Parts(NamedTuple):
    """The images of a training.

    Attributes:
        good: Good images to learn from.
        good_test: Good images to test on only.
        defective: Defective images, to test on.
        pairs: The masks of these.
        left_out: Files that are not used, with the reason.
        remarks: What is worth knowing of those that are used.
    """

    good: list[Path]
    good_test: list[Path]
    defective: list[Path]
    pairs: Pairs
    left_out: dict[Path, str]
    remarks: list[str]


def find_parts(
    folder: Path, good: Path | None = None, defective: Path | None = None, masks: Path | None = None
) -> Parts:
    """Find the images of a training by the names of folders, or in the folders that are named.

    A folder of images is taken for good ones. Otherwise ``good``, ``defective`` and ``masks``, or names that mean the
    same, are looked for in it, and MVTec AD's layout: ``train/good``, ``test`` and ``ground_truth``. Folders further
    down whose names say defective, or masks, are not learnt, nor is what trainings and predictions have written.

    Args:
        folder: The folder.
        good: Folder of the good images, absolute or in ``folder``.
        defective: Folder of the defective images, likewise.
        masks: Folder of the masks, likewise.

    Raises:
        FileNotFoundError: If a folder is not there.
        ValueError: If there are fewer than two good images that can be read, or the names are ambiguous.
    """
    if not folder.is_dir():
        msg = f"{folder} is a file, not a folder." if folder.exists() else f"There is no folder {folder}."
        raise FileNotFoundError(msg)
    train = folder / "train" if (folder / "train").is_dir() else folder
    chosen = {
        GOOD: _named(folder, good, "--good") or _by_name(train, GOOD),
        DEFECTIVE: _named(folder, defective, "--defective") or _by_name(folder, DEFECTIVE),
        "masks": _named(folder, masks, "--masks") or _by_name(folder, "masks"),
    }
    test = folder / TEST
    good_test = _by_name(test, GOOD) if test.is_dir() else None
    images = chosen[DEFECTIVE] or (test if good_test else None)
    others = [place for place in (chosen[DEFECTIVE], chosen["masks"], good_test, test if good_test else None) if place]
    good_root = chosen[GOOD] or folder
    remarks: list[str] = []
    found = {
        GOOD: _list(good_root, others, {DEFECTIVE}, remarks),
        "good_test": _list(good_test),
        DEFECTIVE: _list(images, [place for place in (chosen["masks"], good_test) if place]),
    }
    left_out: dict[Path, str] = {}
    usable = {name: _usable(files, left_out, remarks) for name, files in found.items()}
    if len(usable[GOOD]) < 2:
        below = ", ".join(sorted(one.name for one in folder.iterdir() if one.is_dir())) or "none"
        why = [f" Left out is, for one, {file}: {left_out[file]}." for file in found[GOOD] if file in left_out][:1]
        msg = (
            f"{good_root} holds {len(usable[GOOD])} good images that can be read, but two are the least.{''.join(why)} "
            f"Name the folder of good images with --good; known names are {', '.join(NAMES[GOOD].split())}. Folders in "
            f"{folder}: {below}."
        )
        raise ValueError(msg)
    pairs = Pairs({}, [], [])
    if chosen["masks"] and images:
        pairs = pair_masks(usable[DEFECTIVE], images, list_images(chosen["masks"]), chosen["masks"])
        remarks += doubtful_masks(pairs.masks.values())
    return Parts(usable[GOOD], usable["good_test"], usable[DEFECTIVE], pairs, left_out, remarks)


def _named(folder: Path, given: Path | None, argument: str) -> Path | None:
    if given is None:
        return None
    place = folder / given if (folder / given).is_dir() else given
    if not place.is_dir():
        msg = f"{argument} {given}: there is no such folder, neither here nor in {folder}."
        raise FileNotFoundError(msg)
    return place


def _by_name(folder: Path, kind: str) -> Path | None:
    """Find the one folder in a folder whose name says what lies in it."""
    known = sorted(one for one in folder.iterdir() if one.is_dir() and kind_of(one.name) == kind)
    if len(known) > 1:
        msg = f"{folder}: {' and '.join(one.name for one in known)} may both be {kind}. Name one with --{kind}."
        raise ValueError(msg)
    return known[0] if known else None


def _list(
    root: Path | None, others: Sequence[Path] = (), kinds: Collection[str | None] = (), remarks: list[str] | None = None
) -> list[Path]:
    """List the images below a folder, but those of other folders, and of such whose names say a kind; remark these."""
    files = list_inputs(root) if root else []
    apart = {other.resolve() for other in others}

    def find_other(place: Path) -> Path | None:
        above = (folder for folder in (*reversed(place.parents), place) if root in folder.parents)
        return next((folder for folder in above if folder.resolve() in apart or kind_of(folder.name) in kinds), None)

    found = {place: find_other(place) for place in {file.parent for file in files}}
    counts = Counter(found[file.parent] for file in files)
    if remarks is not None:
        remarks += [
            f"{other}: its {count} images are not learnt, as its name or an argument says"
            for other, count in counts.items()
            if other
        ]
    return [file for file in files if found[file.parent] is None]


def _usable(files: Iterable[Path], left_out: dict[Path, str], remarks: list[str]) -> list[Path]:
    """Keep the images that can be read, and note the others and what is strange."""
    kept, turned = [], 0
    for file in files:
        try:
            with Image.open(file) as image:
                reason = why_misread(image)
                turned += is_turned(image)
        except UNREADABLE as error:
            reason = str(error)
        if reason:
            left_out[file] = reason
        else:
            kept.append(file)
    if turned:
        remarks.append(f"{turned} images in {kept[0].parent if kept else '?'} are turned as their EXIF data say")
    return kept


def describe(parts: Parts) -> str:
    """Say what was found, in lines to read before the training starts."""
    lines = [f"good images to learn from: {len(parts.good)} ({_sizes(parts.good)})"]
    places = Counter(file.parent for file in parts.good)
    if len(places) > 1:
        lines += [f"  {number} in {place}" for place, number in places.most_common(10)]
        lines += [f"  and {len(places) - 10} more folders"] * (len(places) > 10)
        lines.append("All of these are taken for good ones. If they are not, name the folder that is with --good.")
    if parts.good_test:
        lines.append(f"good images to test on: {len(parts.good_test)} ({_sizes(parts.good_test)})")
    if parts.defective:
        lines.append(f"defective images to test on: {len(parts.defective)} ({_sizes(parts.defective)})")
        lines.append(f"masks paired by name: {len(parts.pairs.masks)}")
    if parts.pairs.masks and parts.pairs.missing:
        lines.append(f"defective images without a mask: {_some(parts.pairs.missing)}")
    if parts.pairs.surplus:
        lines.append(f"masks without an image: {_some(parts.pairs.surplus)}")
    lines += [f"left out: {file}: {reason}" for file, reason in parts.left_out.items()]
    return "\n".join([*lines, *parts.remarks])


def _some(files: Sequence[Path]) -> str:
    more = f" and {len(files) - 5} more" if len(files) > 5 else ""
    return f"{len(files)}: {', '.join(str(file) for file in files[:5])}{more}"


def _sizes(files: Iterable[Path]) -> str:
    """Say which sizes and modes images have, the commonest first."""
    kinds: Counter[str] = Counter()
    for file in files:
        with Image.open(file) as image:
            kinds[f"{image.width}x{image.height} {image.mode}"] += 1
    most = kinds.most_common(3)
    rest = len(kinds) - len(most)
    return ", ".join(kind for kind, _ in most) + (f" and {rest} other sizes" if rest else "")
