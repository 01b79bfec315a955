#!/usr/bin/env python3
"""Writes the golden cases beside this file: tiny random checkpoints and what PyTorch and PEFT compute with them.

    pip install torch transformers peft safetensors
    python make.py [CASE ...]

Each case is a directory, in the format `j1 check` reads:

model/               Hugging Face checkpoint of random weights; some with a tokenizer, sharded, or in half precision
adapter/             PEFT LoRA adapter, A and B random and not zero
case.json            inputs, versions, greedy tokens with their smallest margin, errors of the reference itself
base.safetensors     outputs without adapter
lora.safetensors     outputs with it
bfloat16.safetensors logits_seqI without adapter, computed by torch in bfloat16 (bfloat16 checkpoints only)
grads.safetensors    gradients of the adapter, and in some cases more of a training step: see gradients.py

Tensors, all float32 and computed in float32 unless said otherwise. There are two sequences, I = 0 and 1; L is a length, T
the longer one, V the vocabulary, H the hidden size.

input_ids_padded, attention_mask  [2, T] int64, padded on the right
logits_padded    [2, T, V]        of that batch; rows of padding mean nothing
logits_seqI      [L, V]           of the sequence alone
hidden_seqI      [layers + 1, L, H]  embeddings, then each layer's output, the last one after the final norm
logp_seqI        [L - 1]          log p(ids[t + 1] | ids[..= t]), temperature 1
logp_T0.7_seqI   [L - 1]          the same of logits / 0.7
entropy_seqI     [L]              in nats, temperature 1

Greedy tokens are those after each whole sequence, end tokens ignored. Weights and inputs depend on the case's seed
and the tensor's name only.
"""

import argparse
import json
import shutil
import zlib
from pathlib import Path

import peft
import torch
import torch.nn.functional as F
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, CONFIG_MAPPING

import gradients
import tokenizer

HERE = Path(__file__).parent
GREEDY_TOKENS = 32
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
ALL = ATTENTION + ["gate_proj", "up_proj", "down_proj"]

# What every configuration says, in the spelling of checkpoints on the hub: rope_theta and torch_dtype.
COMMON = {
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "max_position_embeddings": 40960,
    "num_hidden_layers": 2,
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "transformers_version": "4.51.0",
    "use_cache": True,
}
QWEN = {"sliding_window": None, "use_sliding_window": False, "max_window_layers": 2}
QWEN3 = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "attention_bias": False} | QWEN
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "attention_bias": False,
    "mlp_bias": False,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
TALKS = {"bos_token_id": tokenizer.END_OF_TEXT, "eos_token_id": tokenizer.IM_END, "vocab_size": tokenizer.VOCABULARY}
QWEN3_TIED = {
    "hidden_size": 48,
    "intermediate_size": 72,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,  # 4 * 16 is not the hidden size
    "tie_word_embeddings": True,
}


def case(seed, config, *, dtype=torch.float32, lens=(14, 9), rope_parameters=False, stops=None, lora, **options):
    """One case. `stops`: eos_token_id of generation_config.json, which is left out if None."""
    return dict(
        seed=seed,
        config=COMMON | config,
        dtype=dtype,
        lens=lens,
        rope_parameters=rope_parameters,
        stops=stops,
        lora={"lora_dropout": 0.0, "bias": "none", "task_type": "CAUSAL_LM"} | lora,
        options=options,
    )


CHAT_STOPS = [tokenizer.IM_END, tokenizer.END_OF_TEXT]
CASES = {
    "qwen3-tied": case(
        11,
        QWEN3 | QWEN3_TIED | TALKS,
        stops=CHAT_STOPS,
        lora=dict(r=8, lora_alpha=16, target_modules=ALL),
        tokenizer=True,
    ),
    # The same weights rounded, and the redundant head that some tied checkpoints carry.
    "qwen3-tied-bf16": case(
        11,
        QWEN3 | QWEN3_TIED | TALKS,
        dtype=torch.bfloat16,
        stops=CHAT_STOPS,
        lora=dict(r=8, lora_alpha=16, target_modules=ALL),
        tokenizer=True,
        redundant_head=True,
    ),
    # A head size that no power of two divides, three query heads on one key, and alpha / sqrt(r).
    "qwen3-untied": case(
        12,
        QWEN3
        | {
            "hidden_size": 40,
            "intermediate_size": 88,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "head_dim": 24,
            "tie_word_embeddings": False,
            "vocab_size": 259,
            "bos_token_id": 0,
            "eos_token_id": 1,
        },
        lens=(8, 15),
        rope_parameters=True,
        stops=1,
        lora=dict(r=4, lora_alpha=6, target_modules=ALL, use_rslora=True),
    ),
    # Two shards of float16 and an adapter of float16.
    "qwen3-sharded": case(
        23,
        QWEN3 | QWEN3_TIED | TALKS | {"hidden_size": 64, "tie_word_embeddings": False},
        dtype=torch.float16,
        lens=(6, 13),
        stops=CHAT_STOPS,
        lora=dict(r=4, lora_alpha=8, target_modules=ALL),
        tokenizer=True,
        shards=2,
        half_adapter=True,
    ),
    # Biases on q, k and v, no norm on q and k, and head_dim left to be derived.
    "qwen2": case(
        14,
        QWEN
        | {
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": "qwen2",
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "sliding_window": 32768,
            "tie_word_embeddings": True,
            "vocab_size": 272,
            "bos_token_id": 0,
            "eos_token_id": 1,
        },
        stops=[1, 0],
        lora=dict(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]),
    ),
    # As many key heads as query heads, and stop ids in config.json only.
    "llama": case(
        16,
        LLAMA
        | {
            "hidden_size": 48,
            "intermediate_size": 72,
            "num_attention_heads": 3,
            "num_key_value_heads": 3,
            "head_dim": 16,
            "vocab_size": 256,
            "bos_token_id": 0,
            "eos_token_id": [1, 7],
        },
        rope_parameters=True,
        lora=dict(r=6, lora_alpha=9, target_modules=ATTENTION),
    ),
    # RoPE that is scaled, over more positions than the first ones, in the older spelling (head_dim 16: wavelengths from 6 to
    # 20,000, of which llama3 keeps the first, mixes two and stretches the rest).
    "llama-llama3": case(
        31,
        LLAMA
        | SMALL
        | {
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
        lens=(80, 33),
        lora=dict(r=4, lora_alpha=8, target_modules=ATTENTION),
    ),
    "qwen2-yarn": case(
        32,
        QWEN
        | SMALL
        | {
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": "qwen2",
            "max_position_embeddings": 32,
            "tie_word_embeddings": True,
            "rope_theta": 10000.0,
            "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
        },
        lens=(90, 40),
        lora=dict(r=4, lora_alpha=8, target_modules=ATTENTION),
    ),
    # The newer spelling, with all that YaRN has.
    "qwen3-yarn": case(
        33,
        QWEN3
        | SMALL
        | {
            "head_dim": 16,
            "tie_word_embeddings": True,
            "rope_theta": 10000.0,
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 8.0,
                "original_max_position_embeddings": 32,
                "beta_fast": 8.0,
                "beta_slow": 1.5,
                "mscale": 1.0,
                "mscale_all_dim": 0.5,
                "truncate": False,
            },
        },
        lens=(70, 33),
        rope_parameters=True,
        lora=dict(r=4, lora_alpha=8, target_modules=ATTENTION),
    ),
}


def generator(name, seed):
    return torch.Generator().manual_seed((zlib.crc32(name.encode()) ^ (seed * 2654435761)) & 0xFFFFFFFF)


def random_weight(name, shape, seed):
    """Spread so wide that attention, SiLU and the choice of a token are really exercised."""
    weight = torch.randn(shape, generator=generator(name, seed))
    if "embed_tokens" in name or "lm_head" in name:
        return 0.3 * weight
    if len(shape) == 2:
        return 1.2 * shape[1] ** -0.5 * weight
    return 0.3 * weight if name.endswith("bias") else 1.0 + 0.1 * weight


def write_json(path, value):
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def write_weights(directory, weights, shards):
    """model.safetensors, or the named number of shards with their index."""
    if shards == 1:
        save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
        return
    names = sorted(weights)
    weight_map = {}
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        part = names[i * len(names) // shards : (i + 1) * len(names) // shards]
        weight_map |= dict.fromkeys(part, file)
        save_file({name: weights[name] for name in part}, directory / file, metadata={"format": "pt"})
    total = sum(weight.numel() * weight.element_size() for weight in weights.values())
    write_json(
        directory / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map}
    )


def write_model(directory, c):
    """Writes the checkpoint of a case."""
    directory.mkdir(parents=True)
    config = c["config"] | {"torch_dtype": str(c["dtype"]).removeprefix("torch.")}
    parsed = CONFIG_MAPPING[config["model_type"]](**config)
    if c["rope_parameters"]:
        parsed.to_json_file(directory / "config.json")  # transformers 5 writes the newer spelling
    else:
        write_json(directory / "config.json", config)
    weights = {
        name: random_weight(name, weight.shape, c["seed"]).to(c["dtype"])
        for name, weight in AutoModelForCausalLM.from_config(parsed).state_dict().items()
        if name != "lm_head.weight" or not config["tie_word_embeddings"]
    }
    if c["options"].get("redundant_head"):
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    write_weights(directory, weights, c["options"].get("shards", 1))
    if c["stops"] is not None:
        stops = {"bos_token_id": config["bos_token_id"], "eos_token_id": c["stops"]}
        write_json(
            directory / "generation_config.json",
            stops | {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95},
        )
    if c["options"].get("tokenizer"):
        tokenizer.write(directory)


def load_model(directory, dtype):
    """The model, with greedy generation that no end token stops."""
    model, report = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"], report
    model.generation_config = transformers.GenerationConfig(do_sample=False, pad_token_id=0)
    return model.eval()


def write_adapter(directory, base, c):
    """Writes a random adapter of `base`."""
    model = get_peft_model(base, LoraConfig(**c["lora"]))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                spread = weight.shape[1] ** -0.5 if "lora_A" in name else 0.05
                weight.copy_(spread * torch.randn(weight.shape, generator=generator(name, c["seed"])))
    model.peft_config["default"].base_model_name_or_path = "../model"
    model.save_pretrained(directory)
    (directory / "README.md").unlink()
    config = json.loads((directory / "adapter_config.json").read_text())
    config["target_modules"].sort()  # PEFT keeps a set, whose order changes from run to run
    write_json(directory / "adapter_config.json", config)
    if c["options"].get("half_adapter"):
        file = directory / "adapter_model.safetensors"
        save_file({name: weight.half() for name, weight in load_file(file).items()}, file, metadata={"format": "pt"})


def logprobs(logits, ids):
    return logits[:-1].log_softmax(-1).gather(-1, ids[1:, None])[:, 0]


@torch.no_grad()
def outputs(model, sequences, padded, mask):
    """The tensors of base.safetensors and lora.safetensors."""
    result = {
        "input_ids_padded": padded,
        "attention_mask": mask,
        "logits_padded": model(input_ids=padded, attention_mask=mask).logits,
    }
    for i, ids in enumerate(sequences):
        output = model(input_ids=ids[None], output_hidden_states=True)
        logits = output.logits[0]
        logp = logits.log_softmax(-1)
        result |= {
            f"logits_seq{i}": logits,
            f"hidden_seq{i}": torch.cat(output.hidden_states),
            f"logp_seq{i}": logprobs(logits, ids),
            f"logp_T0.7_seq{i}": logprobs(logits / 0.7, ids),
            f"entropy_seq{i}": -(logp.exp() * logp).sum(-1),
        }
    return {name: tensor.contiguous() for name, tensor in result.items()}


@torch.no_grad()
def greedy(model, ids):
    """Greedy tokens after `ids` and the smallest gap between the two largest logits on the way."""
    start, margin = ids, float("inf")
    for _ in range(GREEDY_TOKENS):
        top = model(input_ids=ids[None], use_cache=False).logits[0, -1].topk(2)
        margin = min(margin, (top.values[0] - top.values[1]).item())
        ids = torch.cat([ids, top.indices[:1]])
    cached = model.generate(
        input_ids=start[None],
        attention_mask=torch.ones_like(start)[None],
        max_new_tokens=GREEDY_TOKENS,
    )[0]
    assert torch.equal(cached, ids), "generating from the cache gives other tokens than computing all anew"
    return ids[len(start) :].tolist(), margin


def largest_difference(left, right, lens):
    """Over the logits of all sequences, padded and alone."""
    pairs = [(left[f"logits_seq{i}"], right[f"logits_seq{i}"]) for i in range(len(lens))]
    pairs += [(left["logits_padded"][i, :n], right["logits_padded"][i, :n]) for i, n in enumerate(lens)]
    return max((a.double() - b.double()).abs().max().item() for a, b in pairs)


def reference_error(model, result, batch, lens):
    """How far the float32 logits are from float64 ones (but for the rotations, which transformers keeps in float32)."""
    exact = outputs(model.double(), *batch)
    model.float()
    return largest_difference(result, exact, lens)


def make(name):
    c = CASES[name]
    out = HERE / name
    shutil.rmtree(out, ignore_errors=True)
    write_model(out / "model", c)
    load = lambda dtype: load_model(out / "model", dtype)
    write_adapter(out / "adapter", load(torch.float32), c)

    random = generator(name + ".ids", c["seed"])
    vocabulary, lens = c["config"]["vocab_size"], c["lens"]
    sequences = [torch.randint(2, vocabulary, (n,), generator=random) for n in lens]
    pad = lambda rows: torch.stack([F.pad(row, (0, max(lens) - len(row))) for row in rows])
    batch = sequences, pad(sequences), pad([torch.ones_like(ids) for ids in sequences])

    info = {
        "seed": c["seed"],
        "model": name,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__},
        "dtype": "float32",
        "weights": str(c["dtype"]).removeprefix("torch."),
        "pad_id": 0,
        "lens": lens,
        "input_ids": [ids.tolist() for ids in sequences],
        "lora": {"r": c["lora"]["r"], "alpha": c["lora"]["lora_alpha"], "target_modules": c["lora"]["target_modules"]},
        "self_check": {},
    }
    base = load(torch.float32)
    adapted = PeftModel.from_pretrained(load(torch.float32), out / "adapter").eval()
    results = {}
    for which, model in {"base": base, "lora": adapted}.items():
        results[which] = outputs(model, *batch)
        save_file(results[which], out / f"{which}.safetensors")
        tokens, margins = zip(*(greedy(model, ids) for ids in sequences))
        assert min(margins) > 1e-3, f"{name}: greedy margin {min(margins)} is too small to test with: change its seed"
        info[f"greedy_{which}"], info[f"greedy_{which}_min_margin"] = tokens, margins
        info["self_check"][f"{which}_logits_vs_float64"] = reference_error(model, results[which], batch, lens)
    info["self_check"]["lora_changes_logits_by"] = largest_difference(results["base"], results["lora"], lens)
    if c["dtype"] == torch.bfloat16:
        with torch.no_grad():
            rounded = load(torch.bfloat16)
            logits = {f"logits_seq{i}": rounded(input_ids=ids[None]).logits[0].float() for i, ids in enumerate(sequences)}
        save_file(logits, out / "bfloat16.safetensors")
        info["self_check"]["bfloat16_logits_vs_float32"] = max(
            (logits[key] - results["base"][key]).abs().max().item() for key in logits
        )
    lines = ",\n".join(f' "{key}": {json.dumps(value)}' for key, value in info.items())
    (out / "case.json").write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    print(f"{name}: {size / 1000:.0f} kB,", ", ".join(f"{k} {v:.1e}" for k, v in info["self_check"].items()))
    print("   smallest margins", *(f"{m:.4f}" for w in ("base", "lora") for m in info[f"greedy_{w}_min_margin"]))
    if name in gradients.CASES:
        gradients.write(out)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"default: all of {', '.join(CASES)}")
    transformers.utils.logging.disable_progress_bar()
    for name in parser.parse_args().cases or CASES:
        make(name)


if __name__ == "__main__":
    main()
