#!/usr/bin/env python3
"""The work of benches/train.rs in PyTorch and PEFT: forward and backward of a group, one sequence per completion.

    python benches/train_peft.py --model DIR [--prompt 1024 --group 8 --completion 128 --batch 1]

bf16 weights, f32 adapter of rank 16 on all seven projections, gradient checkpointing, logits for completion
tokens only; `--batch` sequences at a time. Prints seconds and the process's peak memory. Needs torch,
transformers and peft.
"""

import argparse
import resource
import time

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

parser = argparse.ArgumentParser()
parser.add_argument("--model", required=True)
parser.add_argument("--prompt", type=int, default=1024)
parser.add_argument("--group", type=int, default=8)
parser.add_argument("--completion", type=int, default=128)
parser.add_argument("--batch", type=int, default=1)
parser.add_argument("--rounds", type=int, default=1)
arguments = parser.parse_args()

model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.bfloat16)
config = LoraConfig(r=16, lora_alpha=32, target_modules=PROJECTIONS, task_type="CAUSAL_LM")
model = get_peft_model(model, config)
for name, parameter in model.named_parameters():
    if "lora_" in name:
        parameter.data = parameter.data.float()
model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
model.enable_input_require_grads()
model.train()

torch.manual_seed(0)
vocabulary = model.config.vocab_size
prompt = torch.randint(vocabulary, (1, arguments.prompt)).expand(arguments.group, -1)
completions = torch.randint(vocabulary, (arguments.group, arguments.completion))
for number in range(arguments.rounds):
    started = time.time()
    for first in range(0, arguments.group, arguments.batch):
        rows = slice(first, first + arguments.batch)
        ids = torch.cat([prompt[rows], completions[rows]], 1)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=ids, logits_to_keep=arguments.completion + 1, use_cache=False).logits
        log_probs = torch.log_softmax(logits[:, :-1].float(), -1)
        chosen = log_probs.gather(-1, completions[rows].unsqueeze(-1)).squeeze(-1)
        (-1e-3 * chosen.sum()).backward()
    seconds = time.time() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    count = arguments.group * (arguments.prompt + arguments.completion)
    print(f"PyTorch {torch.__version__}, round {number}: {seconds:.2f} s for {count} rows, peak {peak:.2f} GiB")
