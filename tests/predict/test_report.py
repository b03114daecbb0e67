"""The report in a browser: what it counts, filters and shows, without a network, with any name of a file."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from anomalib_vae_attention.predict.pictures import TRUTH, colour_scale, write
from anomalib_vae_attention.predict.report import write_report

NAMES = {
    "ok/<b>&'\"{{1}}.png": ("good", 0.30),
    "ok/Größe #2 %41?.png": ("good", 0.52),
    "ng/<img src=x onerror=alert(1)>.png": ("defective", 0.48),
    "ng/4.png": ("defective", 0.70),
}
# Moves the page's own controls, and leaves in the title what is then shown.
PROBE = """<script>
  const names = () => visible.map((image) => image.name);
  const cells = () => [...document.querySelectorAll("td")].map((cell) => cell.textContent);
  const choose = (id, value, kind = "change") => { find(id).value = value; find(id).dispatchEvent(new Event(kind)); };
  const report = { worst: names(), counts: cells() };
  choose("which", "missed"); report.missed = names();
  choose("which", "alarms"); report.alarms = names();
  choose("which", "all"); choose("folder", "ng"); report.folder = names();
  choose("folder", ""); choose("threshold", 0.6, "input"); report.moved = cells();
  choose("order", "best"); report.best = names();
  choose("opacity", 0.25, "input");
  report.opacity = getComputedStyle(visible[0].card.querySelectorAll("img")[1]).opacity;
  show(images[3]); report.told = find("told").textContent; report.masked = !find("masked").hidden;
  report.lazy = [...grid.querySelectorAll("img")].every((image) => image.loading === "lazy");
  addEventListener("load", () => {
    report.loaded = [...document.images].filter((image) => image.complete && image.naturalWidth > 0).length;
    report.wide = document.documentElement.scrollWidth <= innerWidth;
    document.title = JSON.stringify(report);
  });
</script></body>"""


def row(name: str, truth: str, score: float | None) -> dict[str, object]:
    box = dict.fromkeys(("defect_x", "defect_y", "defect_width", "defect_height", "defect_area"), 3)
    return {"name": name, "truth": truth, "score": score, "error": "" if score else "</script><b>&", **box}


def browse(page: Path, probe: str, width: int = 1000) -> dict:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium to open the page with")
    probed = page.with_name("probed.html")
    probed.write_text(page.read_text(encoding="utf-8").replace("</body>", probe), encoding="utf-8")
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--window-size={width},900",
        "--virtual-time-budget=9000",
    ]
    done = subprocess.run(
        [browser, *options, "--dump-dom", probed.as_uri()], capture_output=True, text=True, timeout=180, check=False
    )
    (title,) = re.findall(r"<title>(.*?)</title>", done.stdout, re.DOTALL)
    return json.loads(title.replace("&quot;", '"').replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    for name in NAMES:
        place = folder / "report_files" / name
        write(np.full((40, 60, 3), 128, np.uint8), place.with_name(f"{place.name}.jpg"))
        write(np.full((8, 8), 255, np.uint8), place.with_name(f"{place.name}.map.png"), colour_scale())
    write(np.zeros((40, 60), np.uint8), folder / "report_files" / "ng" / "4.png.mask.png", TRUTH)
    rows = [row(name, *found) for name, found in NAMES.items()]
    write_report(folder / "report.html", [*rows, row("broken.png", "", None)], 0.5, "A <title>")
    return folder / "report.html"


def test_what_the_page_counts_filters_and_shows(page: Path) -> None:
    good, alarm, missed, found = NAMES
    seen = browse(page, PROBE)
    assert seen["worst"] == ["broken.png", found, alarm, missed, good]
    assert seen["counts"] == ["called good", "called defective", "1", "1", "1", "1", "1"]
    assert seen["missed"] == [missed]
    assert seen["alarms"] == [alarm]
    assert seen["folder"] == [found, missed]
    assert seen["moved"] == ["called good", "called defective", "2", "0", "1", "1", "1"]
    assert seen["best"] == [good, missed, alarm, found, "broken.png"]
    assert seen["opacity"] == "0.25"
    assert found in seen["told"]
    assert "pixels at (3, 3)" in seen["told"]
    assert seen["masked"] is True
    assert seen["lazy"] is True
    # Four photographs, and in the enlarged one its map and mask.
    assert seen["loaded"] >= 4 * 2 + 3


def test_the_page_is_as_narrow_as_a_telephone(page: Path) -> None:
    assert browse(page, PROBE, width=500)["wide"] is True


def test_the_page_names_nothing_elsewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "<title>A &lt;title&gt;</title>" in text
    assert set(re.findall(r"https?://[^\s\"']+", text)) == {"http://www.w3.org/2000/svg"}
    assert len(re.findall(r"<script", text)) == 1


def test_two_thousand_images_open_at_once(page: Path) -> None:
    rows = [row(f"{index % 7}/{index}.png", "good", 0.001 + index / 2001) for index in range(2000)]
    large = page.with_name("large.html")
    write_report(large, rows, 0.5, "Many")
    assert large.stat().st_size < 1_500_000
    seen = browse(
        large,
        "<script>choose = performance.now(); update(); document.title = JSON.stringify({cards: "
        "document.querySelectorAll('figure').length, time: performance.now() - choose, "
        "asked: performance.getEntriesByType('resource').length});</script></body>".replace("choose", "window.began"),
    )
    assert seen["cards"] == 2000
    assert seen["time"] < 2000
    assert seen["asked"] < 500
