"""The client: ``from fewbit.client import Client``."""

from fewbit.client.client import Client

__all__ = ["Client"]
