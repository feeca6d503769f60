"""The README keeps its promises: its Python blocks run, and its tables name what there is."""

import re
from dataclasses import replace
from pathlib import Path

from wilson.ops import _registry

README = (Path(__file__).parents[1] / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_ops_example_runs():
    names: dict = {}
    exec(PYTHON[0], names)
    assert names["scores"].grad.abs().sum() > 0 and names["logits"].grad.abs().sum() > 0


def test_training_example_runs(tmp_path, monkeypatch):
    from wilson import config

    demo = config.DEMO
    tiny = replace(
        demo,
        data=replace(demo.data, train_images=42, val_images=6, crop=32),
        base=replace(demo.base, epochs=1, batch=8),
        step=replace(demo.step, epochs=1, batch=8),
    )
    monkeypatch.setitem(config.RECIPES, "demo", tiny)
    monkeypatch.chdir(tmp_path)
    exec(PYTHON[1], {})
    assert (tmp_path / "runs" / "mine" / "report.html").exists()


def test_table_of_ops():
    assert _registry.table() in README, f"the README's table of ops is not\n\n{_registry.table()}"


def test_the_two_commands():
    assert re.findall(r"^pip install -e .*$", README, re.MULTILINE) == [
        'pip install -e ".[train]" && wilson demo',
        'pip install -e ".[train,test]" && pytest',
    ]


def test_linked_files_exist():
    root = Path(__file__).parents[1]
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (root / target).exists(), target
