"""Runs every op, forward and backward, against the reference in float64, with torch and numpy alone.

`python -m tests.support.every_op`, for an installed wheel: it also tells what serves the ops, and fails where a
compiled library is there and does not.
"""

import torch

from tests.support import cases, infinities
from tests.support.agreement import Expected
from wilson import ops
from wilson.ops import _library
from wilson.ops._registry import OPS


def main() -> None:
    """Run them; raises at the first that disagrees."""
    run = []
    for case in cases.every(torch.float32):
        if case.name == "odd":
            Expected(case).assert_met_by(getattr(ops, case.op))
            run.append(case.op)
    for op in infinities.OPS:
        for case in infinities.of(op):
            infinities.assert_as_the_reference(case, getattr(ops, op))
    assert set(run) == set(OPS)
    served = {op: _library.provider(op, "CPU") for op in run}
    assert not _library.CPU_LIBRARY.exists() or all(name == "C++" for name, _ in served.values()), served
    names = ", ".join(sorted({name for name, _ in served.values()}))
    print(f"torch {torch.__version__}: {len(run)} ops as the reference, by {names}")


if __name__ == "__main__":
    main()
