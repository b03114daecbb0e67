"""The command ``vae-attention benchmark``: vae_attention and anomalib's models, side by side on your data."""

import argparse
import logging
import shlex
import signal
from pathlib import Path

from anomalib_vae_attention.common.argument_checks import command_parser, require_whole, require_wholes
from anomalib_vae_attention.common.machine import cores
from anomalib_vae_attention.common.mvtec_layout import locate_category

from .jobs import FAILED
from .plan import GPU_RUNTIMES, Cell, plan_cells

logger = logging.getLogger(__name__)

RUNTIMES = ("eager", "onnxruntime", "openvino", "openvino-bf16")
EPILOG = """
Each category is a folder in MVTec AD's layout below the data root: train/good, test/good, test/*, ground_truth/*;
images of any format. Each model is fitted in a process of its own; then the latencies are measured. What is
finished is kept in the output folder: the same command goes on where it was interrupted, and runs again only what
failed. --fresh MODEL measures a model again, or choose another output folder.

models, each as its name or with a variant:
  vae_attention[:exemplars]   vae_attention:gaussian; with -uncached after the variant it reads the images twice
                              instead of keeping their features in memory
  patchcore[:0.1]             anomalib's Patchcore; the variant is the coreset ratio; with -fast after it the same
                              coreset is chosen in less time, so that its fit time is not anomalib's. It is skipped
                              where its fit would need more memory than there is
  padim[:100]                 anomalib's Padim; the variant is the number of features
  MODEL[:EPOCHS]              any other model of anomalib, such as dfm or stfpm:20; on the same backbone if it has an
                              argument of that name, otherwise on its own

With --accelerator gpu models are fitted on a GPU and measured there, from floats in pinned memory to scores and maps in
it: cuda is PyTorch in float32 without TF32; compile, torch.compile; graph, a CUDA graph.
Peers are measured with cuda alone. Each of 2,000 calls is timed, and the last 1,000 count, as for EfficientAD; beside
them is what scores and maps differ by from the CPU's.

A model runs on --layers, or on its own: padim@blocks.2+blocks.4. Of a peer that is named with several sets of layers,
the better one in each measure is compared with vae_attention, and ranked.

example:
  vae-attention benchmark --data_root datasets --categories MVTecAD/bottle my_parts --seeds 0 1 2 --runtimes \\
      --models vae_attention padim padim@blocks.2+blocks.4 patchcore:0.01@blocks.2+blocks.4
"""


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command's arguments."""
    parser = command_parser(
        "benchmark",
        "Compare models on the same backbone, layers and input size: accuracy, memory, sizes, latency.",
        EPILOG,
    )
    parser.add_argument("--data_root", type=Path, required=True, metavar="DIR", help="folder of all data")
    parser.add_argument("--categories", nargs="+", required=True, metavar="FOLDER", help="categories below it")
    parser.add_argument(
        "--models",
        nargs="+",
        default=["vae_attention", "patchcore", "padim"],
        metavar="MODEL",
        help="models to compare, see below (default: vae_attention patchcore padim)",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="one fit each; tables show medians (0)")
    add_backbone_arguments(parser)
    parser.add_argument(
        "--image_size", nargs="+", type=int, default=[256], help="side, or height and width, to resize images to (256)"
    )
    parser.add_argument("--accelerator", choices=("cpu", "gpu"), default="cpu", help="what models are fitted on (cpu)")
    parser.add_argument(
        "--runtimes",
        nargs="*",
        choices=(*RUNTIMES, *GPU_RUNTIMES),
        metavar="RUNTIME",
        help=f"what latencies are measured with, none for no latencies ({' '.join(RUNTIMES)}; with --accelerator gpu "
        f"{' '.join(GPU_RUNTIMES)})",
    )
    parser.add_argument("--threads", type=int, default=cores(), help="threads for latencies (the number of cores)")
    parser.add_argument("--fresh", nargs="+", default=[], metavar="MODEL", help="models to measure again, at once")
    parser.add_argument("--output", type=Path, default=Path("results/benchmark"), help="folder (results/benchmark)")
    return parser


def add_backbone_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that choose the backbone and its layers, the same for all models."""
    parser.add_argument(
        "--backbone",
        default="tf_efficientnet_lite0",
        help="timm model for all (tf_efficientnet_lite0); weights that no installed package has are downloaded",
    )
    parser.add_argument(
        "--layers",
        nargs="+",
        default=["blocks.1", "blocks.2", "blocks.4"],
        help="its layers, for all (blocks.1 blocks.2 blocks.4)",
    )


def cells_of(arguments: argparse.Namespace) -> list[Cell]:
    """Check the parsed arguments and list the cells in the order of their running.

    Raises:
        ValueError: If an argument is out of range or names something that does not exist; the message names the
            argument and what there is.
    """
    require_whole("threads", arguments.threads, least=1)
    if arguments.runtimes is None:
        arguments.runtimes = list(GPU_RUNTIMES if arguments.accelerator == "gpu" else RUNTIMES)
    size = arguments.image_size
    require_wholes("image_size", size * 2 if len(size) == 1 else size, least=1, count=2)
    categories = {name: locate_category(arguments.data_root, name) for name in arguments.categories}
    return plan_cells(
        categories,
        arguments.models,
        arguments.seeds,
        Cell(
            category="",
            folder="",
            model="",
            seed=0,
            backbone=arguments.backbone,
            layers=tuple(arguments.layers),
            image_size=size[0] if len(set(size)) == 1 else tuple(size),
            keep=bool(arguments.runtimes),
            export=any(runtime not in {"eager", *GPU_RUNTIMES} for runtime in arguments.runtimes),
            accelerator=arguments.accelerator,
        ),
    )


def main(arguments: list[str]) -> int:
    """Run the comparison; the exit code is 0 when all is done, 1 if a cell failed, 130 after an interruption."""
    # Only here, so that --help is quick.
    from .comparison import forget_results, prepare_weights, run_cells, run_latencies
    from .report import make_tables, write_results

    parsed = make_parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    cells = cells_of(parsed)
    environment = prepare_weights(parsed.output, cells)
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(parsed).items()}
    description = {"command": shlex.join(["vae-attention", "benchmark", *arguments]), "settings": settings}
    forget_results(cells, parsed.output, parsed.fresh)
    # A command that is ended must not leave the process of its cell behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        results = run_cells(cells, parsed.output, environment)
        write_results(parsed.output, cells, make_tables(cells, results, []), description)
        measured = run_latencies(cells, results, parsed.output, environment, parsed.runtimes, parsed.threads)
    except KeyboardInterrupt:
        logger.warning("Interrupted. What is finished lies in %s; the same command goes on from there.", parsed.output)
        return 130
    print(write_results(parsed.output, cells, make_tables(cells, results, measured), description))
    return int(any(result["status"] == FAILED for result in results))
