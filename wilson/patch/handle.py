"""What all patches share: putting a method into a class, taking it out, and telling why one is not used."""

from __future__ import annotations

import functools
import importlib
import inspect
import warnings
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import torch

Method = Callable[..., Any]


class Patch:
    """A method of a class replaced by another one, until :meth:`undo`.

    As a context manager it gives back, at the end, what was there before it was made: a patch inside another one leaves
    the outer one in place.
    """

    def __init__(self, name: str, owner: type, method: str, make: Callable[[Method, Patch], Method]) -> None:
        """Put `make(original, self)` in the place of `owner.method`; where a patch of that name is, change nothing."""
        self.name, self.owner, self.method = name, owner, method
        present = getattr(vars(owner).get(method), "_wilson_patch", None)
        self._in_force: Patch = present if present and present.active else self
        if self._in_force is not self:
            return
        self.active = True
        self._warned: set[str] = set()
        self._inherited = method not in vars(owner)
        self._original: Method = getattr(owner, method)
        replacement = make(self._original, self)

        # Another patch may be put on top of this one, so that it cannot be taken out: it then calls the original
        @functools.wraps(self._original)
        def either(*args: Any, **kwargs: Any) -> Any:
            return (replacement if self.active else self._original)(*args, **kwargs)

        either._wilson_patch = self  # type: ignore[attr-defined]
        self._either = either
        setattr(owner, method, either)

    def undo(self) -> None:
        """Give the library its own method back. A second call does nothing."""
        patch = self._in_force
        patch.active = False
        if vars(patch.owner).get(patch.method) is not patch._either:
            return
        if patch._inherited:
            delattr(patch.owner, patch.method)
        else:
            setattr(patch.owner, patch.method, patch._original)

    def falls_back(self, reason: str) -> None:
        """Warn, once for each reason, that a call goes the library's own way."""
        patch = self._in_force
        if torch.compiler.is_compiling() or reason in patch._warned:
            return
        patch._warned.add(reason)
        warnings.warn(f"wilson.patch.{self.name}: {reason}; the library's own loss is used", stacklevel=3)

    def __enter__(self) -> Patch:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._in_force is self:
            self.undo()

    def __repr__(self) -> str:
        state = "in force" if self._in_force.active else "undone"
        return f"<wilson.patch.{self.name}: {self.owner.__qualname__}.{self.method}, {state}>"


def find(name: str, package: str, module: str, owner: str, method: str, parameters: Sequence[str]) -> type:
    """The class to patch; its method must begin with these parameters.

    Raises:
        ImportError: the library is not installed or cannot be imported.
        RuntimeError: its version has no such class or method.
    """
    try:
        found = getattr(importlib.import_module(module), owner, None)
    except ImportError as error:
        raise ImportError(
            f"wilson.patch.{name}: {module} could not be imported ({error}); pip install {package}"
        ) from error
    have = list(inspect.signature(getattr(found, method)).parameters) if hasattr(found, method) else None
    if found is None or have is None or have[: len(parameters)] != list(parameters):
        version = getattr(importlib.import_module(module.partition(".")[0]), "__version__", "unknown")
        got = "none" if have is None else f"({', '.join(have)})"
        raise RuntimeError(
            f"wilson.patch.{name}: expected {module}.{owner}.{method}({', '.join(parameters)}, ...), got {got} "
            f"in {package} {version}"
        )
    return found
