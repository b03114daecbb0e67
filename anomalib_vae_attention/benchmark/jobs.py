"""Jobs, each in a process and a folder of its own, done once."""

import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from anomalib_vae_attention.common.atomic_files import read_json, write_json

logger = logging.getLogger(__name__)

RESULT = "result.json"
"""The file that a job writes last, in its folder: ``status`` and what it found, or ``error``."""
DONE, FAILED, SKIPPED = "done", "failed", "skipped"


def run_job(
    module: str, folder: Path, wanted: tuple[str, Any], environment: dict[str, str], title: str
) -> dict[str, Any]:
    """Run a module in a process of its own, unless its result is there already.

    Args:
        module: Name of a module of this folder, run with what is wanted.
        folder: Folder of the job, for what is wanted, ``log.txt`` and the :data:`RESULT` that the module writes last.
        wanted: Name and content of a JSON file that says what is to be done.
        environment: Environment variables beside those of this process.
        title: What the log lines call it.

    Returns:
        The content of :data:`RESULT`. A job that fails leaves :data:`FAILED`, its ``error`` and the path of its
        ``log``, and is run again the next time, as is one that was :data:`SKIPPED`.

    Raises:
        KeyboardInterrupt: If the user interrupts it; the process has then ended.
    """
    result = read_json(folder / RESULT)
    if result and result["status"] == DONE:
        logger.info("%s: done before.", title)
        return result
    logger.info("%s ...", title)
    name, content = wanted
    (folder / RESULT).unlink(missing_ok=True)
    write_json(folder / name, content)
    log = folder / "log.txt"
    start = time.perf_counter()
    with log.open("w", encoding="utf-8") as stream:
        # Absolute paths, so that the job may be in any folder. An interruption ends the process, too.
        code = subprocess.run(  # noqa: S603 - this Python, this package
            [sys.executable, "-m", f"{__package__}.{module}", str((folder / name).resolve())],
            env={**os.environ, **environment},
            stdout=stream,
            stderr=subprocess.STDOUT,
            check=False,
        ).returncode
    seconds = time.perf_counter() - start
    result = read_json(folder / RESULT)
    if code == 0 and result and result["status"] == SKIPPED:
        logger.warning("%s: skipped: %s", title, result["error"])
        return result
    if code == 0 and result:
        logger.info("%s: done in %.0f s.", title, seconds)
        return result
    result = {"status": FAILED, "error": _last_words(log, code), "log": str(log)}
    write_json(folder / RESULT, result)
    logger.warning("%s: failed after %.0f s: %s (log: %s)", title, seconds, result["error"], log)
    return result


def _last_words(log: Path, code: int) -> str:
    if code < 0:
        return f"ended by signal {-code}" + (", perhaps for lack of memory" if code == -9 else "")
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1][:500] if lines else f"exit code {code}"
