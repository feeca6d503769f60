"""Configurations as plain values: for YAML files and checkpoints."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from wilson.errors import UserError

from .options import Config, DataConfig, LossConfig, ModelConfig, StepConfig


def to_dict(config: Config) -> dict[str, Any]:
    """Plain values, for YAML and checkpoints."""
    return asdict(config)


def save(config: Config, path: Path) -> None:
    """Write the configuration as YAML."""
    import yaml

    path.write_text(yaml.safe_dump(_plain(to_dict(config)), sort_keys=False))


def from_dict(values: dict[str, Any]) -> Config:
    """The configuration from the plain values of :func:`to_dict` or its YAML."""
    parts = {"data": DataConfig, "model": ModelConfig, "base": StepConfig, "step": StepConfig, "losses": LossConfig}
    known = {k: _tuples(v) for k, v in values.items() if k not in parts}
    try:
        nested = {k: kind(**_tuples(values[k])) for k, kind in parts.items() if k in values}
        return replace(Config(), **known, **nested)
    except TypeError as error:
        raise UserError(
            f"the configuration is of another version ({error}); use that version, or train again"
        ) from error


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _tuples(v) for k, v in value.items()}
    return tuple(value) if isinstance(value, list) else value
