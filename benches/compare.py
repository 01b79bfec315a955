#!/usr/bin/env python3
"""The same work in j1, in llama.cpp, in PyTorch with PEFT and in TRL, in turn, in one run.

    python3 benches/compare.py --j1 target/release/j1 --model DIR \\
            --llama-bench PATH --llama-batched-bench PATH --gguf FILE --python PATH --out benches/record/NAME

Any of them may be left out: what could not be run is named, with the reason. DIR is a Hugging Face checkpoint of
a Qwen3 shape (only its decoder is used), FILE the same weights in bf16 as GGUF, PATH of --python an interpreter
with torch, transformers and peft. Nothing is built or downloaded.

Every measurement is a process of its own, which warms up and then makes one pass; rounds go through all
measurements, and within one the programs take turns, first j1, then the others, the next round the other way
round. Shown are medians over the rounds, and the peak of each process's resident memory (mapped weights
included; see wait4(2)). A ratio above 1 says that j1 is faster. --out NAME writes NAME.json and NAME.csv, after
every round, so that Ctrl-C loses little.

What is equal: shapes, threads, bf16 weights, lengths, tokens decoded greedily. What is not: llama.cpp keeps
keys and values in f16; PyTorch runs a group's completions each with its prompt, `--rows` at a time, where j1
runs the prompt once. `--only step` is a whole step of training, sampling and update, in j1 and in TRL: step.py says
what it is of. It needs --data, and takes TRL a quarter of an hour or more a round, so it is not among the kinds that
are run when none is named.
"""

import argparse
import csv
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
DEPTH, GEN = 256, 64
TOOLS = {"j1": "j1", "llama": "llama.cpp", "torch": "PyTorch", "trl": "TRL"}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--j1", help="the binary")
    parser.add_argument("--model", help="checkpoint directory, for j1 and PyTorch")
    parser.add_argument("--llama-bench")
    parser.add_argument("--llama-batched-bench")
    parser.add_argument("--gguf", help="the same checkpoint for llama.cpp")
    parser.add_argument("--mmap", choices=["0", "1"], default="1", help="whether llama.cpp maps its file")
    parser.add_argument("--python", help="an interpreter with torch, transformers and peft")
    parser.add_argument("--weights", default="packed", choices=["auto", "mapped", "packed"],
                        help="where j1 reads weights; packed is what auto comes to in a long run")
    parser.add_argument("--rows", type=int, default=1, help="sequences PyTorch and TRL train on at a time in GRPO")
    parser.add_argument("--data", help="for --only step: pairs as j1 data prepare writes them")
    parser.add_argument("--prompts", type=int, default=8, help="prompts of a step: both orders of half as many pairs")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeat", type=int, default=5, help="rounds")
    parser.add_argument("--only", default="prefill,decode,lora,grpo", help="kinds of work, with commas between")
    parser.add_argument("--out", help="write OUT.json and OUT.csv")
    options = parser.parse_args()
    kinds = options.only.split(",")
    known = ["prefill", "decode", "lora", "grpo", "step"]
    unknown = set(kinds) - set(known)
    if unknown:
        parser.error(f"--only: {', '.join(sorted(unknown))}: not one of {', '.join(known)}")
    for name in ["j1", "llama_bench", "llama_batched_bench", "gguf", "model", "python", "data"]:
        path = getattr(options, name)
        if path and not Path(path).exists():
            parser.error(f"--{name.replace('_', '-')}: there is no {path}")
    options.only = kinds
    return options


class Missing(Exception):
    """What a measurement needs and the user did not name."""


class Plan:
    """The commands, by kind of work. Each gives (command, parse), where parse turns stdout into seconds."""

    def __init__(self, options):
        self.options = options
        self.help = {}

    def j1(self, *flags):
        self.need("j1", "model")
        o = self.options
        command = [o.j1, "bench", "--model", o.model, "--weights", o.weights, "--threads", str(o.threads)]
        command += ["--repeat", "1", "--json", *flags]
        return command, lambda text: json.loads(text)["rows"][0]["seconds"][0]

    def torch(self, work, *flags):
        self.need("python", "model")
        o = self.options
        command = [o.python, str(HERE / "pytorch.py"), work, "--model", o.model, "--threads", str(o.threads), *flags]
        return command, lambda text: json.loads(text.splitlines()[-1])["seconds"][0]

    def step(self, program, *needs):
        self.need("model", "data", *needs)
        o = self.options
        command = [o.python if program == "trl" else sys.executable, str(HERE / "step.py"), program]
        command += ["--model", o.model, "--data", o.data, "--prompts", str(o.prompts), "--threads", str(o.threads)]
        command += ["--rows", str(o.rows)] if program == "trl" else ["--j1", o.j1]
        return command, lambda text: json.loads(text.splitlines()[-1])["seconds"][0]

    def llama_bench(self, prompt, gen, depth):
        self.need("llama_bench", "gguf")
        o = self.options
        lengths = ["-p", str(prompt), "-n", str(gen), "-d", str(depth)]
        command = [o.llama_bench, "-m", o.gguf, *lengths, "-t", str(o.threads), "-r", "1", "-o", "json"]
        return command + self.mapping(o.llama_bench), lambda text: json.loads(text)[-1]["samples_ns"][0] / 1e9

    def llama_batched(self, batch):
        self.need("llama_batched_bench", "gguf")
        o = self.options
        threads = ["-t", str(o.threads), "-tb", str(o.threads)]
        lengths = ["-npp", str(DEPTH), "-ntg", str(GEN), "-npl", str(batch), "-c", str(batch * (DEPTH + GEN))]
        command = [o.llama_batched_bench, "-m", o.gguf, *lengths, *threads, "--output-format", "jsonl"]

        def seconds(text):
            lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
            return lines[-1]["t_tg"]

        return command + self.mapping(o.llama_batched_bench), seconds

    def mapping(self, binary):
        """The flag was renamed in 2026."""
        if binary not in self.help:
            shown = subprocess.run([binary, "--help"], capture_output=True, text=True)
            self.help[binary] = shown.stdout + shown.stderr
        mapped = self.options.mmap == "1"
        if "--load-mode" in self.help[binary]:
            return ["-lm", "mmap" if mapped else "none"]
        if "-mmp" in self.help[binary]:
            return ["-mmp", self.options.mmap]
        return [] if mapped else ["--no-mmap"]

    def need(self, *names):
        missing = [f"--{name.replace('_', '-')}" for name in names if not getattr(self.options, name)]
        if missing:
            raise Missing(f"no {' and no '.join(missing)}")


def measurements(plan, kinds):
    """(name, unit, tokens, {tool: how to plan it}). A tool that is left out has no such work."""
    rows = str(plan.options.rows)
    none = ["--only"]
    found = []
    if "prefill" in kinds:
        for n in [512, 1024]:
            found.append((f"prefill {n}", "tok/s", n, {
                "j1": lambda n=n: plan.j1(*none, "prefill", "--prompt", str(n)),
                "llama": lambda n=n: plan.llama_bench(n, 0, 0),
                "torch": lambda n=n: plan.torch("prefill", "--tokens", str(n)),
            }))
    if "decode" in kinds:
        for batch in [1, 4, 16, 32]:
            lengths = ["--depth", str(DEPTH), "--gen", str(GEN), "--batch", str(batch)]
            tools = {
                "j1": lambda lengths=lengths: plan.j1(*none, "decode", *lengths),
                "llama": lambda b=batch: plan.llama_batched(b) if b > 1 else plan.llama_bench(0, GEN, DEPTH),
            }
            if batch in (1, 16):
                tools["torch"] = lambda lengths=lengths: plan.torch("decode", *lengths)
            found.append((f"decode, batch {batch}", "tok/s", batch * GEN, tools))
    for form, flag, theirs in [("kept", "off", []), ("recomputed", "on", ["--gradient-checkpointing"])]:
        ours = ["--gradient-checkpointing", flag, "--train", "1024"]
        if "lora" in kinds:
            found.append((f"LoRA step 1 x 1024, {form}", "s", 1024, {
                "j1": lambda ours=ours: plan.j1(*none, "lora", *ours),
                "torch": lambda theirs=theirs: plan.torch("lora", "--tokens", "1024", *theirs),
            }))
        if "grpo" in kinds:
            group = ["--group", "8", "--completion", "128"]
            found.append((f"GRPO 1024 + 8 x 128, {form}", "s", 2048, {
                "j1": lambda ours=ours, group=group: plan.j1(*none, "grpo", *ours, *group),
                "torch": lambda theirs=theirs, group=group: plan.torch(
                    "grpo", "--prompt", "1024", *group, "--rows", rows, *theirs
                ),
            }))
    if "step" in kinds:
        found.append((f"step, {plan.options.prompts} prompts x 4", "s", 1000, {
            "j1": lambda: plan.step("j1", "j1"),
            "trl": lambda: plan.step("trl", "python"),
        }))
    return found


def run(command, parse):
    """(seconds, peak of resident memory in bytes) of one process, or the reason why there are none."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except KeyboardInterrupt:
            process.kill()
            process.wait()
            raise
        process.returncode = os.waitstatus_to_exitcode(status)
        for file in (out, err):
            file.seek(0)
        text, said = out.read(), err.read().strip().splitlines()
    if process.returncode != 0:
        return None, f"exit status {process.returncode}: {said[-1] if said else 'it said nothing'}"
    try:
        seconds = parse(text)
    except (ValueError, KeyError, IndexError) as error:
        return None, f"its output was not understood ({error!r}): {text[-200:]!r}"
    # KiB on Linux, bytes on macOS.
    return (seconds, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)), None


def machine():
    info = {"system": platform.platform(), "processors": os.cpu_count(), "cpu": platform.processor()}
    for path, key, name in [("/proc/cpuinfo", "model name", "cpu"), ("/proc/meminfo", "MemTotal", "memory")]:
        try:
            lines = [line for line in Path(path).read_text().splitlines() if line.startswith(key)]
            info[name] = lines[0].split(":", 1)[1].strip()
        except (OSError, IndexError):
            pass
    return info


def first_line(command):
    """What a program says of its version."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        lines = (done.stdout + done.stderr).strip().splitlines()
        return lines[0] if lines else None
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)


def versions(options):
    found = {}
    if options.j1:
        found["j1"] = first_line([options.j1, "--version"])
    if options.llama_bench:
        found["llama.cpp"] = first_line([options.llama_bench, "--version"])
    if options.python:
        names = {"torch", "transformers", "peft", "trl"}
        list_them = "import importlib.metadata as m; print(*sorted(f'{d.name} {d.version}' for d in m.distributions() if d.name in %r))"
        found["PyTorch"] = first_line([options.python, "-c", list_them % names])
    return found


def shown(result, unit):
    if not result["seconds"]:
        return "-"
    median = statistics.median(result["seconds"])
    if unit == "tok/s":
        return f"{result['tokens'] / median:.1f}"
    return f"{median:.2f}"


def size(result):
    return f"{max(result['peak_bytes']) / 2**30:.2f}" if result["peak_bytes"] else "-"


def table(results):
    tools = [tool for tool in TOOLS if any(by_tool.get(tool) for _, _, by_tool in results)]
    others = [tool for tool in tools if tool != "j1"]
    header = ["", "unit", *(TOOLS[tool] for tool in tools), *(f"{TOOLS[tool]}: ratio" for tool in others)]
    lines = [header + [f"GiB {TOOLS[tool]}" for tool in tools]]
    empty = {"seconds": [], "peak_bytes": []}
    for name, unit, by_tool in results:
        by = {tool: by_tool.get(tool, empty) for tool in TOOLS}
        ratios = []
        for tool in others:
            ours, theirs = by["j1"]["seconds"], by[tool]["seconds"]
            both = ours and theirs
            ratios.append(f"{statistics.median(theirs) / statistics.median(ours):.2f}" if both else "-")
        sizes = [size(by[tool]) for tool in tools]
        lines.append([name, unit, *(shown(by[tool], unit) for tool in tools), *ratios, *sizes])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = ""
    for line in lines:
        cells = [cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths))]
        text += "  ".join(cells).rstrip() + "\n"
    return text


def write(out, record):
    def replace(path, dump):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        with open(partial, "w", newline="") as file:
            dump(file)
        partial.replace(path)

    def rows(file):
        writer = csv.writer(file)
        writer.writerow(["date", "cpu", "threads", "work", "program", "tokens", "rounds", "median_seconds",
                         "least_seconds", "most_seconds", "tokens_per_second", "peak_bytes", "command"])
        for name, _, by_tool in record["results"]:
            for tool, result in by_tool.items():
                if result["seconds"]:
                    median = statistics.median(result["seconds"])
                    writer.writerow([record["date"], record["machine"]["cpu"], record["threads"], name, TOOLS[tool],
                                     result["tokens"], len(result["seconds"]), median, min(result["seconds"]),
                                     max(result["seconds"]), result["tokens"] / median, max(result["peak_bytes"]),
                                     " ".join(result["command"])])

    # Not with_suffix: a name may have dots.
    replace(Path(out + ".json"), lambda file: json.dump(record, file, indent=1))
    replace(Path(out + ".csv"), rows)


def main():
    options = arguments()
    record = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(),
        "load_before": os.getloadavg()[0],
        "threads": options.threads,
        "versions": versions(options),
        "not_run": {},
        "results": [],
    }
    plans = []
    for name, unit, tokens, tools in measurements(Plan(options), options.only):
        by_tool = {}
        record["results"].append((name, unit, by_tool))
        for tool, plan in tools.items():
            try:
                command, parse = plan()
            except Missing as reason:
                record["not_run"][f"{name}: {TOOLS[tool]}"] = str(reason)
                continue
            by_tool[tool] = {"tokens": tokens, "seconds": [], "peak_bytes": [], "command": command}
            plans.append((name, tool, by_tool[tool], parse))
    if not plans:
        print(f"nothing can be run: {'; '.join(sorted(set(record['not_run'].values())))}", file=sys.stderr)
        return 1

    if record["load_before"] > 0.5:
        print(f"warning: the machine is busy (load {record['load_before']:.1f}): the numbers will be too", file=sys.stderr)
    interrupted = False
    try:
        for number in range(options.repeat):
            for name in dict.fromkeys(plan[0] for plan in plans):
                turn = [plan for plan in plans if plan[0] == name]
                for _, tool, result, parse in turn if number % 2 == 0 else reversed(turn):
                    what = f"{name}: {TOOLS[tool]}"
                    if what in record["not_run"]:
                        continue
                    done, reason = run(result["command"], parse)
                    if reason:
                        record["not_run"][what] = reason
                    else:
                        result["seconds"].append(done[0])
                        result["peak_bytes"].append(done[1])
                    said = reason or f"{done[0]:.3f} s, {done[1] / 2**30:.2f} GiB"
                    print(f"round {number + 1} of {options.repeat}: {what}: {said}", file=sys.stderr)
            if options.out:
                write(options.out, record)
    except KeyboardInterrupt:
        interrupted = True
        print("stopped; what was measured:", file=sys.stderr)
    if options.out:
        write(options.out, record)
    print(f"{record['machine']['cpu']}, {options.threads} threads, {record['date']}; medians of {options.repeat}\n")
    print(table(record["results"]))
    for reason in dict.fromkeys(record["not_run"].values()):
        what = [name for name, other in record["not_run"].items() if other == reason]
        print(f"not run ({reason}): {'; '.join(what)}")
    return 130 if interrupted else 0


if __name__ == "__main__":
    sys.exit(main())
