"""Reading and writing files: whole or not at all."""

import json
import os
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(file: Path) -> Generator[Path, None, None]:
    """Give a temporary file to write to, which takes the place of a file when all went well.

    The file's folder is made if it is missing.

    Yields:
        The temporary file, in the same folder and with the same ending; it is deleted if an exception is raised.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{file.stem}-", suffix=file.suffix, dir=file.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        # mkstemp lets only the owner read it.
        temporary.chmod(0o644)
        yield temporary
        settle(temporary)
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def settle(file: Path) -> None:
    """Wait until a file's content is on the disk: a power cut must not leave a name without it."""
    with file.open("rb+") as opened:
        os.fsync(opened.fileno())


def write_json(file: Path, content: Any) -> None:  # noqa: ANN401
    """Write what JSON can hold to a file, as :func:`replacing` does."""
    with replacing(file) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_json(file: Path) -> Any:  # noqa: ANN401
    """Return the content of a JSON file, or ``None`` if there is none or it is not JSON."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
