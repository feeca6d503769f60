"""Configurations as plain values: for YAML files and checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from wilson.errors import UserError

from .options import Config
from .validation import mistake

_CONFIG = TypeAdapter(Config)


def to_dict(config: Config) -> dict[str, Any]:
    """Plain values, for checkpoints."""
    return asdict(config)


def from_dict(values: Any, called: Callable[[str], str] = str) -> Config:
    """The configuration from the plain values of :func:`to_dict` or its YAML.

    Args:
        values: nested as the configuration is; what is left out has its default.
        called: from an option's name, as in losses.alpha, to what an error calls it.

    Raises:
        UserError: an option that does not exist, or a value that it does not take.
    """
    try:
        return _CONFIG.validate_python(values)
    except ValidationError as error:
        raise mistake(error, Config, called) from None


def changed(config: Config, changes: dict[str, Any], called: Callable[[str], str] = str) -> Config:
    """A configuration with some options changed, given as in :func:`from_dict`, which says what is raised."""
    return from_dict(_merged(to_dict(config), changes), called)


def save(config: Config, path: Path) -> None:
    """Write the configuration as YAML."""
    import yaml

    path.write_text(yaml.safe_dump(_CONFIG.dump_python(config, mode="json"), sort_keys=False))


def read_yaml(path: Path) -> Any:
    """The plain values in a YAML file; UserError says what is wrong with its text."""
    import yaml

    text = path.read_bytes()
    try:
        return yaml.safe_load(text)
    except Exception as error:  # its own, and Python's for dates that do not exist, deep nesting, wrong tags
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())[:200]}") from error


def _merged(values: Any, changes: Any) -> Any:
    if not isinstance(values, dict) or not isinstance(changes, dict):
        return changes
    return {**values, **{key: _merged(values.get(key), change) for key, change in changes.items()}}
