"""Transformers' own models, tiny and random, as their users export them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.workers.engine.situations.situation import Situation, ids, normal

TINY: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}


def prepare_for_export(model: nn.Module) -> nn.Module:
    """As a user exports it: eval mode, and weights large enough that layers do something (0.02 is the default)."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8)
    return model.eval()


def bert(**options: Any) -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    return prepare_for_export(BertForSequenceClassification(BertConfig(**TINY, max_position_embeddings=16, **options)))


def headless_bert() -> nn.Module:
    from transformers import BertConfig, BertModel

    return prepare_for_export(BertModel(BertConfig(**TINY, max_position_embeddings=16, return_dict=False)))


def albert() -> nn.Module:
    from transformers import AlbertConfig, AlbertModel

    config = AlbertConfig(**TINY, embedding_size=8, max_position_embeddings=16, return_dict=False)
    return prepare_for_export(AlbertModel(config))


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=32, n_positions=16, n_embd=16, n_layer=2, n_head=2, use_cache=False, bos_token_id=0, eos_token_id=1
    )
    return prepare_for_export(GPT2LMHeadModel(config))


def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**TINY, num_key_value_heads=1, max_position_embeddings=16, use_cache=False)
    return prepare_for_export(LlamaForCausalLM(config))


def mixtral(experts: str) -> nn.Module:
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        **TINY, num_key_value_heads=1, max_position_embeddings=16, num_local_experts=4, num_experts_per_tok=2,
        use_cache=False, experts_implementation=experts,
    )  # fmt: skip
    return prepare_for_export(MixtralForCausalLM(config))


def t5() -> nn.Module:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, use_cache=False)
    return prepare_for_export(T5ForConditionalGeneration(config))


def vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {name: size for name, size in TINY.items() if name != "vocab_size"}
    return prepare_for_export(ViTForImageClassification(ViTConfig(**sizes, image_size=8, patch_size=4)))


def whisper() -> nn.Module:
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    config = WhisperConfig(
        vocab_size=32, num_mel_bins=8, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, d_model=16, max_source_positions=8,
        max_target_positions=8, use_cache=False, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        decoder_start_token_id=1,
    )  # fmt: skip
    return prepare_for_export(WhisperForConditionalGeneration(config))


def nothing() -> tuple[Tensor, ...]:
    return ()


TOKENS = torch.arange(24).reshape(3, 8) % 32
MASK = torch.ones(3, 8, dtype=torch.int64)
BOTH = {"input_ids": TOKENS, "attention_mask": MASK}
PAIRED = {"input_ids": TOKENS, "decoder_input_ids": TOKENS[:, :4]}
HEARD = {"input_features": torch.sin(torch.arange(3 * 8 * 16.0)).reshape(3, 8, 16), "decoder_input_ids": TOKENS[:, :4]}

ARCHITECTURES = (
    Situation("BERT", "not-lowered", lambda: bert(return_dict=False), nothing, BOTH, gemms=14),
    Situation("BERT with named outputs", "not-lowered", bert, nothing, BOTH, gemms=14),
    Situation("BERT, eager attention", "not-lowered",
              lambda: bert(return_dict=False, attn_implementation="eager"), nothing, BOTH, gemms=14),
    Situation("BERT without a head", "not-lowered", headless_bert, nothing, BOTH, gemms=13),
    Situation("ALBERT", "shared", albert, nothing, BOTH, gemms=8),
    Situation("GPT-2", "lookalike", gpt2, nothing, BOTH, gemms=9),
    Situation("Llama", "not-lowered", llama, nothing, BOTH, gemms=15),
    Situation("Mixtral, grouped products", "param-3d", lambda: mixtral("grouped_mm"), nothing, BOTH, gemms=15),
    Situation("Mixtral, experts picked by token", "computed-weight", lambda: mixtral("batched_mm"), nothing, BOTH,
              gemms=11),
    Situation("T5", "weight-attr-read", t5, nothing, PAIRED, gemms=33),
    Situation("ViT", "not-lowered", vit, normal(3, 3, 8, 8), gemms=14),
    Situation("Whisper", "weight-attr-read", whisper, nothing, HEARD, gemms=19),
    Situation("BERT, decomposed", "decomposed", lambda: bert(return_dict=False), nothing, BOTH, gemms=14,
              decompose=True),
    Situation("GPT-2 from ids alone", "lookalike", gpt2, ids(3, 8), gemms=9),
)  # fmt: skip
