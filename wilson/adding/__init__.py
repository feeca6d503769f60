"""More classes for a trained model of any library, from photographs that show them."""

from .add import add_classes

__all__ = ["add_classes"]
