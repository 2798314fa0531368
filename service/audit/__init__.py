"""Who did what: written by ``trail``, read at ``GET /audit``."""

from service.audit.trail import Trail

__all__ = ["Trail"]
