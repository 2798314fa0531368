"""What an operator of the gateway can set; where the store is, is in ``store.settings``."""

from __future__ import annotations

from hashlib import sha256
from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

GIBIBYTE = 1024**3


class ServiceSettings(BaseSettings):
    """Read from the environment: ``FEWBIT_<NAME>``. Sizes are in bytes."""

    model_config = SettingsConfigDict(env_prefix="FEWBIT_", extra="ignore")

    api_keys: SecretStr = SecretStr("")
    auth: Literal["on", "off"] = "on"
    max_model_bytes: int = Field(default=16 * GIBIBYTE, ge=1)
    max_dataset_bytes: int = Field(default=8 * GIBIBYTE, ge=1)
    max_unpacked_dataset_bytes: int = Field(default=16 * GIBIBYTE, ge=1)
    max_stored_bytes: int = Field(default=1024 * GIBIBYTE, ge=1)
    max_queued_jobs: int = Field(default=1000, ge=1)
    max_open_requests: int = Field(default=256, ge=1)
    max_connections: int = Field(default=2000, ge=1)
    requests_per_minute: int = Field(default=6000, ge=1, le=60_000_000)

    hosts: str = ""
    webhook_allow_private: bool = False
    idle_s: float = Field(default=30, gt=0)

    @property
    def host_names(self) -> tuple[str, ...]:
        return tuple(host for name in self.hosts.split(",") if (host := name.strip()))

    @property
    def key_digests(self) -> tuple[bytes, ...]:
        """SHA-256 of each key: equal lengths, and no key lies about in memory longer than it must."""
        keys = (key.strip() for key in self.api_keys.get_secret_value().split(","))
        return tuple(sha256(key.encode()).digest() for key in keys if key)
