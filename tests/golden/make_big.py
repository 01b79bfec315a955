#!/usr/bin/env python3
"""Writes a random Qwen3-0.6B and what PyTorch computes with it in float32 and in bfloat16.

    pip install torch transformers safetensors
    python make_big.py --tokenizer DIR --out DIR [--seed N]

--tokenizer is a directory with Qwen3's tokenizer.json and tokenizer_config.json (any size of Qwen3 has them). It takes
about a minute and 5 GB of memory, and writes 1.2 GB, which is why the result lies in no repository. `j1 check` reads it:
an engine that computes in bfloat16 should be at most twice as far from float32 as PyTorch's own bfloat16.

model/                bfloat16 checkpoint, with the tokenizer
case.json             "kind": "bfloat16"; text, input_ids, positions, and how far PyTorch's bfloat16 is from float32
float32.safetensors   the bfloat16 weights, upcast, computed in float32
bfloat16.safetensors  computed in bfloat16

Both files hold float32 tensors. T is the length, P the number of positions, V the vocabulary, H the hidden size:

logits_at  [P, V]              logits at case.json's positions
hidden_at  [layers + 1, P, H]  embeddings, then each layer's output, the last one after the final norm
logp       [T - 1]             log p(ids[t + 1] | ids[..= t])
"""

import argparse
import json
import shutil
import zlib
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 1024,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "max_position_embeddings": 40960,
    "max_window_layers": 28,
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.51.0",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
GENERATION_CONFIG = {"bos_token_id": 151643, "eos_token_id": [151645, 151643], "pad_token_id": 151643}
MESSAGES = [
    {"role": "system", "content": "You are an expert judge. Score each response from 1 to 10."},
    {
        "role": "user",
        "content": "[Conversation Context]\nuser: What is 17 * 23?\n\n"
        "[The Begin of Response A]\nIt is 391.\n[The End of Response A]\n\n"
        "[The Begin of Response B]\nIt is 381, because 17 * 20 = 340 and 17 * 3 = 41.\n[The End of Response B]",
    },
]


def random_weight(name, shape, seed):
    """As Qwen3 is initialized, but with norms that are not all one."""
    random = torch.Generator().manual_seed((zlib.crc32(name.encode()) ^ (seed * 2654435761)) & 0xFFFFFFFF)
    weight = torch.randn(shape, generator=random)
    return (1.0 + 0.1 * weight if len(shape) == 1 else 0.02 * weight).bfloat16()


def write_model(directory, tokenizer, seed):
    directory.mkdir(parents=True, exist_ok=True)
    with torch.device("meta"):
        shapes = {name: weight.shape for name, weight in Qwen3ForCausalLM(Qwen3Config(**CONFIG)).state_dict().items()}
    del shapes["lm_head.weight"]  # tied
    weights = {name: random_weight(name, shape, seed) for name, shape in shapes.items()}
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(CONFIG, indent=1) + "\n")
    (directory / "generation_config.json").write_text(json.dumps(GENERATION_CONFIG, indent=1) + "\n")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tokenizer / file, directory / file)


@torch.no_grad()
def outputs(directory, dtype, ids, positions):
    model = Qwen3ForCausalLM.from_pretrained(directory, dtype=dtype).eval()
    result = model(input_ids=ids[None], output_hidden_states=True, use_cache=False)
    logits = result.logits[0].float()
    return {
        "logits_at": logits[positions].clone(),
        "hidden_at": torch.stack([layer[0, positions].float() for layer in result.hidden_states]),
        "logp": logits[:-1].log_softmax(-1).gather(-1, ids[1:, None])[:, 0].clone(),
    }


def error(left, right):
    difference = (left.double() - right.double()).abs()
    return {"max": difference.max().item(), "rms": difference.square().mean().sqrt().item()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    out = arguments.out
    write_model(out / "model", arguments.tokenizer, arguments.seed)
    tokenizer = AutoTokenizer.from_pretrained(out / "model")
    text = tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text)["input_ids"]
    positions = [0, 1, len(ids) // 4, len(ids) // 2, len(ids) - 2, len(ids) - 1]
    results = {
        name: outputs(out / "model", dtype, torch.tensor(ids), positions)
        for name, dtype in {"float32": torch.float32, "bfloat16": torch.bfloat16}.items()
    }
    for name, tensors in results.items():
        save_file(tensors, out / f"{name}.safetensors")
    case = {
        "kind": "bfloat16",
        "model": "model",
        "seed": arguments.seed,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "text": text,
        "input_ids": ids,
        "positions": positions,
        "bfloat16_error": {
            name: error(results["bfloat16"][name], results["float32"][name]) for name in results["float32"]
        },
        "logits_std": results["float32"]["logits_at"].std().item(),
    }
    lines = ",\n".join(f' "{key}": {json.dumps(value)}' for key, value in case.items())
    (out / "case.json").write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
    print(f"{len(ids)} tokens, errors of bfloat16: {case['bfloat16_error']}, logits' std {case['logits_std']:.3f}")


if __name__ == "__main__":
    main()
