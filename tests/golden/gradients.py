#!/usr/bin/env python3
"""Adds to golden cases what PyTorch computes when it trains their adapters. make.py runs it on each case it writes; alone
it leaves the rest of a case as it is.

    python gradients.py [CASE ...]

Keys are those of adapter_model.safetensors, written KEY. Token number prompt_lens[I] is the first of sequence I's completion.

grads.safetensors    KEY: gradient of loss = -sum_I advantages[I] * sum over completion tokens of log p / ntokens

for the cases in OPTIMIZER:

adamw.safetensors    stepN.KEY: factors after N = 1, 2 steps of torch.optim.AdamW on that loss, the second with the gradient
                     grad2.KEY; clip1.KEY: after one step with the gradient clipped by clip_grad_norm_(clip_max_norm)

and for those in LEARNING:

grpo.safetensors     old_logps, ref_logps, mask [2, C] over completion tokens, padded on the right, and advantages [2];
                     CASE.KEY: gradients of some of the losses in case.json's grpo, CASE = LOSS.betaB.on or .off policy,
                     by the formulas of TRL's GRPOTrainer
step.safetensors     one optimizer step by these formulas, in the form of a dump of TRL's trainer: microN.* are the
                     inputs and the loss of a micro-batch, grad0.KEY the sum of their gradients, grad0._norm its norm,
                     after.KEY the factors after clipping and AdamW

Beside the cases, of the one in ITERATED:

iterations.safetensors, iterations.json
                     two updates on the same completions in that form, as TRL's num_iterations = 2 makes them: micro0 and
                     micro1 are the first's, micro2 and micro3 the second's, whose losses are at the factors after the first
                     (grad0.KEY); after.KEY the factors after both. The json is what a dump's case.json has
"""

import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

HERE = Path(__file__).parent
CASES = [
    "qwen3-tied",
    "qwen3-untied",
    "qwen3-sharded",
    "qwen2",
    "llama",
    "llama-llama3",
    "qwen2-yarn",
    "qwen3-yarn",
]
LEARNING = ["qwen3-tied", "qwen3-untied"]
OPTIMIZER = ["qwen3-untied"]
ITERATED = "qwen3-tied"
PROMPT_LENS = (3, 5)
ADVANTAGES = (1.25, -0.75)
ADAMW = {"lr": 1e-3, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.01}
EPSILON, BETA, MAX_COMPLETION_LENGTH = 0.2, 0.04, 64
KEPT = ("grpo.beta0.04.off", "bnpo.beta0.0.on")
# A rate at which the second update's ratios leave the clip range.
ITERATIONS = {"loss": "grpo", "beta": BETA, "temperature": 1.0, "lr": 3e-2, "kl_correction": 0, "accum": 2, "iters": 2}
STEP = {"loss": "bnpo", "beta": BETA, "temperature": 0.9, "lr": 1e-3, "kl_correction": 0}


class Trained:
    """A case's model with its adapter to be trained, and its sequences."""

    def __init__(self, directory, info):
        base = AutoModelForCausalLM.from_pretrained(directory / "model", dtype=torch.float32)
        self.model = PeftModel.from_pretrained(base, directory / "adapter", is_trainable=True).eval()
        named = self.model.named_parameters()
        self.factors = {name.replace(".default.", "."): p for name, p in named if "lora_" in name}
        self.start = {name: p.detach().clone() for name, p in self.factors.items()}
        self.sequences = [torch.tensor(ids) for ids in info["input_ids"]]

    def reset(self):
        with torch.no_grad():
            for name, p in self.factors.items():
                p.copy_(self.start[name])

    def log_probs(self, temperature=1.0):
        """Of each sequence's completion tokens."""
        result = []
        for ids, prompt in zip(self.sequences, PROMPT_LENS):
            logits = self.model(input_ids=ids[None], use_cache=False).logits[0, :-1] / temperature
            result.append(logits.log_softmax(-1).gather(-1, ids[1:, None])[prompt - 1 :, 0])
        return result

    @torch.no_grad()
    def reference(self, temperature=1.0):
        """The same without the adapter."""
        with self.model.disable_adapter():
            return self.log_probs(temperature)

    def gradients(self, loss):
        self.model.zero_grad(set_to_none=True)
        loss.backward()
        return {name: p.grad.clone() for name, p in self.factors.items()}

    def now(self, prefix):
        return {f"{prefix}.{name}": p.detach().clone() for name, p in self.factors.items()}


def norm(gradients):
    return torch.stack([gradient.norm() for gradient in gradients.values()]).norm()


def policy_loss(trained, tokens):
    return -sum((a * lp).sum() for a, lp in zip(ADVANTAGES, trained.log_probs())) / tokens


def padded(rows, value=0):
    width = max(len(row) for row in rows)
    return torch.stack([F.pad(row, (0, width - len(row)), value=value) for row in rows])


def grpo_loss(new, old, reference, advantages, mask, kind, beta):
    """TRL's _compute_loss of one micro-batch that is a whole step."""
    ratio = (new - old).exp()
    clipped = ratio.clamp(1 - EPSILON, 1 + EPSILON)
    loss = -torch.min(ratio * advantages[:, None], clipped * advantages[:, None])
    if beta:
        loss = loss + beta * ((reference - new).exp() - (reference - new) - 1)
    if kind == "grpo":
        return ((loss * mask).sum(-1) / mask.sum(-1)).mean()
    if kind == "bnpo":
        return (loss * mask).sum() / mask.sum()
    return (loss * mask).sum() / (len(mask) * MAX_COMPLETION_LENGTH)


def adamw(trained, tokens, info):
    tensors = {}
    optimizer = torch.optim.AdamW(trained.factors.values(), **ADAMW)
    for step in (1, 2):
        gradients = trained.gradients(policy_loss(trained, tokens))
        if step == 2:
            tensors |= {f"grad2.{name}": gradient for name, gradient in gradients.items()}
        optimizer.step()
        tensors |= trained.now(f"step{step}")
    trained.reset()
    info |= {"adamw": ADAMW, "clip_max_norm": 0.5 * info["grad_norm"]}
    optimizer = torch.optim.AdamW(trained.factors.values(), **ADAMW)
    trained.gradients(policy_loss(trained, tokens))
    torch.nn.utils.clip_grad_norm_(list(trained.factors.values()), info["clip_max_norm"])
    optimizer.step()
    tensors |= trained.now("clip1")
    trained.reset()
    return tensors


def grpo(trained, info):
    random = torch.Generator().manual_seed(info["seed"])
    with torch.no_grad():
        now = padded(trained.log_probs())
    mask = padded([torch.ones(len(ids) - prompt) for ids, prompt in zip(trained.sequences, PROMPT_LENS)])
    # Ratios that often leave the clip range.
    old = (now + 0.25 * torch.randn(now.shape, generator=random)) * mask
    reference, advantages = padded(trained.reference()), torch.tensor(ADVANTAGES)
    tensors = {"old_logps": old, "ref_logps": reference, "mask": mask, "advantages": advantages}
    info["grpo"] = {}
    info["grpo_params"] = {"epsilon": EPSILON, "max_completion_length_for_dr_grpo": MAX_COMPLETION_LENGTH}
    for kind in ("grpo", "bnpo", "dr_grpo"):
        for beta in (0.0, BETA):
            for policy in ("on", "off"):
                new = padded(trained.log_probs())
                before = new.detach() if policy == "on" else old
                loss = grpo_loss(new, before, reference, advantages, mask, kind, beta)
                case = f"{kind}.beta{beta}.{policy}"
                info["grpo"][case] = {"loss": loss.item()}
                if case in KEPT:
                    tensors |= {f"{case}.{name}": g for name, g in trained.gradients(loss).items()}
    return tensors


def step(trained, info):
    """Two micro-batches of one sequence each, their losses halved as the Trainer halves them."""
    tensors, losses = {}, []
    references = trained.reference(STEP["temperature"])
    new = trained.log_probs(STEP["temperature"])
    for i, (ids, prompt) in enumerate(zip(trained.sequences, PROMPT_LENS)):
        one, advantage = torch.ones(1, len(ids), dtype=torch.int64), torch.tensor(ADVANTAGES[i : i + 1])
        row = new[i][None]
        mask = torch.ones_like(row)
        loss = grpo_loss(row, row.detach(), references[i][None], advantage, mask, STEP["loss"], BETA) / 2
        losses.append(loss)
        micro = {
            "prompt_ids": ids[None, :prompt],
            "prompt_mask": one[:, :prompt],
            "completion_ids": ids[None, prompt:],
            "completion_mask": one[:, prompt:],
            "advantages": advantage,
            "ref_per_token_logps": references[i][None],
            "loss": loss.detach()[None],
        }
        tensors |= {f"micro{i}.{name}": tensor for name, tensor in micro.items()}
    gradients = trained.gradients(sum(losses))
    total = norm(gradients)
    tensors |= {f"grad0.{name}": gradient for name, gradient in gradients.items()}
    tensors["grad0._norm"] = total[None]
    info |= {
        "args": STEP,
        "trl_defaults": {"epsilon": EPSILON},
        "max_completion_length": MAX_COMPLETION_LENGTH,
        "max_grad_norm": 0.5 * total.item(),
        "param_groups": [ADAMW],
    }
    optimizer = torch.optim.AdamW(trained.factors.values(), **ADAMW)
    torch.nn.utils.clip_grad_norm_(list(trained.factors.values()), info["max_grad_norm"])
    optimizer.step()
    tensors |= trained.now("after")
    trained.reset()
    return tensors


def iterations(trained):
    """Two updates on the same completions, each of two micro-batches of one sequence."""
    tensors, rates = {}, (ITERATIONS["lr"], 0.5 * ITERATIONS["lr"])
    references = trained.reference()
    with torch.no_grad():
        old = trained.log_probs()
    optimizer = torch.optim.AdamW(trained.factors.values(), **ADAMW)
    clipped = 0
    for update, rate in enumerate(rates):
        new, losses = trained.log_probs(), []
        for i, (ids, prompt) in enumerate(zip(trained.sequences, PROMPT_LENS)):
            one, advantage = torch.ones(1, len(ids), dtype=torch.int64), torch.tensor(ADVANTAGES[i : i + 1])
            row, before = new[i][None], old[i][None]
            mask = torch.ones_like(row)
            loss = grpo_loss(row, before, references[i][None], advantage, mask, ITERATIONS["loss"], BETA) / 2
            losses.append(loss)
            clipped += ((row - before).exp() - 1).abs().gt(EPSILON).sum().item() if update else 0
            micro = {
                "prompt_ids": ids[None, :prompt],
                "prompt_mask": one[:, :prompt],
                "completion_ids": ids[None, prompt:],
                "completion_mask": one[:, prompt:],
                "advantages": advantage,
                "old_per_token_logps": before,
                "ref_per_token_logps": references[i][None],
                "loss": loss.detach()[None],
            }
            tensors |= {f"micro{2 * update + i}.{name}": tensor.clone() for name, tensor in micro.items()}
        gradients = trained.gradients(sum(losses))
        total = norm(gradients)
        tensors |= {f"grad{update}.{name}": gradient for name, gradient in gradients.items()}
        tensors[f"grad{update}._norm"] = total[None]
        optimizer.param_groups[0]["lr"] = rate
        torch.nn.utils.clip_grad_norm_(list(trained.factors.values()), 0.5)
        optimizer.step()
    assert clipped > 0, "no ratio left the clip range"
    tensors |= trained.now("after")
    trained.reset()
    return tensors, {
        "args": ITERATIONS,
        "trl_defaults": {"epsilon": EPSILON},
        "max_completion_length": MAX_COMPLETION_LENGTH,
        "max_grad_norm": 0.5,
        "param_groups": [ADAMW],
        "log": [{"learning_rate": rate} for rate in rates],
    }


def write_iterations():
    directory = HERE / ITERATED
    trained = Trained(directory, json.loads((directory / "case.json").read_text(encoding="utf-8")))
    tensors, info = iterations(trained)
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, HERE / "iterations.safetensors")
    (HERE / "iterations.json").write_text(json.dumps(info, indent=1) + "\n", encoding="utf-8")


def exact_error(trained, gradients, tokens):
    """How far the float32 gradients are from float64 ones, relative to each tensor's largest."""
    trained.model.double()
    exact = trained.gradients(policy_loss(trained, tokens))
    trained.model.float()
    worst = 0.0
    for name, gradient in gradients.items():
        worst = max(worst, ((gradient - exact[name]).abs().max() / exact[name].abs().max()).item())
    return worst


def write(directory):
    """Adds the files, and what they need to case.json."""
    path = directory / "case.json"
    info = json.loads(path.read_text(encoding="utf-8"))
    trained = Trained(directory, info)
    tokens = sum(len(ids) - prompt for ids, prompt in zip(trained.sequences, PROMPT_LENS))
    loss = policy_loss(trained, tokens)
    gradients = trained.gradients(loss)
    info |= {"prompt_lens": PROMPT_LENS, "advantages": ADVANTAGES, "ntokens": tokens}
    info |= {"loss": loss.item(), "grad_norm": norm(gradients).item()}
    files = {"grads": gradients}
    if directory.name in OPTIMIZER:
        files |= {"adamw": adamw(trained, tokens, info)}
    if directory.name in LEARNING:
        files |= {"grpo": grpo(trained, info), "step": step(trained, info)}
    info["self_check"]["gradients_vs_float64"] = exact_error(trained, gradients, tokens)
    for name, tensors in files.items():
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, directory / f"{name}.safetensors")
    lines = ",\n".join(f' "{key}": {json.dumps(value)}' for key, value in info.items())
    path.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
    sizes = ", ".join(f"{name} {(directory / f'{name}.safetensors').stat().st_size / 1000:.0f} kB" for name in files)
    print(f"{directory.name}: {sizes}, gradients within {info['self_check']['gradients_vs_float64']:.1e}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"default: all of {', '.join(CASES)}")
    transformers.utils.logging.disable_progress_bar()
    for name in parser.parse_args().cases or CASES:
        write(HERE / name)
    write_iterations()


if __name__ == "__main__":
    main()
