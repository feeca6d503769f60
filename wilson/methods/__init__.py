"""What a step optimises. A method maps a batch to its named loss terms; it knows nothing of files or devices."""

from .base import Batch, LossConfig, Method
from .finetune import Finetune
from .supervised import Supervised
from .wilson import Wilson

__all__ = ["Batch", "Finetune", "LossConfig", "Method", "Supervised", "Wilson"]
