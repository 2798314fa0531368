"""The settings of a worker, in addition to ``store.settings``."""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from workers import machine
from workers.sandbox.fence import Sandbox


class WorkerSettings(BaseSettings):
    """Read from the environment: ``FEWBIT_<NAME>``."""

    model_config = SettingsConfigDict(env_prefix="FEWBIT_", extra="ignore")

    scratch: Path = Field(default_factory=lambda: Path(tempfile.gettempdir()))
    threads: int = Field(default_factory=machine.cores, ge=1)
    sandbox: Sandbox = "required"
    worker: str = Field(default_factory=lambda: f"{socket.gethostname()}:{os.getpid()}")
