"""Ids in paths: ``{job_id:id}`` matches what an id can be. Anything else is no key of the store, and not looked up."""

from __future__ import annotations

from starlette.convertors import Convertor, register_url_convertor


class IdConvertor(Convertor[str]):
    regex = "[a-z]{3}_[0-9A-Za-z]{1,64}"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("id", IdConvertor())
