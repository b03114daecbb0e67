"""Putting a drawn category in its folder, whole or not at all, and recognising it later."""

from contextlib import suppress
from functools import partial
from pathlib import Path

from anomalib_vae_attention.common.atomic_files import ensure_folder, explaining, read_json

from .drawing import FORMAT_VERSION, MAKER, MARKER, choose_drawing, draw_category


def is_drawn(folder: Path) -> bool:
    """Tell whether a folder holds a whole category as this version of the package draws it.

    Returns:
        ``False`` if it is missing, empty, incomplete or from another version, and may be replaced.

    Raises:
        ValueError: If it holds something else, which must be neither used nor replaced.
        OSError: If it cannot be read.
    """
    # Another process may be replacing it at this very moment.
    with suppress(FileNotFoundError):
        if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
            return False
        marker = (read_json(folder / MARKER) if folder.is_dir() else None) or {}
        if marker.get("drawn_by") != MAKER:
            # Refuse what is there, not what has gone since it was looked for.
            folder.stat()
            msg = f"{folder} was not drawn by {MAKER}; choose another root, or move it away to have it drawn anew"
            raise ValueError(msg)
        # After a power cut a file may be there without its contents.
        pngs = (file for file in folder.rglob("*") if file.suffix.lower() == ".png" and file.stat().st_size > 0)
        present = {file.relative_to(folder).as_posix() for file in pngs}
        foreign = sorted(present.difference(marker["files"]))
        if foreign:
            msg = f"{folder} holds images not drawn by {MAKER}, such as {foreign[0]}; move them to another place"
            raise ValueError(msg)
        return marker.get("version") == FORMAT_VERSION and present.issuperset(marker["files"])
    return False


def ensure_category(root: Path, category: str) -> bool:
    """Draw a category below the root of the data set unless it is there already; say whether it was drawn now.

    It is there whole or not at all, as :func:`.ensure_folder` says. A category from another version of the package is
    replaced.

    Raises:
        ValueError: If there is no such category, or if its place is taken by something else.
        OSError: If the root is a file or cannot be written; the subclass tells which.
    """
    choose_drawing(category)
    folder = root / category
    problem = f"root={str(root)!r}: the embedded data set cannot be drawn there"
    with explaining(problem, "name a folder to write to"):
        # A whole one may lie where nobody may write.
        return not is_drawn(folder) and ensure_folder(folder, is_drawn, partial(draw_category, category))
