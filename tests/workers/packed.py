"""Models that are no .pt2: Transformers folders, saved modules, TorchScript, made here, honest and hostile."""

from __future__ import annotations

import io
import json
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

Files = dict[str, bytes]

_TEXT = {"vocab_size": 100, "max_position_embeddings": 64}
_BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
_LLAMA = {**_TEXT, **_BERT, "num_key_value_heads": 2}
_WHISPER = {
    **{"vocab_size": 100, "d_model": 32, "num_mel_bins": 16, "max_source_positions": 50, "max_target_positions": 40},
    **{f"{side}_{what}": size for side in ("encoder", "decoder") for what, size in
       (("layers", 2), ("attention_heads", 4), ("ffn_dim", 64))},
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1},
}  # fmt: skip

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "BertModel": {**_TEXT, **_BERT},
    "BertForSequenceClassification": {**_TEXT, **_BERT},
    "GPT2LMHeadModel": {"vocab_size": 100, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "T5ForConditionalGeneration": {
        **{"vocab_size": 100, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    },
    "LlamaForCausalLM": _LLAMA,
    "ViTForImageClassification": {**_BERT, "image_size": 32, "patch_size": 8},
    "WhisperForConditionalGeneration": _WHISPER,
    "AlbertModel": {**_TEXT, **_BERT, "embedding_size": 16},
    "MixtralForCausalLM": {**_LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2},
    "Wav2Vec2Model": {
        **_BERT,
        **{"vocab_size": 32, "conv_dim": (16, 16), "conv_stride": (5, 2), "conv_kernel": (10, 3)},
        **{"num_feat_extract_layers": 2, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4},
    },
    "ResNetForImageClassification": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1],
                                     "layer_type": "basic"},
}  # fmt: skip


def pretrained(architecture: str, **more: Any) -> Any:
    """A tiny random model of this class, in eval mode."""
    import transformers

    torch.manual_seed(0)
    kind = getattr(transformers, architecture)
    return kind(kind.config_class(**(ARCHITECTURES[architecture] | more))).eval()


def folder(model: Any, tmp_path: Path, **saving: Any) -> Files:
    """The files ``save_pretrained`` writes."""
    target = tmp_path / "saved"
    model.save_pretrained(target, **saving)
    return {path.name: path.read_bytes() for path in sorted(target.iterdir())}


def tiny_folder(tmp_path: Path) -> Files:
    return folder(pretrained("BertModel"), tmp_path)


def zipped(files: Files, path: Path, top: str = "") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(top + name, data)
    return path


def tarred(files: Files, path: Path, top: str = "", mode: str = "w:gz", **header: Any) -> Path:
    with tarfile.open(path, mode) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(top + name)
            info.size, info.mtime = len(data), 1.5  # a fraction of a second makes an extended header
            for key, value in header.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(data))
    return path


def with_config(files: Files, **changes: Any) -> Files:
    return files | {"config.json": json.dumps(json.loads(files["config.json"]) | changes).encode()}


def safetensors(header: Any, data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


# ---- modules ----


def sequential() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval()


def convolutional() -> nn.Module:
    features = (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    return nn.Sequential(*features, nn.Flatten(), nn.Linear(8, 3)).eval()


def encoder(activation: str = "gelu") -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, activation=activation)
    return nn.TransformerEncoder(layer, 2).eval()


def recurrent() -> nn.Module:
    return nn.LSTM(8, 16, batch_first=True).eval()


def tokens() -> nn.Module:
    return nn.Sequential(nn.Embedding(10, 8), nn.Linear(8, 3)).eval()


class Scaled(nn.Module):
    """Own code, two arguments, a loop and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.register_buffer("shift", torch.ones(8))

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        for _ in range(3):
            x = torch.relu(self.fc(x)) + self.shift
        return x * scale


class Branching(nn.Module):
    """A branch over a size, which a conversion would have to keep."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(x)
        while bool(x.abs().max() > 1):
            x = x / 2
        return x


class Sized(nn.Module):
    """A branch over the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(x)
        if x.size(0) > 2:
            x = x * 2
        return x


def saved(module: nn.Module, path: Path) -> Path:
    torch.save(module, path)
    return path


def scripted(module: nn.Module, path: Path) -> Path:
    torch.jit.save(torch.jit.script(module.eval()), path)
    return path


def traced(module: nn.Module, path: Path, *inputs: Tensor) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # attention compares its sizes
        torch.jit.save(torch.jit.trace(module.eval(), inputs, check_trace=False), path)
    return path


def with_code(source: Path, target: Path, change: Callable[[str], str]) -> Path:
    """A TorchScript archive whose source text is another."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for info in old.infolist():
            data = old.read(info)
            new.writestr(info.filename, change(data.decode()).encode() if info.filename.endswith(".py") else data)
    return target
