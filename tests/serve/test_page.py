"""The page in a browser, and what else its server answers: nothing of this machine, and nothing of another one."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

import pytest
from browser import Tab, open_browser
from support import Fitted

from anomalib_vae_attention import EmbeddedAD
from anomalib_vae_attention.common.images import read_upright
from anomalib_vae_attention.common.mvtec_layout import list_images
from anomalib_vae_attention.predict.models import judge, load_model

pytestmark = pytest.mark.skipif(find_spec("gradio") is None, reason="Gradio is not installed: pip install '.[web]'")
CARD = "document.querySelector('#verdict .card')?.innerText"
SLIDE = """(value) => {
    const slider = document.querySelector('input[type=range]');
    slider.value = value;
    slider.dispatchEvent(new Event('input', { bubbles: true }));
}"""


class Served(NamedTuple):
    """A running command: its address, checkpoint, folder of temporary files, and process."""

    address: str
    checkpoint: Path
    temporary: Path
    process: subprocess.Popen


@contextmanager
def serve(checkpoint: Path, temporary: Path, *arguments: str) -> Generator[Served, None, None]:
    """Run the command, stop it as Ctrl-C does, and demand that it ends as it should."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "anomalib_vae_attention.cli", "serve", str(checkpoint), "--port", str(port)]
    # What lies beside the model must not be readable either, nor open up by settings of other programs.
    settings = {"TMPDIR": str(temporary), "GRADIO_ALLOWED_PATHS": "/", "GRADIO_SHARE": "True", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, *arguments],
        env={**os.environ, **settings, "http_proxy": "http://127.0.0.1:9"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # As in a terminal, where Ctrl-C is not ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509
    )
    lines = []
    while process.poll() is None and not (lines and lines[-1].startswith("page ")):
        lines.append(process.stdout.readline())
    assert process.poll() is None, process.stderr.read()
    try:
        yield Served(f"http://127.0.0.1:{port}/", checkpoint, temporary, process)
        assert process.poll() is None
    finally:
        process.send_signal(signal.SIGINT)
        printed, complaints = process.communicate(timeout=120)
    assert lines[-1].split()[-1].endswith(f":{port}/")
    assert not printed
    assert process.returncode == 130
    assert complaints.splitlines()[-1] == "vae-attention serve: interrupted"
    assert not list(temporary.glob("vae-attention-serve-*"))


@pytest.fixture(scope="module")
def served(fitted_small: Fitted, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve(fitted_small.checkpoint, tmp_path_factory.mktemp("temporary")) as running:
        yield running


@pytest.fixture(scope="module")
def image(small_data: EmbeddedAD) -> Path:
    return list_images(small_data.root / "washer" / "test" / "crack")[0]


@pytest.fixture
def tab(tmp_path: Path) -> Iterator[Tab]:
    with open_browser(tmp_path / "browser") as browser:
        yield browser


def ask(address: str, data: bytes | None = None, **headers: str) -> tuple[int, bytes]:
    """Send a request, and return the status and the body of what is answered."""
    request = urllib.request.Request(address, data, {name.replace("_", "-"): text for name, text in headers.items()})
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=300) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def call(served: Served, sent: Any) -> str:
    """Ask for the verdict of what is said to have been sent, as the page's script does; return the answer."""
    session = f"session{time.monotonic_ns()}"
    body = {"data": [sent, 0.5, 0.5], "fn_index": 0, "session_hash": session}
    join = f"{served.address}gradio_api/queue/join"
    assert ask(join, json.dumps(body).encode(), content_type="application/json")[0] == 200
    return ask(f"{served.address}gradio_api/queue/data?session_hash={session}")[1].decode()


def test_an_image_is_dropped_and_the_verdict_read(served: Served, image: Path, tab: Tab, tmp_path: Path) -> None:
    model = load_model(served.checkpoint)
    verdict = judge(model, [read_upright(image)])
    score, is_defective = float(verdict.score[0]), bool(verdict.defective[0])
    tab.open(served.address)
    tab.drop("#image", image)
    card = tab.wait(CARD)
    assert card.startswith("DEFECTIVE" if is_defective else "GOOD")
    assert f"score {score:.3f}, threshold {model.thresholds[0]:.3f}" in card
    assert image.name in card
    drawn = "[...document.querySelectorAll('#pictures img, #reason img')].filter((one) => one.naturalWidth > 8).length"
    tab.wait(f"{drawn} === 5")
    # As quickly as a hand can, and the last one counts.
    other = score + (0.05 if is_defective else -0.05)
    for step in range(30):
        tab.run(f"({SLIDE})({step / 30})")
    tab.run(f"({SLIDE})({other:.3f})")
    tab.wait(f"{CARD}.includes('threshold {other:.3f}')")
    assert tab.run(CARD).startswith("GOOD" if is_defective else "DEFECTIVE")
    # Another tab has its own image and thresholds.
    first, card = tab.session, tab.run(CARD)
    page = tmp_path / "page.png"
    page.write_text("<html>", encoding="utf-8")
    tab.open(served.address, width=400, dark=True)
    tab.drop("#image", page)
    assert tab.wait(CARD).startswith("NO VERDICT\npage.png is no image that can be read")
    assert tab.run("document.documentElement.scrollWidth") <= 400
    assert tab.run("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    tab.session = first
    tab.run(f"({SLIDE})({other:.3f})")
    assert tab.run(CARD) == card
    # Everything came from here, also of what the browser refused.
    assert {address for address in tab.requested if not address.startswith((served.address, "blob:"))} == set()
    assert not [text for text in tab.complaints if "Content Security Policy" in text]


def test_the_page_names_nothing_elsewhere(served: Served) -> None:
    """Addresses of others in the page are those that browsers do not fetch: of its description for search engines."""
    status, page = ask(served.address)
    assert status == 200
    text = page.decode()
    fetched = re.findall(r"<(?:script|link|img|iframe)[^>]*?(?:src|href)=\"((?:https?:)?//[^\"]+)", text)
    assert not fetched
    assert "fonts.g" not in text
    for place in ("", "config", "theme.css"):
        assert str(served.checkpoint.parents[1]) not in ask(served.address + place)[1].decode()
        assert "@import" not in ask(served.address + place)[1].decode()


def test_no_file_of_this_machine_is_read(served: Served, image: Path) -> None:
    folder = next(served.temporary.glob("vae-attention-serve-*"))
    below = f"{folder}/{'a' * 64}"
    files = ["/etc/passwd", str(served.checkpoint), str(image), "http://127.0.0.1:9/", f"{below}/../../../etc/passwd"]
    for file in [*files, f"{below}/..%2f..%2fx", f"{below}/.."]:
        for place in ("gradio_api/file=", "gradio_api/file/", "file=", "gradio_api/proxy="):
            status, body = ask(served.address + place + quote(file, safe="/:%="))
            assert status in {403, 404}, (place, file)
            assert b"root:" not in body
    for place in ("gradio_api/runs", "monitoring/summary", "docs", "gradio_api/call/judge_image", "gradio_api/info/x"):
        assert ask(served.address + place)[0] == 404
    kind = {"_type": "gradio.FileData"}
    for file in files:
        for marked in ({}, {"meta": kind}, {"meta": kind, "url": file}):
            answer = call(served, {"path": file, "orig_name": "part.png", **marked})
            assert '"success":false' in answer, (file, marked)
            assert "NO VERDICT" not in answer


def test_a_file_that_is_too_large_is_refused(served: Served) -> None:
    for size, place in ((100 * 2**20, "upload"), (100 * 2**20, "queue/join")):
        with socket.create_connection(("127.0.0.1", int(served.address.rstrip("/").rpartition(":")[2]))) as connection:
            head = f"POST /gradio_api/{place} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size}\r\n\r\n"
            connection.sendall(head.encode())
            assert connection.recv(100).startswith(b"HTTP/1.1 413 ")


def test_visitors_must_know_the_password(fitted_small: Fitted, tmp_path: Path) -> None:
    with serve(fitted_small.checkpoint, tmp_path, "--host", "0.0.0.0", "--password", "größer") as served:
        assert ask(f"{served.address}config")[0] == 401
        assert ask(f"{served.address}gradio_api/upload", b"")[0] == 401
        assert "judge_image" not in ask(served.address)[1].decode()
        for password, status in (("grösser", 400), ("", 422), ("größer", 200)):
            form = urlencode({"username": "anyone", "password": password}).encode()
            assert ask(f"{served.address}login", form)[0] == status
