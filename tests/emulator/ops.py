"""The public ops of the project on emulated kernels: `wilson.ops.pamr(...)` with the kernels of Triton or CUDA."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from wilson.ops._registry import OPS

from . import kernel

PROVIDERS = ("triton", "cuda")


def families(provider: str) -> list[str]:
    """The families that this provider has kernels of."""
    every = dict.fromkeys(op.family for op in OPS.values())
    if provider == "cuda":
        from . import cuda_ops

        return [family for family in every if family in cuda_ops.sources()]
    return [family for family in every if importlib.util.find_spec(f"wilson.kernels.{family}")]


def launchers(provider: str, family: str, arch: int) -> dict[str, Callable[..., Any]]:
    """The raw ops of a family that the provider serves, by name."""
    names = [name for op in OPS.values() if op.family == family for name in op.raw]
    if provider == "triton":
        module = importlib.import_module(f"wilson.kernels.{family}")
        found = {name: getattr(module, name, None) for name in names}
    else:
        from . import cuda_ops

        library = cuda_ops.library(family, arch)
        found = {name: library.launcher(name) for name in names}
    return {name: function for name, function in found.items() if function is not None}


@contextlib.contextmanager
def emulated(
    provider: str, family: str, arch: int = 90, seed: int = 0, observe: Callable[..., Any] | None = None
) -> Iterator[kernel.Session]:
    """Within, the public ops of a family run the provider's kernels on the emulator.

    `observe(session, name, launcher, args)`, if given, is called instead of each raw op.
    """
    served = launchers(provider, family, arch)
    definitions = _definitions(family)
    replaced = {}
    with _driver(provider, arch), kernel.session(seed) as session:
        for attribute, value in list(vars(definitions).items()):
            name = value.__name__.split(".")[0] if isinstance(value, torch._ops.OpOverload) else ""
            if name in served:
                replaced[attribute] = value
                setattr(definitions, attribute, _guarded(session, name, served[name], observe))
        try:
            yield session
        finally:
            for attribute, value in replaced.items():
                setattr(definitions, attribute, value)


def _driver(provider: str, arch: int) -> contextlib.AbstractContextManager[None]:
    if provider != "triton":
        return contextlib.nullcontext()
    from . import triton_driver

    return triton_driver.use(arch)


def _guarded(
    session: kernel.Session, name: str, launcher: Callable[..., Any], observe: Callable[..., Any] | None
) -> Callable[..., Any]:
    """The launcher with its arguments made known to the emulator: kernels may read them, not write."""

    def run(*args: Any) -> Any:
        for value in args:
            if isinstance(value, Tensor):
                session.memory.add(value, writable=False)
        return observe(session, name, launcher, args) if observe else launcher(*args)

    return run


def _definitions(family: str) -> Any:
    return importlib.import_module(f"wilson.ops.{family}")
