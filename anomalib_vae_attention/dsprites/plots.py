"""Plot of several runs: reconstruction against disentanglement."""

import json
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from anomalib_vae_attention.common.atomic_files import replacing

from .callbacks import TEST_FILE


def plot_runs(runs: list[Path], folder: Path) -> Path:
    """Plot reconstruction against the FactorVAE score of tested runs, a colour per model (as Liu et al., fig. 8).

    Args:
        runs: Folders of runs with ``test.json``.
        folder: Where to; is made if it is missing.

    Returns:
        The PNG file.

    Raises:
        FileNotFoundError: If a run has not been tested, naming it.
        OSError: If the file cannot be written.
    """
    points: dict[str, list[tuple[float, float]]] = {}
    for run in runs:
        file = run / TEST_FILE
        if not file.is_file():
            msg = f"--runs {run}: there is no {TEST_FILE} in it; run vae-attention dsprites test first"
            raise FileNotFoundError(msg)
        result = json.loads(file.read_text(encoding="utf-8"))
        points.setdefault(result["model"], []).append((result["reconstruction"], result["factor_vae_score"]))
    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axes = figure.subplots()
    for model, values in sorted(points.items()):
        axes.scatter(*np.array(values).T, label=f"{model} ({len(values)})")
    axes.set_xlabel("reconstruction error (nats per image)")
    axes.set_ylabel("FactorVAE score")
    axes.legend()
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "disentanglement.png"
    with replacing(file) as temporary:
        figure.savefig(temporary, dpi=110)
    return file
