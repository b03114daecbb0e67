"""Keeping freed memory in the process: a training step asks for the same large blocks again and again."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_THRESHOLD = 32 << 20
"""The most that glibc allows for the size from which on a block is mapped from the system, in bytes."""

KEPT = 256 << 20


def keep_freed_memory() -> bool:
    """Tell glibc to keep blocks of up to 32 MiB, 256 MiB in all, instead of handing them back to the system.

    A block that comes fresh from the system costs a page fault for every 4 KiB, which is more than some of the
    operations on it. No result changes.

    Returns:
        Whether it was done: only with glibc, on Linux.
    """
    if not sys.platform.startswith("linux"):
        return False
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is None:
        return False
    return bool(set_option(M_MMAP_THRESHOLD, LARGEST_THRESHOLD) and set_option(M_TRIM_THRESHOLD, KEPT))
