"""Looking at what modules inside of a network give."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn


@contextmanager
def outputs(modules: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """A list that the block fills with the outputs of the modules, in the order of their calls."""
    found: list[Tensor] = []
    hooks = [module.register_forward_hook(lambda _module, _inputs, out: found.append(out)) for module in modules]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
