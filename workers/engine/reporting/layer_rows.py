"""The layer table of the report, and the coverage that sums it up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from fewbit.contract.report import Coverage, LayerCount, LayerError, LayerReport, Scheme, WeightStats
from fewbit.contract.report import Product as ProductRow
from fewbit.contract.resources import ModelLayer, Reason
from fewbit.contract.spec import Weights
from workers.engine.calibration.conversion import Conversion
from workers.engine.explanation import reasons
from workers.engine.explanation.quantize_dynamic import predict_quantize_dynamic
from workers.engine.graph.layers import Layer, Product
from workers.engine.graph.source_lines import source_line
from workers.engine.measurement.float_pass import LayerObservation, Observation
from workers.engine.quantization.plan import Planned
from workers.engine.quantization.quantize import QuantizedLayer
from workers.engine.quantization.weight_statistics import weight_stats
from workers.engine.quantization.weights import quantize_weight


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


def report_rows(conversion: Conversion, observation: Observation) -> tuple[LayerReport, ...]:
    """One row per layer of the plan, in order."""
    by_name = {quantized.layer.name: quantized for quantized in conversion.quantized}
    rows = []
    for planned in conversion.planned:
        name = planned.layer.name
        quantized = by_name.get(name)
        scheme = _scheme(quantized, conversion.alphas.get(name)) if quantized else None
        rows.append(_row(planned, quantized, scheme, observation.layers[name]))
    return tuple(rows)


def _scheme(quantized: QuantizedLayer, alpha: float | None) -> Scheme:
    return quantized.scheme if alpha is None else quantized.scheme.model_copy(update={"smooth": alpha})


def _row(
    planned: Planned, quantized: QuantizedLayer | None, scheme: Scheme | None, observed: LayerObservation
) -> LayerReport:
    layer, eager = planned.layer, predict_quantize_dynamic(planned.layer)
    return LayerReport(
        name=layer.name,
        type=layer.type,
        op=layer.op,
        shape=layer.shape,
        parameters=layer.parameters,
        macs=observed.macs,
        calls=len(layer.uses),
        requested=planned.requested,
        quantized=quantized is not None,
        scheme=scheme,
        executed=None,
        reason=add_proof(planned.reason, layer, observed.macs),
        eager=eager.model_copy(update={"reason": add_proof(eager.reason, layer, observed.macs)}),
        weights=quantized.stats if quantized else _float_stats(layer),
        error=_own_error(observed),
    )


def _own_error(observed: LayerObservation) -> LayerError | None:
    own = observed.output_sqnr_db
    return LayerError(output_sqnr_db=round(own, 2)) if own is not None else None


def add_proof(reason: Reason | None, layer: Layer, macs: int) -> Reason | None:
    """The reason with evidence beyond the rule's own: what is at stake, and where the call is in the user's code."""
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
    return tuple(ProductRow(name=product.name, type=product.type, op=product.op, macs=None) for product in products)


def coverage(conversion: Conversion, rows: Sequence[LayerReport], observation: Observation) -> Coverage:
    """Shares by layers, parameters, bytes, multiply-accumulates, and the float time measured."""
    quantized = {row.name for row in rows if row.quantized}
    whole = {constant.name: constant.value for constant in conversion.program.constants.values()}
    sources = [source for layer in conversion.layers if layer.name in quantized for source in layer.sources]
    weights = {source.name: source.value for source in sources}
    seconds = {name: layer.seconds for name, layer in observation.layers.items() if layer.seconds != float("inf")}
    return Coverage(
        layers=LayerCount(quantized=len(quantized), total=len(rows)),
        parameters=_share(sum(map(Tensor.numel, weights.values())), sum(map(Tensor.numel, whole.values()))),
        bytes=_share(sum(map(_bytes, weights.values())), sum(map(_bytes, whole.values()))),
        macs=_share(sum(row.macs for row in rows if row.quantized), sum(row.macs for row in rows)),
        time=_share(sum(time for name, time in seconds.items() if name in quantized), sum(seconds.values())),
        reasons=dict(Counter(row.reason.code for row in rows if row.reason is not None)),
    )


def _bytes(value: Tensor) -> int:
    return value.numel() * value.element_size()


def _share(part: float, whole: float) -> float:
    return round(min(1.0, part / whole), 4) if whole else 0.0
