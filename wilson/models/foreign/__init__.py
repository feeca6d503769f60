"""Models of other libraries behind the protocol: `adapted` wraps one, `search` finds its parts by running it once."""

from .adapted import Adapted, adapt

__all__ = ["Adapted", "adapt"]
