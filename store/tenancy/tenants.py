"""Who owns what. A tenant is a name; everything that can be listed, counted or found by content has it in its key.

A record holds its tenant: ``record_script`` reads that, and nothing else of a record that is someone else's, so that
"not yours" takes as long as "not there". Views of the store (``Models``, ``Datasets``, ``Jobs``) belong to one tenant,
and have no call that names another.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import redis
import redis.asyncio

from store.scripts.script import Script

DEFAULT_TENANT = "default"
TENANT = re.compile(r"[a-z0-9][a-z0-9-]{0,38}\Z")


def record_script(client: redis.Redis | redis.asyncio.Redis, *fields: str) -> Script:
    """Reads ``fields`` of a record of a tenant. They are part of the script: sent with each call, the twelve of a job
    took 50 of 170 us."""
    return Script(client, "tenancy/read_record", FIELDS=fields)


@dataclass(frozen=True)
class Tenant:
    """The key names of one tenant. ``transition.lua`` and ``choose_turn.lua`` spell some of them too."""

    name: str = DEFAULT_TENANT
    prefix: str = "fewbit:"

    def key(self, *parts: str) -> str:
        return ":".join((f"{self.prefix}tenant:{self.name}", *parts))

    @property
    def models(self) -> str:
        return self.key("models")

    @property
    def datasets(self) -> str:
        return self.key("datasets")

    @property
    def jobs(self) -> str:
        return self.key("jobs")

    @property
    def webhooks(self) -> str:
        return self.key("webhooks")

    @property
    def stored(self) -> str:
        """A hash: the bytes of each blob by digest, and of all of them as ``total``."""
        return self.key("stored")

    @property
    def reserved(self) -> str:
        """A hash: bytes and deadline of each upload on its way in."""
        return self.key("reserved")

    @property
    def audit(self) -> str:
        return self.key("audit")

    @property
    def rate(self) -> str:
        return self.key("rate")

    def model_of(self, sha256: str) -> str:
        return self.key("model-of", sha256)

    def dataset_of(self, sha256: str) -> str:
        return self.key("dataset-of", sha256)

    def jobs_by_status(self, status: str) -> str:
        return self.key("jobs", "status", status)

    def jobs_by_label(self, name: str, value: str) -> str:
        return self.key("jobs", "label", f"{name}={value}")

    def jobs_using(self, upload_id: str) -> str:
        """Jobs of one model or dataset."""
        return self.key("jobs", "using", upload_id)

    def references(self, sha256: str) -> str:
        """The set of ids that need this blob."""
        return f"{self.prefix}blob:{self.name}:{sha256}"
