"""Who did what: written by ``trail``, read at ``GET /audit``."""

from service.audit.tally import Tally
from service.audit.trail import Trail

__all__ = ["Tally", "Trail"]
