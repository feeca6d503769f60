"""The tensors that kernels may touch, and what is known of each byte of them.

A kernel may read what belongs to a tensor and was written before, and write what a kernel may write. Memory is known
by the tensors that are handed over (`add`) and, within the context, by those that torch allocates: what `torch.empty`
gives is not initialised until a kernel or torch writes it.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

INSIDE, INITIALISED, WRITABLE, LOADED, STORED = 1, 2, 4, 8, 16  # machine/memory.h has the same
FAR = 1 << 24  # bytes between elements: those between them are never looked at
_EMPTY = ("aten::empty", "aten::new_empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty_strided")


class _Buffer(ctypes.Structure):
    _fields_ = (
        ("begin", ctypes.c_uint64),
        ("end", ctypes.c_uint64),
        ("state", ctypes.c_void_p),
        ("writable", ctypes.c_uint64),
    )


class Memory(TorchDispatchMode):
    """What the kernels of a program see."""

    def __init__(self) -> None:
        super().__init__()
        self._state: dict[int, np.ndarray] = {}  # address of a storage: the state of its bytes
        self._extents: dict[int, list[tuple[int, int]]] = {}  # and where elements are among these
        # kept alive, so that no address is given out twice
        self._kept: list[Any] = []

    def add(self, tensor: Tensor, *, initialised: bool = True, writable: bool = True) -> None:
        """Let kernels touch the elements of a tensor; what lies between them in its storage stays out of bounds."""
        storage = tensor.untyped_storage()
        if not storage.nbytes() or not tensor.numel():
            return
        address = storage.data_ptr()
        if address not in self._state:
            self._state[address] = np.zeros(storage.nbytes(), np.uint8)
            self._kept.append(storage)
        self._extents[address] = _joined([*self._extents.get(address, []), *_extents(tensor)])
        elements = self._elements(tensor)
        elements[...] |= INSIDE | (INITIALISED if initialised else 0)
        elements[...] = elements | WRITABLE if writable else elements & ~np.uint8(WRITABLE)

    def add_array(self, array: np.ndarray, *, writable: bool) -> None:
        """Memory that is no tensor: variables of a module."""
        state = INSIDE | INITIALISED | (WRITABLE if writable else 0)
        self._state[array.ctypes.data] = np.full(array.nbytes, state, np.uint8)
        self._extents[array.ctypes.data] = [(0, array.nbytes)]
        self._kept.append(array)

    def knows(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self._state

    def _elements(self, tensor: Tensor) -> np.ndarray:
        """The states of the bytes of a tensor's elements, in the tensor's strides."""
        states = self._state[tensor.untyped_storage().data_ptr()]
        size = tensor.element_size()
        # a stride of 0 repeats the same bytes
        shape = [1 if stride == 0 else n for n, stride in zip(tensor.shape, tensor.stride(), strict=True)]
        strides = [stride * size for stride in tensor.stride()]
        first = states[tensor.storage_offset() * size :]
        return np.lib.stride_tricks.as_strided(first, (*shape, size), (*strides, 1))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func._schema.name in _EMPTY:
            self.add(result, initialised=False)
            result.fill_(float("nan") if result.is_floating_point() else 77)  # what is never written should be seen
        elif func._schema.is_mutable and isinstance(args[0], Tensor) and self.knows(args[0]):
            self._elements(args[0])[...] |= INITIALISED  # torch wrote into it
        return result

    def _parts(self, address: int) -> list[np.ndarray]:
        """The states of a storage where elements are."""
        return [self._state[address][begin:end] for begin, end in self._extents[address]]

    # ---------------------------------------------------------------------------------------------- for the machine

    def begin_launch(self) -> tuple[Any, int]:
        """The buffers as the machine takes them; nothing is touched yet."""
        buffers = (_Buffer * max(len(self._state), 1))()
        for buffer, (address, state) in zip(buffers, self._state.items(), strict=False):
            parts = self._parts(address)
            for part in parts:
                part &= INSIDE | INITIALISED | WRITABLE
            buffer.begin, buffer.end = address, address + len(state)
            buffer.state = state.ctypes.data
            buffer.writable = any(bool((part & WRITABLE).any()) for part in parts)
        return buffers, len(self._state)

    def touched(self) -> tuple[int, int]:
        """Distinct bytes that the last launch loaded and stored."""
        parts = [part for address in self._state for part in self._parts(address)]
        loaded, stored = (sum(int(np.count_nonzero(part & what)) for part in parts) for what in (LOADED, STORED))
        return loaded, stored


def _extents(tensor: Tensor) -> Iterator[tuple[int, int]]:
    """Where the elements of a tensor lie, in bytes of its storage: a part for each index of dimensions far apart."""
    size, dims = tensor.element_size(), list(zip(tensor.shape, tensor.stride(), strict=True))
    far = [range(0, n * stride, stride) for n, stride in dims if stride * size > FAR]
    length: int = 1 + sum((n - 1) * stride for n, stride in dims if stride * size <= FAR)
    for places in itertools.product(*far):
        begin = int(tensor.storage_offset()) + sum(places)
        yield begin * size, (begin + length) * size


def _joined(extents: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Extents without overlaps, in order."""
    joined: list[tuple[int, int]] = []
    for begin, end in sorted(extents):
        if joined and begin <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        else:
            joined.append((begin, end))
    return joined
