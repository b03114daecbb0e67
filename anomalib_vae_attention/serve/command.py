"""The command ``vae-attention serve``: a page on which people try a model on an image."""

import errno
import getpass
import ipaddress
import os
import signal
import socket
import tempfile
import time
from pathlib import Path

from anomalib_vae_attention.common.argument_checks import command_parser
from anomalib_vae_attention.predict.models import load_model

PORT = 7860
EPILOG = f"""
MODEL is a checkpoint (.ckpt), an export (.onnx, or .xml of OpenVINO), or the folder that a training or an export left
it in. The page is for this machine alone, unless --host says otherwise: then it wants a password. It is not encrypted,
and browsers give a camera to a page of another machine only if it is: put a web server with HTTPS before it. Nothing is
fetched from elsewhere, and no image is kept. Ctrl-C ends it.

examples:
  vae-attention serve results/parts
  vae-attention serve model.onnx --host 0.0.0.0 --password --port {PORT + 1}
"""


def is_loopback(host: str) -> bool:
    """Say whether only this machine reaches an address or name."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def require_free(host: str, port: int) -> None:
    """Check that the page can be served at an address.

    Raises:
        ValueError: If it cannot; the message says why.
    """
    if not 0 < port < 2**16:
        msg = f"--port must be from 1 to {2**16 - 1}, but is {port}."
        raise ValueError(msg)
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.create_server((host, port), family=family):
            pass
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        msg = f"--port {port} is taken: name another." if taken else f"--host {host} --port {port}: {error.strerror}."
        raise ValueError(msg) from error


def close_gradio(folder: str) -> None:
    """Set Gradio up to keep everything in a folder, to tell nobody, and to heed no settings of other programs."""
    for name in [name for name in os.environ if name.startswith("GRADIO_")]:
        del os.environ[name]
    os.environ |= {
        "GRADIO_ANALYTICS_ENABLED": "False",
        "GRADIO_TEMP_DIR": folder,
        "GRADIO_EXAMPLES_CACHE": f"{folder}/examples",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "1",
        # Its one request is to itself, when it starts.
        "NO_PROXY": "*",
        "no_proxy": "*",
    }


def main(arguments: list[str] | None = None) -> None:
    """Serve the page until the process is interrupted.

    Raises:
        FileNotFoundError: If there is no model.
        ValueError: If arguments are wrong.
    """
    parser = command_parser(
        "serve", "Try a model in a browser: drop an image, see verdict, map and mask, and move the threshold.", EPILOG
    )
    parser.add_argument("model", type=Path, help="checkpoint, export, or folder of one")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1: this machine alone)")
    parser.add_argument("--port", type=int, default=PORT, help=f"port to listen on ({PORT})")
    parser.add_argument("--password", nargs="?", const="", help="what visitors must know; alone, it is asked for")
    parser.add_argument("--device", help="of a checkpoint: cpu or cuda (cuda where there is one)")
    given = parser.parse_args(arguments)
    host = given.host.strip("[]")
    if given.password is None and not is_loopback(host):
        msg = f"--host {given.host} lets others in: set a --password."
        raise ValueError(msg)
    require_free(host, given.port)
    password = getpass.getpass("Password of the page: ") if given.password == "" else given.password
    if password == "":
        msg = "--password is empty."
        raise ValueError(msg)
    # Files that were sent go with the folder, also where the process is told to end.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="vae-attention-serve-") as folder:
        close_gradio(folder)
        from .page import make_page, start

        model = load_model(given.model, given.device)
        page = make_page(model)
        start(page, f"[{host}]" if ":" in host else host, given.port, password)
        shown = socket.gethostname() if host in {"0.0.0.0", "::"} else f"[{host}]" if ":" in host else host  # noqa: S104
        print(f"model    {model.file}\nstop     Ctrl-C\npage     http://{shown}:{given.port}/", flush=True)
        try:
            while True:
                time.sleep(3600)
        finally:
            page.close(verbose=False)
