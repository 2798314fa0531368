"""A report made by hand: a small transformer whose attention plain quantize_dynamic leaves float."""

from __future__ import annotations

import itertools
import math
from typing import Any

from fewbit.contract.report import Report

_MHA = {
    "code": "mha",
    "message": "nn.MultiheadAttention keeps its input projection as a bare Parameter and its output projection as "
    "NonDynamicallyQuantizableLinear; the module swap touches neither.",
    "remedy": "Nothing to do here: Fewbit quantizes both.",
}
_KEPT = {
    "code": "excluded-by-user",
    "message": "The pattern 'classifier' of the job spec says quantize: false.",
    "evidence": {"match": "classifier"},
    "remedy": "Take the pattern out of `layers`.",
    "patch": {"layers": []},
}


def layer(name: str, kind: str = "torch.nn.modules.linear.Linear", **changes: Any) -> dict[str, Any]:
    return {
        "name": name, "type": kind, "op": "aten.linear", "shape": [384, 128], "parameters": 49536, "macs": 393216,
        "calls": 1, "quantized": True, "reason": None, "eager": {"quantized": True},
        "scheme": {"weights": {"dtype": "int8", "granularity": "per_channel"},
                   "activations": {"dtype": "uint8", "mode": "dynamic", "granularity": "per_tensor",
                                   "reduce_range": True}},
        "executed": "quantized::linear_with_input_q_dq_qweight_dq_output_fp32", "weights": None,
        "error": {"output_sqnr_db": 38.2},
    } | changes  # fmt: skip


def attention(prefix: str) -> list[dict[str, Any]]:
    held = {"quantized": False, "reason": _MHA}
    mha = "torch.nn.modules.activation.MultiheadAttention"
    out = "torch.nn.modules.linear.NonDynamicallyQuantizableLinear"
    return [
        layer(f"{prefix}.self_attn.in_proj", mha, eager=held),
        layer(f"{prefix}.self_attn.out_proj", out, eager=held, error={"output_sqnr_db": 36.9}),
        layer(f"{prefix}.linear1", error={"output_sqnr_db": 40.0}),
        layer(f"{prefix}.linear2", error={"output_sqnr_db": 17.3}),
    ]


def report(**changes: Any) -> Report:
    """The example, with some of its top-level fields changed."""
    similar = {"sqnr_db": 31.2, "cosine": 0.9997, "max_abs_error": 0.04, "top1_agreement": 0.998}
    kept = {"quantized": False, "scheme": None, "executed": "aten::addmm", "reason": _KEPT, "error": None}
    document: dict[str, Any] = {
        "job": "job_01hzy3k9", "model": {"id": "mdl_01hzy3k2", "sha256": "ab" * 32, "format": "pt2"},
        "spec": {"model": "mdl_01hzy3k2", "layers": [{"match": "classifier", "quantize": False}]},
        "verdict": "pass",
        "gates": [{"gate": "min_coverage", "limit": 0.9, "value": 0.97, "met": True},
                  {"gate": "min_speedup", "limit": 1.2, "value": None, "met": False}],
        "coverage": {"layers": {"quantized": 9, "total": 10}, "parameters": 0.9712, "bytes": 0.97, "macs": 0.99,
                     "time": 0.97, "reasons": {"excluded-by-user": 1}},
        "size": {"before": 1771503, "after": 489211, "ratio": 0.276},
        "accuracy": {"artifact": "model.ts.pt", "samples": 512, "batch_size": 32, "labelled": True, "kind": "real",
                     "metrics": [{"name": "accuracy", "before": 0.9727, "after": 0.9707, "delta": -0.00195,
                                  "ci95": [-0.0058, 0.0019], "p_value": 1.0, "note": "exact McNemar"}],
                     "output": similar, "flips": [{"sample": 17, "before": 3, "after": 8, "label": 3}]},
        "latency": {"threads": 2, "batch": 32, "before_ms": {"min": 5.0, "p50": 5.13, "p95": 5.4},
                    "artifacts": {"torchscript": {"min": 3.0, "p50": 3.1, "p95": 3.3, "speedup": 1.65},
                                  "pt2": {"min": 9.0, "p50": 9.1, "p95": 9.3, "speedup": 0.56}}},
        "layers": [layer("embed"), *attention("encoder.layers.0"), *attention("encoder.layers.1"),
                   layer("classifier", **kept)],
        "products": [],
        "findings": [
            {"severity": "info", "code": "fused", "message": "Biases ride along in the int8 kernel."},
            {"severity": "warning", "code": "weight-outlier", "layer": "encoder.layers.1.linear2",
             "message": "0.02 % of the weights lie beyond six standard deviations and set the scale of their channel.",
             "remedy": "Clip the range.",
             "patch": {"layers": [{"match": "encoder.layers.1.linear2", "weights": {"range": "mse"}}]}},
        ],
        "artifacts": [
            {"name": "model.ts.pt", "kind": "torchscript", "size": 489211, "sha256": "cd" * 32, "verified": True,
             "output": similar},
            {"name": "model.pt2", "kind": "pt2", "size": 520100, "sha256": "ef" * 32, "verified": False,
             "output": None}],
        "provenance": {"fewbit": "0.1.0", "torch": "2.13.0", "torchao": None, "numpy": "2.4.6", "python": "3.11.7",
                       "cpu": "a CPU", "isa": "AVX2", "threads": 2, "seed": 0, "timings_s": {"load": 0.2},
                       "peak_memory_bytes": 10**9},
    }  # fmt: skip
    return Report.model_validate(document | changes)


# Every field filled


def bell(center: float, spread: float, low: float, high: float, total: int, bins: int = 64) -> dict[str, Any]:
    """A histogram of a normal distribution, and one value at its upper end."""
    edges = [low + (high - low) * index / bins for index in range(bins + 1)]
    middles = [(left + right) / 2 for left, right in itertools.pairwise(edges)]
    counts = [int(total * math.exp(-(((middle - center) / spread) ** 2) / 2) / 10) for middle in middles]
    return {"edges": edges, "counts": [*counts[:-1], 1]}


def measured_layer(name: str, index: int, of: int, **changes: Any) -> dict[str, Any]:
    """A quantized layer of which everything was measured. Later layers are a little worse, as they are."""
    depth = (index + 1) / of
    wave = math.sin(index * 1.7)
    kernel = "quantized::linear_with_input_q_dq_qweight_dq_output_fp32"
    weights = {
        "min": -0.41 - 0.1 * depth, "max": 0.44 + 0.2 * depth, "mean": 0.00021, "std": 0.0512, "kurtosis": 3.4 + wave,
        "outlier_ratio": 0.00021, "zeroed_ratio": 0.031, "saturated_ratio": 0.0, "mse_range_gain_db": 0.8,
        "sqnr_db": {"per_tensor": 34.1 + wave, "per_channel": 41.7 + wave, "per_group": 44.0 + wave},
        "histogram": bell(0.0, 0.05, -0.5, 0.64, 49152),
    }  # fmt: skip
    activations = {
        "min": -0.17, "max": 7.9, "mean": 0.38, "std": 0.71,
        "percentiles": {"50": 0.21, "99": 3.1, "99.9": 4.6, "99.99": 6.2},
        "outlier_channels": [{"channel": 41, "max_abs": 7.9, "ratio": 9.3},
                             {"channel": 7, "max_abs": 6.1, "ratio": 7.2}],
        "saturated_ratio": 0.0004, "drift": 0.021, "histogram": bell(0.4, 0.9, -0.2, 8.0, 65536),
    }  # fmt: skip
    clamped = {"saturated_ratio": 0.0031, "output_sqnr_db": 21.4}
    exact = {"saturated_ratio": 0.0, "output_sqnr_db": 39.1}
    return layer(
        name,
        requested={"quantized": True, "weights": {"dtype": "int8", "granularity": "per_channel"},
                   "activations": "dynamic", "rule": "/layers/0"},
        execution={"artifact": "model.ts.pt", "kernel": kernel, "ms": 0.21 + 0.05 * wave, "share": 1 / of},
        weights=weights, activations=activations, saturation={"avx2": clamped, "avx512": clamped, "vnni": exact},
        error={"output_sqnr_db": 40 - 3 * depth + 2 * wave, "accumulated_sqnr_db": 39 - 9 * depth + wave,
               "sensitivity": 3e-4 * math.exp(-4 * ((index * 7919) % of) / of), "spared_gain_db": 0.9 * (1 - depth)},
    ) | changes  # fmt: skip


def full_report(count: int = 12, **changes: Any) -> Report:
    """``count`` layers of an encoder, every field of the report filled."""
    parts = ("self_attn.in_proj", "self_attn.out_proj", "linear1", "linear2")
    names = [f"encoder.layers.{index // 4}.{parts[index % 4]}" for index in range(count - 1)] + ["classifier"]
    layers = [measured_layer(name, index, count) for index, name in enumerate(names)]
    for layer in layers:
        if "self_attn" in layer["name"]:
            layer["eager"] = {"quantized": False, "reason": _MHA}
    asked = {"quantized": False, "weights": None, "activations": None, "rule": "/layers/1"}
    ran = {"artifact": "model.ts.pt", "kernel": "aten::addmm", "ms": 0.08, "share": 0.03}
    layers[-1] |= {"quantized": False, "scheme": None, "executed": "aten::addmm", "reason": _KEPT, "error": None,
                   "requested": asked, "execution": ran, "saturation": None}  # fmt: skip
    base = report().model_dump(mode="json")
    worst = names[min(3, count - 1)]
    findings = [*base["findings"], {
        "severity": "error", "code": "nan-weight", "layer": worst, "message": "One weight is NaN.",
        "evidence": {"index": [3, 17], "count": 1}, "remedy": "Find out where training diverged; leave it float.",
        "patch": {"layers": [{"match": worst, "quantize": False}]}}]  # fmt: skip
    findings[1]["layer"] = names[min(1, count - 1)]
    accuracy = base["accuracy"] | {
        "classes": [{"label": label, "samples": 51, "before": 0.98, "after": 0.98 + delta, "delta": delta}
                    for label, delta in enumerate((-0.0392, 0.0196, -0.0196, 0.0, 0.0))],
        "flips": [{"sample": 17, "before": 3, "after": 8, "label": 3},
                  {"sample": 44, "before": 8, "after": 9, "label": 9},
                  {"sample": 301, "before": 1, "after": 7, "label": 2}],
        "conclusion": "The loss of 0.19 points is not distinguishable from zero with 512 samples; "
                      "the data could show one of about 0.8 points.",
    }  # fmt: skip
    filled: dict[str, Any] = {
        "verdict": "warn", "layers": layers, "findings": findings, "accuracy": accuracy,
        "gates": [{"gate": "min_coverage", "limit": 0.9, "value": 0.9712, "met": True},
                  {"gate": "max_drop.accuracy", "limit": 0.01, "value": 0.00195, "met": True}],
        "coverage": base["coverage"] | {"layers": {"quantized": count - 1, "total": count}},
        "sensitivity": {"method": "estimate", "samples": 128, "passes": 4.5},
        "calibration": {"samples": 128, "recommended_samples": 64, "duplicates": 3, "constant_inputs": ["mask"],
                        "non_finite_inputs": [], "convergence": [{"samples": 2**step, "range_share": 1 - 0.3 / 2**step}
                                                                 for step in range(8)]},
        "products": [{"name": "encoder.layers.0.self_attn", "type": "torch.nn.MultiheadAttention",
                      "op": "aten.scaled_dot_product_attention", "macs": 131072}],
        "patch": {"layers": [{"match": worst, "quantize": False}]},
        "provenance": base["provenance"] | {"timings_s": {"load": 0.21, "calibrate": 1.4, "evaluate": 2.6}},
    }  # fmt: skip
    return Report.model_validate(base | filled | changes)
