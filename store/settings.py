"""Where the store is, and the few numbers that both sides must agree on."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import AliasChoices, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

GIBIBYTE = 1024**3


class StoreSettings(BaseSettings):
    """Read from the environment: ``FEWBIT_<NAME>``, and ``REDIS_URL`` as everyone spells it. Times are in seconds. What
    is not there is read from a file of that name in the folder ``FEWBIT_SECRETS``, where that is set."""

    model_config = SettingsConfigDict(
        env_prefix="FEWBIT_", populate_by_name=True, extra="ignore", secrets_dir=os.environ.get("FEWBIT_SECRETS")
    )

    redis_url: str = Field(
        default="redis://127.0.0.1:6379/0", validation_alias=AliasChoices("REDIS_URL", "FEWBIT_REDIS_URL")
    )
    blobs_url: str = str(Path(".run") / "blobs")
    lease_s: float = Field(default=30, gt=0)
    heartbeat_s: float = Field(default=10, gt=0)
    reaper_s: float = Field(default=5, gt=0)
    max_attempts: int = Field(default=3, ge=1)
    redeliver_s: float = Field(default=60, gt=0)
    inspect_s: float = Field(default=120, gt=0)
    max_running_jobs: int = Field(default=64, ge=1)
    large_model_bytes: int = Field(default=GIBIBYTE, ge=1)
    startup_s: float = Field(default=30, ge=0)

    @property
    def broker_url(self) -> str:
        """The same Redis in kombu's spelling: it calls a Unix socket ``redis+socket://``."""
        if self.redis_url.startswith("unix://"):
            return "redis+socket://" + self.redis_url.removeprefix("unix://")
        return self.redis_url
