"""The state of the random number generators, so that a resumed training goes on as if it had not been stopped."""

import random
from typing import Any

import numpy as np
import torch

from anomalib_vae_attention.anomalib_support.distributed import gather


def random_states() -> list[dict[str, Any]]:
    """Return the states of the global generators of every process, in the order of their ranks; all must call it.

    Returns:
        For each process ``torch``, ``cuda`` (of each of its devices), ``numpy`` and ``python``: plain data and tensors,
        which checkpoints may hold.
    """
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002 - what transforms use
    states = {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [kind, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest],
        "python": random.getstate(),
    }
    return gather(states)


def set_random_state(state: dict[str, Any]) -> None:
    """Set the global generators of this process from its part of what :func:`random_states` returns."""
    torch.set_rng_state(state["torch"].cpu())
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([each.cpu() for each in state["cuda"]])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.cpu().numpy().astype(np.uint32), *rest))  # noqa: NPY002
    random.setstate(state["python"])
