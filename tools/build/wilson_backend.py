"""PEP 517 and 660 backend: setuptools, asking for torch, cmake and ninja only where the machine has none."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import native
from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403  (the hooks that need no change)
from torch_probe import probe

CMAKE_AT_LEAST = (3, 22)


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    """Return what `pip install .` and `pip wheel .` need in the build environment."""
    return build_meta.get_requires_for_build_wheel(config_settings) + native_requirements()


def get_requires_for_build_editable(config_settings: Any = None) -> list[str]:
    """Return what `pip install -e .` needs in the build environment."""
    return build_meta.get_requires_for_build_editable(config_settings) + native_requirements()


def native_requirements() -> list[str]:
    """Return what the compiled core needs and the machine does not have; stop here where it cannot be built."""
    if native.mode() == "none":
        return []
    native.check_machine()  # before gigabytes of torch are fetched for nothing
    missing = []
    if probe() is None:
        missing.append(torch_requirement())
    if not _has_cmake():
        missing.append("cmake>=" + ".".join(map(str, CMAKE_AT_LEAST)))
    if shutil.which("ninja") is None:
        missing.append("ninja")
    return missing


def torch_requirement() -> str:
    """Return what pyproject.toml asks of torch."""
    text = Path(__file__).parents[2].joinpath("pyproject.toml").read_text()
    return re.search(r"torch>=[\d.]+", text)[0]  # type: ignore[index]


def _has_cmake() -> bool:
    if shutil.which("cmake") is None:
        return False
    text = subprocess.run(["cmake", "--version"], capture_output=True, text=True).stdout
    version = re.search(r"version (\d+)\.(\d+)", text)
    return version is not None and tuple(map(int, version.groups())) >= CMAKE_AT_LEAST
