"""What an id can be: ``{job_id:id}`` in paths, ``is_id`` elsewhere. Anything else is not looked up: ``whk_1:due`` is
something of the store, and no webhook."""

from __future__ import annotations

import re

from starlette.convertors import Convertor, register_url_convertor

from store.ids import Kind


class IdConvertor(Convertor[str]):
    regex = "[a-z]{3}_[0-9A-Za-z]{1,64}"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("id", IdConvertor())


def is_id(text: str, kind: Kind) -> bool:
    """Whether ``text`` can be the id of a thing of this kind."""
    return text.startswith(f"{kind}_") and re.fullmatch(IdConvertor.regex, text) is not None
