#!/usr/bin/env python3
"""The work of `j1 bench` in PyTorch, transformers and PEFT: one kind of work in one process.

    python benches/pytorch.py prefill --model DIR --tokens 1024
    python benches/pytorch.py decode --model DIR --batch 16 --depth 256 --gen 64
    python benches/pytorch.py lora --model DIR --tokens 1024 [--gradient-checkpointing]
    python benches/pytorch.py grpo --model DIR --prompt 1024 --group 8 --completion 128 [--gradient-checkpointing]

prefill   one prompt, keys and values kept, the logits of the last token
decode    greedy, all sequences in every step, transformers' own cache; prompts are computed before
lora      forward, backward and AdamW, the loss on all tokens
grpo      the reference's log-probabilities with the adapter disabled, the policy's, loss with KL term and
          backward, `--rows` sequences at a time, then AdamW; every sequence carries its prompt

bf16 weights; an f32 adapter of rank 16 on all seven projections where it trains. A pass of the same shape warms
up, but training warms up on 64 tokens. Prints a JSON object: the seconds of every pass, and the peak of resident
memory since the model was loaded. Needs torch, transformers and peft.
"""

import argparse
import json
import sys
import time

import torch
import torch.nn.functional as F
import transformers
from transformers import AutoModelForCausalLM, DynamicCache

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
BETA = 0.04
WARM_UP_TOKENS = 64


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    works = parser.add_subparsers(dest="work", required=True)
    for work in ["prefill", "decode", "lora", "grpo"]:
        sub = works.add_parser(work)
        sub.add_argument("--model", required=True)
        sub.add_argument("--threads", type=int)
        sub.add_argument("--repeat", type=int, default=1)
        if work in ("prefill", "lora"):
            sub.add_argument("--tokens", type=int, default=1024)
        if work == "decode":
            sub.add_argument("--batch", type=int, default=1)
            sub.add_argument("--depth", type=int, default=256)
            sub.add_argument("--gen", type=int, default=64)
        if work == "grpo":
            sub.add_argument("--prompt", type=int, default=1024)
            sub.add_argument("--group", type=int, default=8)
            sub.add_argument("--completion", type=int, default=128)
            sub.add_argument("--rows", type=int, default=1, help="sequences at a time")
        if work in ("lora", "grpo"):
            sub.add_argument("--gradient-checkpointing", action="store_true")
    return parser.parse_args()


def load(options):
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.bfloat16)
    if options.work in ("prefill", "decode"):
        return model.eval()
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules=PROJECTIONS, task_type="CAUSAL_LM")
    model = get_peft_model(model, config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
    if options.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    return model.train()


def prefill(model, options):
    ids = torch.randint(model.config.vocab_size, (1, options.tokens))

    def run():
        started = time.perf_counter()
        with torch.no_grad():
            model(input_ids=ids, use_cache=True, logits_to_keep=1).logits.argmax(-1)
        return time.perf_counter() - started

    return run, run


def decode(model, options):
    ids = torch.randint(model.config.vocab_size, (options.batch, options.depth))
    with torch.no_grad():
        cache = DynamicCache(config=model.config)
        logits = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits

    def run():
        decoded = cache.get_seq_length() - options.depth
        if decoded:
            cache.crop(-decoded)
        last = logits.argmax(-1)
        started = time.perf_counter()
        with torch.no_grad():
            for _ in range(options.gen):
                last = model(input_ids=last, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(-1)
        return time.perf_counter() - started

    return run, run


def lora(model, options):
    optimizer = adamw(model)
    ids = torch.randint(model.config.vocab_size, (1, options.tokens + 1))

    def step(tokens):
        started = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=ids[:, :tokens], use_cache=False).logits
        F.cross_entropy(logits[0].float(), ids[0, 1 : tokens + 1]).backward()
        del logits
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - started

    return lambda: step(min(options.tokens, WARM_UP_TOKENS)), lambda: step(options.tokens)


def grpo(model, options):
    optimizer = adamw(model)
    vocabulary, group, length = model.config.vocab_size, options.group, options.completion
    prompt = torch.randint(vocabulary, (1, options.prompt)).expand(group, -1)
    completions = torch.randint(vocabulary, (group, length))
    advantages = torch.tensor([1.0 if i % 2 == 0 else -1.0 for i in range(group)]).unsqueeze(1)

    def log_probs(ids, targets):
        count = targets.shape[1]
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=ids, logits_to_keep=count + 1, use_cache=False).logits
        return torch.log_softmax(logits[:, :-1].float(), -1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)

    def step(prompt, completions):
        started = time.perf_counter()
        for first in range(0, completions.shape[0], options.rows):
            rows = slice(first, first + options.rows)
            targets = completions[rows]
            ids = torch.cat([prompt[rows], targets], 1)
            with torch.no_grad(), model.disable_adapter():
                reference = log_probs(ids, targets)
            policy = log_probs(ids, targets)
            difference = reference - policy
            kl = torch.exp(difference) - difference - 1
            ratio = torch.exp(policy - policy.detach())
            loss = (BETA * kl - ratio * advantages[rows]).sum() / completions.numel()
            loss.backward()
            del policy, reference, loss
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - started

    warm_up = lambda: step(prompt[:1, : WARM_UP_TOKENS - 8], completions[:1, :8])
    return warm_up, lambda: step(prompt, completions)


def adamw(model):
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5, weight_decay=0.0)


def reset_peak():
    """Of resident memory, so that loading does not count; where the system does not, it does."""
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
        return True
    except OSError:
        return False


def peak():
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main():
    options = arguments()
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = load(options)
    reset = reset_peak()
    warm_up, run = {"prefill": prefill, "decode": decode, "lora": lora, "grpo": grpo}[options.work](model, options)
    warm_up()
    seconds = [run() for _ in range(options.repeat)]
    import peft

    report = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
        "threads": torch.get_num_threads(),
        "seconds": seconds,
        "peak_memory_bytes": peak(),
        "peak_without_loading": reset,
    }
    json.dump(report, sys.stdout)
    print()


if __name__ == "__main__":
    main()
