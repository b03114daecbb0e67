"""Debian's chromium, driven by its debugging protocol through pipes: no driver and no port is needed."""

import base64
import fcntl
import json
import os
import shutil
import subprocess
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


class Tab:
    """A page in a browser.

    Attributes:
        session: Which of the pages that were opened is meant; the last one at first.
        requested: Addresses that the page asked for, also in vain, but those that hold their content.
        complaints: What it wrote to the console as errors.
    """

    def __init__(self, write: int, read: int) -> None:
        self._write, self._read, self._buffer, self._count = write, read, b"", 0
        self.session = ""
        self.requested: list[str] = []
        self.complaints: list[str] = []

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol, and return its result."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._count:
                assert "error" not in answer, answer
                return answer["result"]

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            self._buffer += os.read(self._read, 2**20)
        message, _, self._buffer = self._buffer.partition(b"\0")
        answer = json.loads(message)
        if answer.get("method") == "Network.requestWillBeSent":
            address = answer["params"]["request"]["url"]
            self.requested += [] if address.startswith("data:") else [address]
        if answer.get("method") == "Log.entryAdded":
            entry = answer["params"]["entry"]
            self.complaints.append(f"{entry['text']} {entry.get('url', '')}")
        return answer

    def open(self, address: str, width: int = 1200, height: int = 900, *, dark: bool = False) -> None:
        """Open a new page of a size."""
        self.session = ""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Network", "Log", "Page"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        colours = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=colours)
        self.call("Page.navigate", url=address)

    def run(self, script: str) -> Any:
        """Evaluate a script in the page."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, script: str, seconds: float = 300) -> Any:
        """Wait until a script evaluates to something true, and return that."""
        end = time.monotonic() + seconds
        while not (value := self.run(script)):
            assert time.monotonic() < end, f"{script} is still {value!r}: {self.run('document.body.innerText')}"
            time.sleep(0.05)
        return value

    def drop(self, selector: str, file: Path) -> None:
        """Drop a file on an element, as from the desktop, until the page sends it: it may just have loaded."""
        self.wait(f"!!document.querySelector({selector!r})")
        data = {"items": [], "files": [str(file)], "dragOperationsMask": 1}
        sent, end = len(self.requested), time.monotonic() + 300
        while not any("/upload" in address for address in self.requested[sent:]):
            assert time.monotonic() < end, f"{file} is not taken: {self.run('document.body.innerText')}"
            x, y = self.run(
                f"(() => {{ const e = document.querySelector({selector!r}); e.scrollIntoView({{block: 'center'}}); "
                "const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; })()"
            )
            for kind in ("dragEnter", "dragOver", "drop"):
                self.call("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)
            self.run("new Promise((done) => setTimeout(done, 1000))")

    def photograph(self, file: Path, kind: str = "png", height: int | None = None) -> None:
        """Write a picture of the page."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": height or size["height"], "scale": 1}
        taken = self.call("Page.captureScreenshot", format=kind, clip=clip, captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(taken["data"]))


@contextmanager
def open_browser(folder: Path) -> Generator[Tab, None, None]:
    """Start chromium, or skip the test where there is none."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium to open the page with")
    (its_read, our_write), (our_read, its_write) = os.pipe(), os.pipe()

    def give_pipes() -> None:
        # Out of the way first: either may be 3 or 4 itself.
        read, write = (fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (its_read, its_write))
        os.dup2(read, 3)
        os.dup2(write, 4)

    options = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", f"--user-data-dir={folder}"]
    process = subprocess.Popen(
        [browser, *options, "about:blank"],
        preexec_fn=give_pipes,  # noqa: PLW1509 - it starts no thread
        close_fds=False,
        stderr=subprocess.DEVNULL,
    )
    os.close(its_read)
    os.close(its_write)
    try:
        yield Tab(our_write, our_read)
    finally:
        process.terminate()
        process.wait()
        os.close(our_write)
        os.close(our_read)
