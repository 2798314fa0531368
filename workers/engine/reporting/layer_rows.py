"""The layer table of the report, and the coverage that sums it up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from fewbit.contract.report import Coverage, LayerCount, LayerError, LayerReport, WeightStats
from fewbit.contract.report import Product as ProductRow
from fewbit.contract.resources import ModelLayer, Reason
from fewbit.contract.spec import Weights
from fewbit.runtime.program import Program
from workers.engine.explanation import reasons
from workers.engine.explanation.eager_verdict import eager_verdict
from workers.engine.graph.layers import Layer, Product
from workers.engine.graph.source_lines import source_line
from workers.engine.measurement.float_pass import LayerObservation, Observation
from workers.engine.quantization.plan import Planned
from workers.engine.quantization.quantize import QuantizedLayer
from workers.engine.quantization.weights import quantize_weight, weight_stats


def model_layers(layers: Iterable[Layer]) -> tuple[ModelLayer, ...]:
    """The table an upload carries: what could be quantized, and why the rest could not."""
    rows = []
    for layer in layers:
        reason = reasons.unquantizable(layer)
        rows.append(
            ModelLayer(
                name=layer.name,
                type=layer.type,
                op=layer.op,
                shape=layer.shape,
                parameters=layer.parameters,
                quantizable=reason is None,
                reason=reason,
            )
        )
    return tuple(rows)


def report_rows(
    planned: Sequence[Planned], quantized: Sequence[QuantizedLayer], observation: Observation
) -> tuple[LayerReport, ...]:
    by_name = {each.layer.name: each for each in quantized}
    return tuple(_row(each, by_name.get(each.layer.name), observation.layers[each.layer.name]) for each in planned)


def _row(planned: Planned, quantized: QuantizedLayer | None, seen: LayerObservation) -> LayerReport:
    layer, eager = planned.layer, eager_verdict(planned.layer)
    return LayerReport(
        name=layer.name,
        type=layer.type,
        op=layer.op,
        shape=layer.shape,
        parameters=layer.parameters,
        macs=seen.macs,
        calls=len(layer.uses),
        requested=planned.requested,
        quantized=quantized is not None,
        scheme=quantized.scheme if quantized else None,
        executed=None,
        reason=with_proof(planned.reason, layer, seen.macs),
        eager=eager.model_copy(update={"reason": with_proof(eager.reason, layer, seen.macs)}),
        weights=quantized.stats if quantized else _float_stats(layer),
        error=LayerError(output_sqnr_db=round(seen.output_sqnr_db, 2)) if seen.output_sqnr_db is not None else None,
    )


def with_proof(reason: Reason | None, layer: Layer, macs: int) -> Reason | None:
    """What is at stake, and where it stands in the user's code, added to what the rule itself found."""
    if reason is None:
        return None
    stored = {source.name: source.value for operand in layer.operands for source in operand.sources}
    proof = {
        "type": layer.type,
        "shape": list(layer.shape),
        "dtype": str(layer.sources[0].value.dtype).removeprefix("torch."),
        "source": source_line(layer.uses[0].node),
        "bytes": sum(map(_bytes, stored.values())),
        "macs": macs,
    }
    return reason.model_copy(update={"evidence": {**proof, **reason.evidence}})


def _float_stats(layer: Layer) -> WeightStats | None:
    """What int8 would do to a layer that stayed float; None where it has no finite weight."""
    weight = layer.weight
    if not weight.numel() or not weight.dtype.is_floating_point:
        return None
    if weight.layout is not torch.strided or not bool(torch.isfinite(weight).all()):
        return None
    reduce = layer.operands[0].reduce
    return weight_stats(weight, quantize_weight(weight, Weights(), reduce), reduce)


def product_rows(products: Iterable[Product]) -> tuple[ProductRow, ...]:
    return tuple(ProductRow(name=each.name, type=each.type, op=each.op, macs=None) for each in products)


def coverage(program: Program, planned: Sequence[Planned], rows: Sequence[LayerReport], seen: Observation) -> Coverage:
    """Shares by layers, parameters, bytes, multiply-accumulates, and the float time measured."""
    done = {row.name for row in rows if row.quantized}
    whole = {constant.name: constant.value for constant in program.constants.values()}
    weights = {
        source.name: source.value for each in planned if each.layer.name in done for source in each.layer.sources
    }
    seconds = {name: layer.seconds for name, layer in seen.layers.items() if layer.seconds != float("inf")}
    return Coverage(
        layers=LayerCount(quantized=len(done), total=len(rows)),
        parameters=_share(sum(map(Tensor.numel, weights.values())), sum(map(Tensor.numel, whole.values()))),
        bytes=_share(sum(map(_bytes, weights.values())), sum(map(_bytes, whole.values()))),
        macs=_share(sum(row.macs for row in rows if row.quantized), sum(row.macs for row in rows)),
        time=_share(sum(each for name, each in seconds.items() if name in done), sum(seconds.values())),
        reasons=dict(Counter(row.reason.code for row in rows if row.reason is not None)),
    )


def _bytes(value: Tensor) -> int:
    return value.numel() * value.element_size()


def _share(part: float, whole: float) -> float:
    return round(min(1.0, part / whole), 4) if whole else 0.0
