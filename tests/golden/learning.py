#!/usr/bin/env python3
"""Writes learning.safetensors and learning.json beside this file: what PyTorch and transformers compute for the
parts of learning that need no model.

    pip install torch transformers safetensors
    python learning.py

adamw    torch.optim.AdamW over two parameters with the settings in learning.json. `start.NAME`; per step K = 1..3 the
         gradient `gradK.NAME`, and the parameters after it, `stepK.NAME`; and the same with every gradient clipped
         by clip_grad_norm_ first, `clippedK.NAME`, whose norms before are in learning.json.
loss     `new`, `old`, `ref` log-probs and `mask` [B, T], `advantages` [B]; for each case of learning.json the
         derivative of its loss with respect to `new`, `CASE.d_new` [B, T]. The losses are TRL's _compute_loss; the
         batch is one accumulated step in two micro-batches, of 2 and 3 rows, each loss divided by 2 as the
         Trainer divides it (dapo by the tokens of both).
schedule transformers.get_scheduler's rates of the first steps, in learning.json.

Gradients and log-probs are drawn in float32; losses are computed in float64, so that they say what is exact.
"""

import json
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file

HERE = Path(__file__).parent
ADAMW = {"lr": 2e-3, "betas": [0.9, 0.99], "eps": 1e-8, "weight_decay": 0.1}
MAX_NORM = 0.1
PARTS = [2, 3]
MAX_COMPLETION_LENGTH = 16
LOSS = {"clip_low": 0.2, "clip_high": 0.28, "beta": 0.04, "max_completion_length": MAX_COMPLETION_LENGTH}


def adamw(random, tensors, info):
    shapes = {"a": (4, 33), "b": (57,)}
    tensors |= {f"start.{name}": torch.randn(shape, generator=random) for name, shape in shapes.items()}
    for k in (1, 2, 3):
        tensors |= {f"grad{k}.{name}": torch.randn(shape, generator=random) ** 3 for name, shape in shapes.items()}
    info["adamw"] = ADAMW | {"max_norm": MAX_NORM, "norms": []}
    for prefix in ("step", "clipped"):
        weights = {name: tensors[f"start.{name}"].clone().requires_grad_() for name in shapes}
        optimizer = torch.optim.AdamW(weights.values(), **ADAMW)
        for k in (1, 2, 3):
            for name, weight in weights.items():
                weight.grad = tensors[f"grad{k}.{name}"].clone()
            if prefix == "clipped":
                norm = torch.nn.utils.clip_grad_norm_(weights.values(), MAX_NORM)
                info["adamw"]["norms"].append(norm.item())
            optimizer.step()
            tensors |= {f"{prefix}{k}.{name}": weight.detach().clone() for name, weight in weights.items()}


def micro_loss(kind, new, old, ref, advantages, mask, beta, corrected, tokens_of_the_step):
    """TRL's _compute_loss of one micro-batch."""
    ratio = (new - old).exp()
    clipped = ratio.clamp(1 - LOSS["clip_low"], 1 + LOSS["clip_high"])
    loss = -torch.min(ratio * advantages[:, None], clipped * advantages[:, None])
    if beta:
        kl = (ref - new).exp() - (ref - new) - 1
        loss = loss + beta * (kl * ratio if corrected else kl)
    if kind == "grpo":
        return ((loss * mask).sum(-1) / mask.sum(-1).clamp(min=1)).mean() / len(PARTS)
    if kind == "bnpo":
        return (loss * mask).sum() / mask.sum().clamp(min=1) / len(PARTS)
    if kind == "dr_grpo":
        return (loss * mask).sum() / (len(mask) * MAX_COMPLETION_LENGTH) / len(PARTS)
    return (loss * mask).sum() / tokens_of_the_step


def losses(random, tensors, info):
    rows, length = sum(PARTS), 13
    new = -torch.rand((rows, length), generator=random) * 3
    # Ratios that leave the clip range on both sides, for both signs of the advantage.
    old = new + 0.3 * torch.randn((rows, length), generator=random)
    ref = new + 0.5 * torch.randn((rows, length), generator=random)
    advantages = torch.tensor([1.2, -0.7, 0.4, -1.5, 0.0])
    lens = torch.tensor([13, 4, 9, 1, 6])
    mask = (torch.arange(length)[None] < lens[:, None]).float()
    tensors |= {"new": new, "old": old, "ref": ref, "advantages": advantages, "mask": mask}
    info["loss"] = LOSS | {"parts": PARTS, "tokens": lens.tolist(), "cases": {}}
    for kind in ("grpo", "bnpo", "dapo", "dr_grpo"):
        for kl in ("none", "k3", "corrected"):
            for policy in ("on", "off"):
                x = new.double().requires_grad_()
                batch = [
                    x,
                    x.detach() if policy == "on" else old.double(),
                    ref.double(),
                    advantages.double(),
                    mask.double(),
                ]
                beta = 0.0 if kl == "none" else LOSS["beta"]
                parts = zip(*(tensor.split(PARTS) for tensor in batch))
                loss = sum(micro_loss(kind, *part, beta, kl == "corrected", mask.sum()) for part in parts)
                loss.backward()
                case = f"{kind}.{kl}.{policy}"
                info["loss"]["cases"][case] = loss.item()
                tensors[f"{case}.d_new"] = x.grad.float()


def schedules(info):
    info["schedule"] = {"peak": 1e-4, "warmup_steps": 5, "total_steps": 40, "rates": {}}
    for name, kind in {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}.items():
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1e-4)
        scheduler = transformers.get_scheduler(kind, optimizer, num_warmup_steps=5, num_training_steps=40)
        rates = []
        for _ in range(41):
            rates.append(scheduler.get_last_lr()[0])
            optimizer.step()
            scheduler.step()
        info["schedule"]["rates"][name] = rates


def main():
    random = torch.Generator().manual_seed(31)
    tensors, info = {}, {"versions": {"torch": torch.__version__, "transformers": transformers.__version__}}
    adamw(random, tensors, info)
    losses(random, tensors, info)
    schedules(info)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, HERE / "learning.safetensors")
    (HERE / "learning.json").write_text(json.dumps(info, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
