"""docs/report.md against the contract: every field of a report is explained there, under its own heading."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from fewbit.contract.report import Report
from fewbit.contract.resources import Reason
from fewbit.contract.spec import JobSpec

PAGE = (Path(__file__).parents[2] / "docs" / "report.md").read_text()
SECTIONS = dict(re.findall(r"^#+ [^\n]*\(`(\w+)`\)\n(.*?)(?=^#|\Z)", PAGE, re.M | re.S))


def models_in(model: type[BaseModel]) -> set[type[BaseModel]]:
    """The models of every field, and of theirs; the spec has pages of its own."""
    found = {model}
    for field in model.model_fields.values():
        for inner in _models(field.annotation):
            if inner not in found and inner is not JobSpec:
                found |= models_in(inner)
    return found


def _models(annotation: object) -> set[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {annotation}
    return {inner for argument in get_args(annotation) for inner in _models(argument)}


MODELS = sorted(models_in(Report), key=lambda model: model.__name__)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_every_field_of_a_report_is_explained(model: type[BaseModel]) -> None:
    explained = set(re.findall(r"^\| `(\w+)` \| \S", SECTIONS.get(model.__name__, ""), re.M))
    assert explained == set(model.model_fields), f"docs/report.md, section of `{model.__name__}`"


def test_no_section_explains_what_is_gone() -> None:
    assert set(SECTIONS) == {model.__name__ for model in MODELS}


def test_the_models_are_found() -> None:
    assert {Report, Reason} <= set(MODELS)
    assert len(MODELS) > 25
