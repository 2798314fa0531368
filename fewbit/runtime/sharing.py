"""Which names of a model are one tensor, and which paths one module. An exported program keeps every name."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class Sharing:
    """Of the tensors of a ``state_dict``, by where their data lies."""

    def __init__(self, state: Mapping[str, Any]) -> None:
        self._places = {name: _place(value) for name, value in state.items() if isinstance(value, Tensor)}
        self._same: dict[Any, list[str]] = defaultdict(list)
        self._held: dict[str, dict[str, Any]] = defaultdict(dict)
        for name, place in self._places.items():
            self._same[place].append(name)
            owner, _, leaf = name.rpartition(".")
            self._held[owner][leaf] = place

    def names(self, name: str) -> tuple[str, ...]:
        """Every name of this tensor, in the order of registration."""
        return tuple(self._same[self._places[name]]) if name in self._places else (name,)

    def modules(self, name: str) -> tuple[str, ...]:
        """The paths whose modules hold exactly the tensors that this one's owner holds: one module, registered there.
        None where it holds this tensor alone, for then it may as well be two modules whose weights are tied."""
        owner, _, leaf = name.rpartition(".")
        if len(self._held.get(owner, {})) < 2:
            return ()
        others = (other.rpartition(".") for other in self.names(name))
        return tuple(
            path for path, _, other in others if other == leaf and self._held.get(path) == self._held.get(owner)
        )


def _place(value: Tensor) -> tuple[Any, ...]:
    if value.layout is not torch.strided or not value.numel() or value.is_meta:
        return (id(value),)
    return (value.data_ptr(), tuple(value.shape), value.stride(), value.dtype)
