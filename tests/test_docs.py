"""The documents: links lead somewhere, paths and commands that they name exist, and the README is short."""

import re
from pathlib import Path

import pytest

from anomalib_vae_attention.cli import COMMANDS

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
NAMED = re.compile(r"(?<![\w/.])((?:configs|docs|tests|anomalib_vae_attention)/[\w/.-]*\w)")
"""Paths of the repository in text and commands, without globs."""


def anchors(document: Path) -> set[str]:
    """Return the anchors that GitHub makes of a document's headings."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_paths(document: Path) -> None:
    """Relative links resolve, with their anchors, and so do paths of the repository; subcommands exist."""
    text = document.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        if "://" in target:
            continue
        linked = (document.parent / path).resolve() if path else document
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target
    missing = [path for path in NAMED.findall(text) if "NAME" not in path and not (ROOT / path).exists()]
    assert not missing
    assert set(re.findall(r"vae-attention (\w+)", text)) <= set(COMMANDS)


def test_readme() -> None:
    """The README has at most 150 lines, and the two commands that CI runs."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    install = "pip install torch==2.14.1 torchvision==0.29.1 && pip install "
    assert f"{install}. && anomalib train --model vae_attention\n" in text
    assert f"{install}-e '.[test]' && HF_HUB_OFFLINE=1 python -m pytest\n" in text
