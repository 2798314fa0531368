"""A report made by hand: a small transformer whose attention plain quantize_dynamic leaves float."""

from __future__ import annotations

from typing import Any

from fewbit.report import Report

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
