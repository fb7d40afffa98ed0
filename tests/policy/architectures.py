"""Tiny random models of transformers' architectures, for what must hold of any of them."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

# The same sizes under the names of three families.
LLAMA: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1,
}  # fmt: skip
GROUPED = {**LLAMA, "num_key_value_heads": 2}
GPT2: dict[str, Any] = {
    "vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "bos_token_id": 2, "eos_token_id": 1,
}  # fmt: skip
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4,
    "original_max_position_embeddings": 32,
}  # fmt: skip
GEMMA3 = {**GROUPED, "head_dim": 8, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
VISION = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip
XGLM: dict[str, Any] = {
    "vocab_size": 64, "d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4,
    "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1,
}  # fmt: skip
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "biogpt": ("BioGptConfig", LLAMA),
    "bloom": ("BloomConfig", {"vocab_size": 64, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "cohere": ("CohereConfig", {**GROUPED, "logit_scale": 0.5}),
    "falcon": ("FalconConfig", {**LLAMA, "alibi": False}),
    "falcon, alibi": ("FalconConfig", {**LLAMA, "alibi": True}),
    "falcon_h1": ("FalconH1Config", {**GROUPED, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_state": 8}),
    "gemma2": ("Gemma2Config", GEMMA3),
    "gemma3": (
        "Gemma3Config",
        {"text_config": GEMMA3, "vision_config": VISION, "image_token_index": 60, "mm_tokens_per_image": 4},
    ),
    "gemma3n": (
        "Gemma3nTextConfig",
        {
            **GEMMA3,
            "intermediate_size": [48, 32],
            "vocab_size_per_layer_input": 64,
            "hidden_size_per_layer_input": 8,
            "altup_num_inputs": 2,
            "num_kv_shared_layers": 0,
            "laurel_rank": 4,
            "activation_sparsity_pattern": [0.0] * 2,
        },
    ),
    "gemma4": (
        "Gemma4TextConfig",
        {
            **GEMMA3,
            "global_head_dim": 16,
            "vocab_size_per_layer_input": 64,
            "hidden_size_per_layer_input": 8,
            "num_kv_shared_layers": 0,
        },
    ),
    "gpt_bigcode": ("GPTBigCodeConfig", GPT2),
    "gptj": ("GPTJConfig", {**GPT2, "rotary_dim": 4}),
    "llama": ("LlamaConfig", GROUPED),
    "llama, dynamic": ("LlamaConfig", {**GROUPED, "rope_parameters": {"rope_type": "dynamic", "factor": 4.0}}),
    "llama, longrope": ("LlamaConfig", {**GROUPED, "rope_parameters": {**LONGROPE, "factor": 8.0}}),
    "llama4": (
        "Llama4TextConfig",
        {**GROUPED, **EXPERTS, "head_dim": 8, "intermediate_size_mlp": 48, "attention_chunk_size": 8},
    ),
    "mamba": ("MambaConfig", {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2}),
    "mistral, windows": ("MistralConfig", {**GROUPED, "sliding_window": 4}),
    "mixtral": ("MixtralConfig", {**GROUPED, **EXPERTS}),
    "mpt": ("MptConfig", {"vocab_size": 64, "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 256}),
    "openai-gpt": ("OpenAIGPTConfig", GPT2),
    "opt": ("OPTConfig", {**LLAMA, "ffn_dim": 48, "word_embed_proj_dim": 32}),
    "persimmon": ("PersimmonConfig", LLAMA),
    "phi3, longrope": (
        "Phi3Config",
        {**GROUPED, "sliding_window": None, "rope_parameters": LONGROPE, "original_max_position_embeddings": 32},
    ),
    "phimoe": ("PhimoeConfig", {**GROUPED, **EXPERTS}),
    "qwen2": ("Qwen2Config", GROUPED),
    "rwkv": ("RwkvConfig", {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "context_length": 256}),
    "xglm": ("XGLMConfig", XGLM),
}


def config_of(name: str, **changes: object) -> PreTrainedConfig:
    kind, fields = ARCHITECTURES[name]
    return getattr(transformers, kind)(**{**fields, **changes})


def model_of(config: PreTrainedConfig, seed: int = 0) -> PreTrainedModel:
    """Random weights, large enough that a wrong position or a wrong mask shows in the log-probabilities."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "vision" not in name:
                parameter.mul_(4)
    return model
