"""Every setting has its row in docs/deployment.md, and nothing sets what nobody reads."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from pydantic import AliasChoices
from pydantic_settings import BaseSettings

from local.stack import ROOT
from service.settings import ServiceSettings
from store.settings import StoreSettings
from workers.settings import WorkerSettings

DEPLOYMENT = (ROOT / "docs" / "deployment.md").read_text()
CLIENT = {"FEWBIT_URL", "FEWBIT_KEY"}
CONTAINERS = {"FEWBIT_PORT", "FEWBIT_QUEUES", "FEWBIT_SECRETS", "FEWBIT_REDIS_PASSWORD", "TORCH_INDEX"}
CONTAINERS |= {"FEWBIT_WORKER_MEMORY"}


def variables(settings: type[BaseSettings]) -> set[str]:
    names = set()
    for name, field in settings.model_fields.items():
        alias = field.validation_alias
        names.add(str(alias.choices[0]) if isinstance(alias, AliasChoices) else f"FEWBIT_{name.upper()}")
    return names


SETTINGS = {name for settings in (StoreSettings, ServiceSettings, WorkerSettings) for name in variables(settings)}


def test_every_setting_is_documented_and_nothing_else() -> None:
    rows = set(re.findall(r"^\| `([A-Z_]+)` \|", DEPLOYMENT, re.M))
    assert rows == SETTINGS | CLIENT | CONTAINERS


@pytest.mark.parametrize("name", ["gateway", "worker", "inspector"])
def test_compose_sets_only_what_is_read(name: str) -> None:
    compose: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    assert set(compose["services"][name]["environment"]) <= SETTINGS | CONTAINERS


def test_the_images_set_only_what_is_read() -> None:
    named = set(re.findall(r"FEWBIT_[A-Z_]+", (ROOT / "Dockerfile").read_text()))
    assert named <= SETTINGS | CONTAINERS
