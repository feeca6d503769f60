"""Triton launches on the current device: every launcher makes that of its tensors the current one, and no other."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from tests.support import raw_calls

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None or importlib.util.find_spec("wilson.kernels") is None,
    reason="needs triton and an installed wilson.kernels",
)


def test_the_guard_takes_the_device_of_the_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    from wilson.kernels._launch import on_device_of

    exchanged: list[int] = []

    def exchange(device: int) -> int:
        exchanged.append(device)
        return 0

    for name in ("_exchange_device", "_maybe_exchange_device"):
        monkeypatch.setattr(torch.cuda, name, exchange)
    with FakeTensorMode():
        second = torch.empty(2, device="cuda:1")
    with on_device_of(second):
        assert exchanged == [1]
    assert exchanged == [1, 0]
    exchanged.clear()
    with on_device_of(torch.empty(2)):
        pass
    assert not [device for device in exchanged if device > 0]


@pytest.mark.parametrize("family", raw_calls.FAMILIES)
def test_every_launch_is_within_a_guard(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.runtime.jit import JITFunction

    launchers = importlib.import_module(f"wilson.kernels.{family}")
    guarded: list[Tensor] = []
    launched: list[bool] = []

    @contextmanager
    def guard(tensor: Tensor) -> Iterator[None]:
        guarded.append(tensor)
        yield
        guarded.pop()

    def note(kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        launched.append(bool(guarded))

    monkeypatch.setattr(launchers, "on_device_of", guard)
    monkeypatch.setattr(JITFunction, "run", note)
    for op, args in raw_calls.FAMILIES[family](raw_calls.Blank(21, torch.float32)):
        before = len(launched)
        getattr(launchers, op)(*args)
        assert len(launched) > before and all(launched), op
