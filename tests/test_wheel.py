"""What is installed: the whole package, and neither tests nor studies."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages

ROOT = Path(__file__).parents[1]


def test_the_wheel_has_the_package_and_nothing_else() -> None:
    settings = ConfigParser()
    settings.read(ROOT / "setup.cfg", encoding="utf-8")
    include = settings["options.packages.find"]["include"].split()
    found = set(find_packages(str(ROOT), include=include))
    folders = {file.parent for file in (ROOT / "anomalib_vae_attention").rglob("*.py")}
    assert found == {folder.relative_to(ROOT).as_posix().replace("/", ".") for folder in folders}
    assert not any(part in name for name in found for part in ("test", "studies"))
    # What is not Python is named beside its package: templates, and the mark that there are types.
    data = settings["options.package_data"]
    others = [*(ROOT / "anomalib_vae_attention").rglob("*.j2"), ROOT / "anomalib_vae_attention" / "py.typed"]
    assert all(file.is_file() for file in others)
    assert {file.parent.relative_to(ROOT).as_posix().replace("/", ".") for file in others} == set(data)
