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


_STREAM_ENTRY = re.compile(r"(\d{1,20})(?:-(\d{1,20}))?", re.ASCII)
_LARGEST_NUMBER = 2**64 - 1


def is_stream_entry_id(text: str) -> bool:
    """Whether Redis takes ``text`` for the id of a stream's entry, ``<milliseconds>-<number>`` of 64 bits each. It
    answers anything else with an error."""
    found = _STREAM_ENTRY.fullmatch(text)
    return found is not None and all(int(number or 0) <= _LARGEST_NUMBER for number in found.groups())
