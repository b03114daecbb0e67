"""Reading and writing files: whole or not at all."""

import json
import os
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

if TYPE_CHECKING:
    import pandas as pd


@contextmanager
def replacing(file: Path) -> Generator[Path, None, None]:
    """Give a temporary file to write to, which takes the place of a file when all went well.

    It is in the same folder, which is made if it is missing, has the same ending, and is deleted after an exception.

    Raises:
        OSError: If the file cannot be written; the message names it.
    """
    with explaining(f"{file} cannot be written", "name another place, or make room there"):
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


def write_files(write: Callable[[Path], Path], folder: Path) -> Path:
    """Write files that belong together in place of earlier ones, and return the one that names the others.

    ``write`` writes them to a folder beside their places and returns that one. It is moved last: an interruption may
    leave none, but never the old one beside new others.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=folder) as temporary:
        main = write(Path(temporary))
        files = [file for file in Path(temporary).rglob("*") if file.is_file()]
        for file in files:
            settle(file)
        target = folder / main.relative_to(temporary)
        if len(files) > 1:
            target.unlink(missing_ok=True)
        for file in sorted(files, key=lambda file: file == main):
            place = folder / file.relative_to(temporary)
            place.parent.mkdir(parents=True, exist_ok=True)
            file.replace(place)
        return target


def ensure_folder(folder: Path, is_whole: Callable[[Path], bool], make: Callable[[Path], None]) -> bool:
    """Make a folder unless it is whole already; of several processes one makes it, and the others wait.

    ``make`` makes the folder that it is given in a temporary one beside its place, which is then renamed: no reader
    ever sees half of it, and an interruption leaves nothing that could be mistaken for it. One that is not whole is
    replaced.

    Returns:
        Whether it was made now.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if is_whole(folder):
            return False
        # A folder inside the temporary one, which may be read by its owner only.
        with tempfile.TemporaryDirectory(
            prefix=f".{folder.name}-", dir=folder.parent, ignore_cleanup_errors=True
        ) as temporary:
            made = Path(temporary, "made")
            make(made)
            if folder.exists():
                folder.rename(Path(temporary, "replaced"))
            made.rename(folder)
    return True


@contextmanager
def explaining(problem: str, advice: str) -> Generator[None, None, None]:
    """Say in an ``OSError`` what cannot be done and what to do; its class and number stay.

    Of explanations within each other the outermost holds. An error without a number is none of the disk's.

    Args:
        problem: What cannot be done, such as ``--output FOLDER cannot be written``.
        advice: What to do instead.

    Raises:
        OSError: For every one that has a number: ``problem (reason); advice``.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
        reason = "it is not a folder" if isinstance(cause, FileExistsError) else cause.strerror
        msg = f"{problem} ({reason}); {advice}"
        raise OSError(error.errno, msg) from cause


def write_json(file: Path, content: Any) -> None:  # noqa: ANN401
    """Write what JSON can hold to a file, as :func:`replacing` does."""
    with replacing(file) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_table(file: Path, table: "pd.DataFrame") -> None:
    """Write a table without its index to a CSV file, as :func:`replacing` does."""
    with replacing(file) as temporary:
        table.to_csv(temporary, index=False)


def read_json(file: Path) -> Any:  # noqa: ANN401
    """Return the content of a JSON file, or ``None`` if there is none or it is not JSON."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
