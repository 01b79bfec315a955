#!/usr/bin/env python3
"""Puts one bug at a time into a copy of a CUDA kernel and asks what reports it.

    python3 kernels/cuda/tests/seed_faults.py [--record] [--tests BINARY] [WORD ...]

faults.csv has one line per bug: file and compiled stem; the kind of bug; after which text of the file (unique; may be empty)
which text of one line is replaced by which; the test that runs; and what reported it: a check of the emulator (its
FaultKind) or, where all checks passed, the test itself. Each test must first pass without a bug. A bug costs a run of
nvcc and one of the kernels' test binary, which takes the compiled stem through J1_TEST_PTX. Exits 1 if a bug is not
reported, or not as in the list; --record writes what was found to the list instead. WORDs choose lines that have one
of them.

nvcc is found as build.rs finds it: NVCC, PATH, CUDA_HOME, VIRTUAL_ENV.
"""

import argparse, csv, json, os, re, shutil, subprocess, sys, tempfile, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
KERNELS = HERE.parent
LIST = HERE / "faults.csv"
COLUMNS = ["file", "stem", "kind", "after", "from", "to", "test", "reported"]
NOTHING = "NOT REPORTED"
# A seeded fault may not end: its test is then killed, which counts as reported by the test.
LIMIT_S = 300


def find_nvcc():
    if os.environ.get("NVCC"):
        return os.environ["NVCC"]
    folders = os.environ.get("PATH", "").split(os.pathsep)
    if os.environ.get("CUDA_HOME"):
        folders.append(os.path.join(os.environ["CUDA_HOME"], "bin"))
    if os.environ.get("VIRTUAL_ENV"):
        found = Path(os.environ["VIRTUAL_ENV"]).glob("lib/*/site-packages/nvidia/cu13/bin")
        folders.extend(str(folder) for folder in found)
    nvcc = shutil.which("nvcc", path=os.pathsep.join(folders))
    return nvcc or sys.exit("no nvcc: set NVCC or VIRTUAL_ENV, see build.rs")


def test_binary():
    """Builds the kernels' unit tests with feature cuda; returns their path."""
    command = ["cargo", "test", "-p", "kernels", "--features", "cuda", "--lib", "--no-run"]
    command.append("--message-format=json")
    built = subprocess.run(command, cwd=HERE, stdout=subprocess.PIPE, text=True)
    lines = [json.loads(line) for line in built.stdout.splitlines() if line.startswith("{")]
    found = [line["executable"] for line in lines if line.get("executable")]
    return found[-1] if built.returncode == 0 and found else sys.exit("the tests do not build")


def seeded(fault):
    """The file's text with the bug in it."""
    text = (KERNELS / fault["file"]).read_text()
    name = f"{fault['file']}: {fault['from']!r}"
    start = 0
    if fault["after"]:
        if text.count(fault["after"]) != 1:
            sys.exit(f"{name}: {fault['after']!r} is there {text.count(fault['after'])} times")
        start = text.index(fault["after"]) + len(fault["after"])
    elif text.count(fault["from"]) != 1:
        sys.exit(f"{name} is there {text.count(fault['from'])} times")
    at = text.find(fault["from"], start)
    if at < 0 or fault["from"] == fault["to"] or "\n" in fault["from"] + fault["to"]:
        sys.exit(f"{name} is not a change of one line")
    return text[:at] + fault["to"] + text[at + len(fault["from"]) :]


def compile_ptx(nvcc, source, ptx):
    """As build.rs does."""
    options = ["-ptx", "-arch=compute_80", "-O3", "-std=c++17", "-lineinfo", "-fmad=false"]
    done = subprocess.run([nvcc, *options, "-o", ptx, source], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{source.name} does not compile with its bug:\n{done.stderr}")
    lines = [line for line in ptx.read_text().splitlines() if "used_bytes_mask" not in line]
    lines = [".version 8.0" if line.startswith(".version ") else line for line in lines]
    ptx.write_text("\n".join(lines) + "\n")


def outcome(binary, test, stem, ptx):
    """What reports the bug, and the words in which it does."""
    # On one thread, so that of several faults the same is the first every time.
    environment = dict(os.environ, J1_TEST_PTX=f"{stem}={ptx}", EMULATOR_THREADS="1", RUST_BACKTRACE="0")
    environment.pop("CUDA_DRIVER_LIB", None)
    command = [binary, "--exact", f"cuda::tests::{test}", "--nocapture"]
    try:
        run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        return "test", f"did not end in {LIMIT_S} s"
    if " 1 passed" not in run.stdout and " 1 failed" not in run.stdout:
        sys.exit(f"test {test} did not run:\n{run.stdout}{run.stderr}")
    check = re.search(r"^emulator: (\w+)(.*)", run.stderr, re.M)
    if run.returncode == 0:
        return NOTHING, ""
    if check:
        return check[1], check[1] + check[2]
    panic = re.search(r"panicked at [^\n]*\n([^\n]*)", run.stderr)
    return "test", panic[1] if panic else "failed"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", action="store_true", help="write the outcomes to faults.csv")
    parser.add_argument("--tests", help="the built test binary, instead of building it")
    parser.add_argument("words", nargs="*", help="only lines with one of these words")
    arguments = parser.parse_args()
    with LIST.open(newline="") as file:
        faults = list(csv.DictReader(file))
    chosen = [f for f in faults if not arguments.words or any(w in " ".join(f.values()) for w in arguments.words)]
    texts = [seeded(fault) for fault in chosen]
    nvcc, binary = find_nvcc(), arguments.tests or test_binary()
    start = time.monotonic()

    with tempfile.TemporaryDirectory(prefix="j1-faults-") as folder:

        def run(name, fault, text):
            """Outcome of the fault's test with this text of the fault's file."""
            copy = Path(folder) / name
            copy.mkdir()
            for path in KERNELS.glob("*.cu*"):
                shutil.copy(path, copy)
            (copy / fault["file"]).write_text(text)
            ptx = copy / f"{fault['stem']}.ptx"
            compile_ptx(nvcc, copy / f"{fault['stem']}.cu", ptx)
            found = outcome(binary, fault["test"], fault["stem"], ptx)
            shutil.rmtree(copy)
            return found

        def sound(fault):
            text = (KERNELS / fault["file"]).read_text()
            found, words = run(f"{fault['stem']}-{fault['test']}".replace("::", "-"), fault, text)
            return found == NOTHING or f"{fault['test']} fails without a fault: {found} {words}"

        def work(numbered):
            index, fault = numbered
            found, words = run(str(index), fault, texts[index])
            wrong = found == NOTHING or found != fault["reported"]
            mark = "!" if wrong and not (arguments.record and found != NOTHING) else " "
            print(f"{mark} {fault['file']:22} {fault['kind']:44} {found:20} {words[:150]}", flush=True)
            fault["reported"] = found
            return mark == "!"

        with ThreadPoolExecutor(2) as pool:
            once = {(fault["stem"], fault["test"]): fault for fault in chosen}
            for answer in pool.map(sound, once.values()):
                if answer is not True:
                    sys.exit(answer)
            wrong = sum(pool.map(work, enumerate(chosen)))

    if arguments.record:
        with LIST.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(faults)
    print(f"{len(chosen)} faults, {wrong} not reported as listed, {time.monotonic() - start:.0f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
