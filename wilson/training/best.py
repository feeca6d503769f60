"""The best epoch of a step. It is a part of the training state, so that a resumed step ends with the same weights."""

from __future__ import annotations

import math
from typing import Any

from torch import nn


class Best:
    """The evaluated epoch with the highest score, the first of equal ones.

    Args:
        model: its weights are kept, on the CPU.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model, self.epoch, self.score = model, 0, -math.inf
        self.weights: dict[str, Any] = {}
        self.result: Any = None

    def offer(self, epoch: int, score: float, result: Any) -> None:
        """Keep the current weights and the result of their evaluation if the score is the highest so far."""
        if score > self.score:
            self.epoch, self.score, self.result = epoch, score, result
            self.weights = {name: value.detach().cpu().clone() for name, value in self.model.state_dict().items()}

    def take(self) -> Any:
        """Load the kept weights into the model and return their result."""
        self.model.load_state_dict(self.weights)
        return self.result

    def state_dict(self) -> dict[str, Any]:
        """What :meth:`load_state_dict` takes."""
        return {"epoch": self.epoch, "score": self.score, "result": self.result, "weights": self.weights}

    def load_state_dict(self, values: dict[str, Any]) -> None:
        """Continue with what :meth:`state_dict` returned."""
        self.epoch, self.score = values["epoch"], values["score"]
        self.result, self.weights = values["result"], values["weights"]
