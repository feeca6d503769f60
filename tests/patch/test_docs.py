"""docs/drop_in.md: its code runs as it stands, and its tables name all modules and patches."""

import re
from pathlib import Path

import pytest

from tests.ops.test_modules import OP_OF
from wilson import patch
from wilson.ops._registry import OPS

PAGE = (Path(__file__).parents[2] / "docs" / "drop_in.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=["module", "transformers", "smp"])
@pytest.mark.filterwarnings("error:wilson.patch")
def test_blocks_run(block):
    """And end with gradients, without the library's own loss."""
    for library in ("transformers", "segmentation_models_pytorch"):
        if library in block:
            pytest.importorskip(library, reason='needs pip install -e ".[examples]"')
    names: dict = {}
    exec(block, names)
    learned = list(names["model"].parameters()) if "model" in names else [names["logits"]]
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in learned)
    if "handle" in names:
        assert "undone" in repr(names["handle"])


def test_tables():
    modules = [(module, op) for op in OPS for module, of in OP_OF.items() if of == op]
    lines = "".join(f"| `{module}` | `{op}` |\n" for module, op in modules)
    assert lines in PAGE, f"the table of modules is not\n\n{lines}"
    assert set(re.findall(r"^\| `patch\.(\w+)\(\)`", PAGE, re.MULTILINE)) == set(patch.__all__)
