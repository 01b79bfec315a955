#!/usr/bin/env python3
"""Writes rope.json beside this file: what transformers makes of RoPE's keys in config.json.

    pip install torch transformers
    python rope.py

A list of {name, config, inv_freq, attention_factor, positions}: a config.json as it may stand in a checkpoint, the
frequencies and the factor of cosines and sines that the family's rotary embedding has, and the positions that a prompt
may use (max_position_embeddings, or YaRN's original ones times its factor where those are more).
"""

import json
from pathlib import Path

import transformers
from transformers import CONFIG_MAPPING
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding
from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

ROTARY = {"llama": LlamaRotaryEmbedding, "qwen2": Qwen2RotaryEmbedding, "qwen3": Qwen3RotaryEmbedding}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}


def config(model_type, head_dim=128, positions=32768, theta=1e6, **more):
    common = {
        "model_type": model_type,
        "hidden_size": 8 * head_dim,
        "num_hidden_layers": 1,
        "num_attention_heads": 8,
        "intermediate_size": 16,
        "vocab_size": 8,
        "max_position_embeddings": positions,
    }
    if model_type == "qwen3":
        common["head_dim"] = head_dim
    if theta is not None:
        common["rope_theta"] = theta
    return common | more


def llama(positions=131072, theta=500000.0, original=8192, **scaling):
    scaling = LLAMA3 | ({} if original is None else {"original_max_position_embeddings": original}) | scaling
    return config("llama", 64, positions, theta, rope_scaling=scaling)


CASES = {
    "plain": config("qwen3"),
    "plain, said": config("qwen2", rope_scaling={"rope_type": "default"}),
    "plain, newer spelling": config("qwen2", theta=None, rope_parameters={"rope_type": "default", "rope_theta": 5e5}),
    "empty": config("llama", rope_scaling={}),
    "linear": config("llama", positions=16384, theta=1e4, rope_scaling={"type": "linear", "factor": 4.0}),
    "linear, newer spelling": config(
        "llama", theta=None, rope_parameters={"rope_type": "linear", "factor": 2.5, "rope_theta": 1e5}
    ),
    # Llama 3.1, 3.2 and 3.3 have factors of 8, 32 and 8.
    "Llama 3.1": llama(),
    "Llama 3.2": llama(factor=32.0),
    "llama3, narrow band": llama(low_freq_factor=1.5, high_freq_factor=2),
    "llama3, small": llama(positions=256, theta=1e4, original=32),
    "llama3, positions beside": llama(original=None) | {"original_max_position_embeddings": 4096},
    "llama3, positions in both": llama(original=8192) | {"original_max_position_embeddings": 2048},
    "llama3, positions in neither": llama(original=None),
    "llama3, newer spelling": config(
        "llama", 128, 131072, None, rope_parameters=LLAMA3 | {"original_max_position_embeddings": 8192, "rope_theta": 5e5}
    ),
    "llama3 in qwen2": config(
        "qwen2", rope_scaling=LLAMA3 | {"original_max_position_embeddings": 8192}
    ),
    # Qwen2.5's and Qwen3's advice for long texts.
    "Qwen2.5": config("qwen2", rope_scaling=YARN),
    "Qwen3": config("qwen3", positions=40960, rope_scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}),
    "Qwen3, longer already": config("qwen3", positions=262144, rope_scaling=YARN | {"factor": 2.5}),
    "yarn, newer spelling": config(
        "qwen3", 80, theta=None, rope_parameters={"rope_type": "yarn", "factor": 8, "original_max_position_embeddings": 4096, "rope_theta": 1e4}
    ),
    "yarn, attention factor": config("qwen2", rope_scaling=YARN | {"attention_factor": 0.75}),
    "yarn, both mscales": config("qwen2", rope_scaling=YARN | {"factor": 40.0, "mscale": 1.0, "mscale_all_dim": 0.707}),
    "yarn, one mscale": config("qwen2", rope_scaling=YARN | {"mscale": 0.5}),
    "yarn, mscale 0": config("qwen2", rope_scaling=YARN | {"mscale": 0.5, "mscale_all_dim": 0}),
    "yarn, betas": config("llama", 64, rope_scaling=YARN | {"beta_fast": 16.5, "beta_slow": 2}),
    "yarn, betas null or 0": config("llama", rope_scaling=YARN | {"beta_fast": None, "beta_slow": 0}),
    "yarn, not truncated": config("llama", 64, rope_scaling=YARN | {"truncate": False}),
    "yarn, not truncated, newer": config(
        "qwen3", 32, theta=None, rope_parameters=YARN | {"truncate": False, "rope_type": "yarn", "rope_theta": 150000.0, "factor": 32.0, "original_max_position_embeddings": 4096}
    ),
    "yarn, narrow": config("llama", 16, theta=1e4, rope_scaling=YARN | {"original_max_position_embeddings": 64}),
    "yarn, few positions": config("llama", 16, theta=1e4, rope_scaling=YARN | {"original_max_position_embeddings": 4}),
    "yarn, factor 1": config("qwen2", rope_scaling=YARN | {"factor": 1.0}),
    "yarn, factor null": config("qwen2", positions=163840, rope_scaling=YARN | {"factor": None, "original_max_position_embeddings": 4096}),
    "yarn, positions beside": config("qwen2", rope_scaling={"type": "yarn", "factor": 4.0}) | {"original_max_position_embeddings": 8192},
    "yarn, positions in neither": config("qwen2", rope_scaling={"rope_type": "yarn", "factor": 4.0}),
    "yarn, finetuned": config("llama", positions=65536, theta=1e4, rope_scaling={"type": "yarn", "factor": 16.0, "original_max_position_embeddings": 4096, "finetuned": True}),
}


def case(name, config):
    parsed = CONFIG_MAPPING[config["model_type"]](**json.loads(json.dumps(config)))
    rotary = ROTARY[config["model_type"]](parsed)
    positions = parsed.max_position_embeddings
    scaling = parsed.rope_parameters
    if scaling["rope_type"] == "yarn":
        original = scaling["original_max_position_embeddings"]
        positions = max(positions, int(original * (scaling["factor"] or positions / original)))
    return {
        "name": name,
        "config": config,
        "inv_freq": rotary.inv_freq.tolist(),
        "attention_factor": rotary.attention_scaling,
        "positions": positions,
    }


def main():
    transformers.utils.logging.set_verbosity_error()
    cases = [case(name, config) for name, config in CASES.items()]
    lines = ",\n".join(json.dumps(case) for case in cases)
    (Path(__file__).parent / "rope.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
