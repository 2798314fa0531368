"""The situations a model can be in: one small model for every row of the catalogue of reasons that a graph can show,
every module of ``torch.nn`` that holds a matrix, and the architectures people bring."""

from tests.workers.engine.situations.architectures import ARCHITECTURES
from tests.workers.engine.situations.modules import MODULES
from tests.workers.engine.situations.numbers import NUMBERS
from tests.workers.engine.situations.products import PRODUCTS
from tests.workers.engine.situations.regions import REGIONS
from tests.workers.engine.situations.situation import Situation
from tests.workers.engine.situations.structure import STRUCTURE

__all__ = ["SITUATIONS", "Situation"]

SITUATIONS: dict[str, Situation] = {
    situation.name: situation for situation in (*PRODUCTS, *MODULES, *STRUCTURE, *REGIONS, *NUMBERS, *ARCHITECTURES)
}
