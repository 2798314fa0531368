"""The body of ``POST /jobs``, read strictly: what is wrong with it is told field by field, all of it at once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema, core_schema

from fewbit.contract.problems import FieldError
from fewbit.contract.spec import JobSpec
from service.http.field_errors import escaped, field_errors
from service.http.problems import InvalidRequest

LONGEST_SPEC = 1024 * 1024


@dataclass(frozen=True)
class PostedSpec:
    """The fields of a spec as they were sent. As the type of a body it is documented as the ``JobSpec`` that it is to
    become; FastAPI's own reading would stop at the first kind of error."""

    fields: Mapping[str, Any]

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_wrap_validator_function(lambda fields, _: cls(fields), handler(JobSpec))

    def read(self) -> ReadSpec:
        """Raises ``InvalidRequest`` when too little is right to read on."""
        try:
            return ReadSpec(_parsed(self.fields), ())
        except ValidationError as error:
            errors = field_errors(error.errors(include_url=False), self.fields, tuple(JobSpec.model_fields))
        faulty = {error.pointer.split("/")[1] for error in errors if "/" in error.pointer}
        rest = {name: value for name, value in self.fields.items() if escaped(name) not in faulty}
        try:
            return ReadSpec(_parsed(rest), tuple(errors))
        except ValidationError:
            raise InvalidRequest(errors) from None


@dataclass(frozen=True)
class ReadSpec:
    """``spec`` is what could be read; where ``errors`` name fields, it has the defaults in their place."""

    spec: JobSpec
    errors: tuple[FieldError, ...]


def _parsed(fields: Mapping[str, Any]) -> JobSpec:
    """Strictly, and by pydantic's rules for JSON: arrays may become tuples, but "5" is no number."""
    return JobSpec.model_validate_json(json.dumps(fields), strict=True)
