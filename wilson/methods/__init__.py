"""What a step optimises. A method maps a batch to its named loss terms; it knows nothing of files or devices."""

from .base import Batch, LossConfig, Method
from .finetune import Finetune
from .supervised import Supervised
from .wilson import Wilson

INCREMENTAL: dict[str, type[Finetune] | type[Wilson]] = {"finetune": Finetune, "wilson": Wilson}
METHODS = (*INCREMENTAL, "offline")

__all__ = ["INCREMENTAL", "METHODS", "Batch", "Finetune", "LossConfig", "Method", "Supervised", "Wilson"]
