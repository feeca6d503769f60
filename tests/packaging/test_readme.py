"""README and docs keep their promises: Python blocks run, tables name what there is, links lead somewhere."""

import re
from pathlib import Path

import pytest
import torch

from tests.support.tiny_runs import QUICK
from wilson import config
from wilson.ops import _registry

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.splitlines()[0])
def test_python_blocks_run(block, tmp_path, monkeypatch):
    """What asks for a gradient gets one; a run that is started ends with its report."""
    monkeypatch.setitem(config.RECIPES, "demo", QUICK)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(block, names)
    learned = [v for v in names.values() if isinstance(v, torch.Tensor) and v.requires_grad and v.is_leaf]
    assert all(tensor.grad is not None and tensor.grad.abs().sum() > 0 for tensor in learned)
    started = re.findall(r"""run\(.*Path\(["'](.+?)["']\)""", block)
    assert all((tmp_path / folder / "report.html").exists() for folder in started)
    assert learned or started


def test_table_of_ops():
    assert _registry.table() in README, f"the README's table of ops is not\n\n{_registry.table()}"


def test_the_two_commands():
    assert re.findall(r"^pip install -e .*$", README, re.MULTILINE) == [
        'pip install -e ".[train]" && wilson demo',
        'pip install -e ".[train,test]" && pytest -n 2',
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_linked_files_exist(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def headings(page):
    """The anchors of a page's headings, as code hosts name them."""
    found = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in found}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_linked_headings_exist(page):
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#([^)]+)\)", page.read_text(encoding="utf-8")):
        assert anchor in headings(page.parent / target if target else page), f"{target}#{anchor}"
