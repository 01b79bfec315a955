#!/usr/bin/env python3
"""One whole step of GRPO on preference pairs, sampling and update, in j1 or in TRL.

    python benches/step.py j1 --j1 target/release/j1 --model DIR --data pairs.jsonl
    python benches/step.py trl --model DIR --data pairs.jsonl [--rows 2]

Both sample `--group` completions of at most `--completion` tokens for each of `--prompts` prompts (pairs in both
orders, the bundled prompt of examples) at temperature 1, reward form and verdict, and update an adapter of rank 16
on all seven projections: DAPO's loss, no KL term, bf16 weights, the pairs in the order of the file. What they sample
differs, so the seconds of the step are divided by its completion tokens and printed for a thousand of them, in a
JSON object with the peak of resident memory. j1 is timed by its own metrics (sampling and update), TRL from the
beginning of its step to the end. TRL trains on `--rows` completions at a time, each with its prompt; its sampling
is transformers' generate on all of them at once. j1 needs nothing, the other torch, transformers, peft and trl.
"""

import argparse
import json
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TEMPLATE = Path(__file__).resolve().parent.parent / "trainer" / "judge" / "prompt" / "examples.jinja"
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TAGS = ["<specific_criteria>", "</specific_criteria>", "<analysis>", "</analysis>", "<scores>", "</scores>"]
BOX = re.compile(r"\\boxed\{([\d.]+),\s*([\d.]+)\}")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", choices=["j1", "trl"])
    parser.add_argument("--j1", help="the binary")
    parser.add_argument("--model", required=True, help="checkpoint directory")
    parser.add_argument("--data", required=True, help="pairs as j1 data prepare writes them")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--group", type=int, default=4)
    parser.add_argument("--completion", type=int, default=160)
    parser.add_argument("--rows", type=int, default=2, help="completions that TRL trains on at a time")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    if options.prompts % 2:
        parser.error("--prompts: both orders of a pair, so an even number")
    if options.program == "j1" and not options.j1:
        parser.error("j1 needs --j1")
    return options


def pairs(options):
    """The first pairs whose prompt is one turn, as texts."""
    chosen = []
    with open(options.data) as file:
        for pair in map(json.loads, file):
            prompt = pair["prompt"]
            if isinstance(prompt, list) and len(prompt) == 1:
                prompt = prompt[0]["content"]
            if isinstance(prompt, str) and len(chosen) < options.prompts // 2:
                chosen.append({**pair, "prompt": prompt})
    if len(chosen) < options.prompts // 2:
        sys.exit(f"{options.data}: {len(chosen)} pairs whose prompt is one turn, {options.prompts // 2} are needed")
    return chosen


def in_j1(options):
    with tempfile.TemporaryDirectory() as scratch:
        data, out = Path(scratch) / "pairs.jsonl", Path(scratch) / "out"
        data.write_text("".join(json.dumps(pair) + "\n" for pair in pairs(options)))
        settings = {
            "rollout.prompts_per_step": options.prompts,
            "rollout.group_size": options.group,
            "rollout.max_completion_tokens": options.completion,
            "reward.length_from_tokens": options.completion,
            "reward.weights.consistency": 0,
            "reward.weights.summed": 0,
            "reward.weights.verdict": 1,
            "reward.drop_zero_variance": False,
            "train.steps": 1,
            "train.eval_every": 0,
        }
        command = [options.j1, "train", "--preset", "cpu-0.5b", "--model", options.model, "--data", str(data)]
        command += ["--out", str(out), "--threads", str(options.threads)]
        for key, value in settings.items():
            command += ["--set", f"{key}={json.dumps(value)}"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(done.stderr.strip().splitlines()[-1])
        metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()][-1]
    seconds = metrics["time/generation_s"] + metrics["time/update_s"]
    tokens = metrics["completions/mean_length"] * options.prompts * options.group
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return seconds, tokens, peak


def form(completions, **_):
    """The original's reward for tags and box, 0 to 0.2."""
    texts = [completion[0]["content"] for completion in completions]
    return [(sum(tag in text for tag in TAGS) + 2 * bool(BOX.search(text))) / 40 for text in texts]


def verdict(completions, chosen_is_a, **_):
    def right(text, is_a):
        box = BOX.search(text)
        a, b = map(float, box.groups()) if box else (0, 0)
        return float(a > b if is_a else b > a)

    return [right(completion[0]["content"], is_a) for completion, is_a in zip(completions, chosen_is_a)]


def in_trl(options):
    import jinja2
    import torch
    import transformers
    from datasets import Dataset
    from peft import LoraConfig
    from trl import GRPOConfig, GRPOTrainer

    torch.set_num_threads(options.threads)
    system, user = re.fullmatch(r"---system---\n(.*?)\n---user---\n(.*)", TEMPLATE.read_text(), re.S).groups()
    template = jinja2.Template(user)
    rows = []
    for pair in pairs(options):
        for is_a in [True, False]:
            a, b = (pair["chosen"], pair["rejected"]) if is_a else (pair["rejected"], pair["chosen"])
            said = template.render(conversation=pair["prompt"], response_a=a, response_b=b)
            prompt = [{"role": "system", "content": system}, {"role": "user", "content": said}]
            rows.append({"prompt": prompt, "chosen_is_a": is_a})
    completions = options.prompts * options.group
    accumulation = completions // options.rows
    with tempfile.TemporaryDirectory() as scratch:
        config = GRPOConfig(
            output_dir=scratch, use_cpu=True, bf16=True, max_steps=1, num_generations=options.group,
            per_device_train_batch_size=options.rows, gradient_accumulation_steps=accumulation,
            steps_per_generation=accumulation, max_completion_length=options.completion, temperature=1.0, beta=0.0,
            loss_type="dapo", learning_rate=2e-4, shuffle_dataset=False, gradient_checkpointing=False,
            disable_dropout=True, report_to="none", save_strategy="no", logging_steps=1, disable_tqdm=True,
            model_init_kwargs={"dtype": torch.bfloat16},
        )
        lora = LoraConfig(r=16, lora_alpha=32, target_modules=PROJECTIONS, task_type="CAUSAL_LM")
        times = {}

        class Clock(transformers.TrainerCallback):
            def on_step_begin(self, *_, **__):
                times.setdefault("begin", time.monotonic())

            def on_step_end(self, *_, **__):
                times["end"] = time.monotonic()

        trainer = GRPOTrainer(
            model=options.model, reward_funcs=[form, verdict], args=config, train_dataset=Dataset.from_list(rows),
            peft_config=lora, callbacks=[Clock()],
        )
        trainer.train()
    # The first batch is sampled before the step is said to begin, or within it, by version: then it is in train().
    logged = [entry for entry in trainer.state.log_history if "completions/mean_length" in entry][0]
    tokens = logged["completions/mean_length"] * completions
    return times["end"] - times["begin"], tokens, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main():
    options = arguments()
    seconds, tokens, peak = (in_j1 if options.program == "j1" else in_trl)(options)
    print(json.dumps({
        "seconds": [seconds / tokens * 1000], "step_seconds": seconds, "completion_tokens": tokens,
        "peak_bytes": peak * (1 if sys.platform == "darwin" else 1024),
    }))


if __name__ == "__main__":
    main()
