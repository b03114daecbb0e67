"""Putting a drawn category in its folder, whole or not at all, and recognising it later."""

import errno
import json
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from filelock import FileLock

from .drawing import FORMAT_VERSION, MAKER, MARKER, choose_drawing, draw_category


def _read_marker(folder: Path) -> dict[str, Any] | None:
    """Read what drew a folder; ``None`` if this package did not."""
    try:
        marker = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        is_ours = marker["drawn_by"] == MAKER and isinstance(marker["files"], list)
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return marker if is_ours else None


def is_drawn(folder: Path) -> bool:
    """Tell whether a folder holds a whole category as this version of the package draws it.

    Returns:
        ``False`` if it is missing, empty, incomplete or from another version, and may be replaced.

    Raises:
        ValueError: If it holds something else, which must be neither used nor replaced.
        OSError: If it cannot be read.
    """
    try:
        return _inspect(folder)
    except FileNotFoundError:
        # Another process is replacing it at this very moment.
        return False


def _inspect(folder: Path) -> bool:
    """Do the work of :func:`is_drawn` for a folder that stays where it is."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    marker = _read_marker(folder) if folder.is_dir() else None
    if marker is None:
        # Refuse what is there, not what has gone since it was looked for.
        folder.stat()
        msg = f"{folder} was not drawn by {MAKER}; choose another root, or move it away to have it drawn anew"
        raise ValueError(msg)
    # After a power cut a file may be there without its contents.
    present = {
        file.relative_to(folder).as_posix()
        for file in folder.rglob("*")
        if file.suffix.lower() == ".png" and file.stat().st_size > 0
    }
    foreign = sorted(present.difference(marker["files"]))
    if foreign:
        msg = f"{folder} holds images that were not drawn by {MAKER}, such as {foreign[0]}; move them to another place"
        raise ValueError(msg)
    return marker.get("version") == FORMAT_VERSION and present.issuperset(marker["files"])


def _move_into_place(drawn: Path, folder: Path) -> bool:
    """Rename ``drawn`` to ``folder``; ``False`` if another process has done so first."""
    with suppress(OSError):
        drawn.rename(folder)
        return True
    # The place is taken. Without the lock, one process could take another's new folder for the outdated one.
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if is_drawn(folder):
            return False
        if folder.exists():
            folder.rename(drawn.with_name("outdated"))
        try:
            drawn.rename(folder)
        except OSError:
            if not is_drawn(folder):
                raise
            return False
    return True


def ensure_category(root: Path, category: str) -> bool:
    """Draw a category below the root of the data set unless it is there already; say whether it was drawn now.

    It is drawn in a temporary folder beside its place and then renamed: no reader ever sees half of it, an
    interrupted drawing leaves nothing that could be mistaken for it, and of several processes that draw at once the
    first one's work is kept. A category from another version of the package is replaced.

    Raises:
        ValueError: If there is no such category, or if its place is taken by something else.
        OSError: If the root is a file or cannot be written; the subclass tells which.
    """
    choose_drawing(category)
    folder = root / category
    try:
        if is_drawn(folder):
            return False
        root.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{category}-", dir=root, ignore_cleanup_errors=True) as temporary:
            # A folder inside it, because the temporary one itself may be read by its owner only.
            drawn = Path(temporary, "drawn")
            draw_category(category, drawn)
            return _move_into_place(drawn, folder)
    except OSError as error:
        reason = "it is not a folder" if isinstance(error, FileExistsError) else error.strerror or str(error)
        msg = f"root={str(root)!r}: the embedded data set cannot be drawn there ({reason}); name a folder to write to"
        raise OSError(error.errno or errno.EIO, msg) from error
