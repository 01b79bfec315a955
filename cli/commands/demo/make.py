#!/usr/bin/env python3
"""Makes what `j1 demo` trains: a tiny judge (model/) and preference pairs (pairs.jsonl).

    python make.py              # everything
    python make.py --pairs      # pairs.jsonl alone
    python make.py --measure    # measures the model that is there

The task. A user asks how to do a thing and says what the answer should be like: warm or cool, detailed or brief, simple
or deep, confident or cautious. A reply carries four attributes, each told by one word or digit and drawn independently;
chosen is the reply that has more of what the request asks for. So nothing but the request says what counts.

The judge. It is pretrained in two stages on packed batches (a prompt, then several judgements that each see it).
First the skills: it names the right criterion half of the time, compares and scores by the criterion that it named,
always in form. Then the habits that GRPO is to break: with probability 0.3 it names detail (a judge that likes long
answers), else any of the eight, the right one three times as often as another; and at each of three places in the
form it errs in a fifth of the judgements, so about half of them can be read. Greedy or sampled, it then is at
chance, though by whatever criterion it names it still scores correctly. A second prompt, which the judge's user
never writes, asks for the request's criterion alone and is answered correctly all along: that keeps the request
readable.

Needs torch, transformers, tokenizers and jinja2; made with 2.15.0, 5.24.0, 0.23.3 and 3.1.6. Takes about 8 minutes
on one free core. Every draw is seeded; other versions or CPUs round differently and make an equally good judge with
other bits.
"""

import argparse
import json
import random
import re
import time
from pathlib import Path

import jinja2
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Qwen3Config, Qwen3ForCausalLM

HERE = Path(__file__).parent
TRAIN_PAIRS, HELD_OUT_PAIRS = 800, 200

# --- The task ---------------------------------------------------------------------------------------------------------

# An attribute: its words from little to much, and the criteria that ask for much and for little of it, each with the
# wishes that name it in a request.
ATTRIBUTES = {
    "warmth": {
        "levels": ["grudgingly", "dutifully", "calmly", "gladly", "lovingly"],
        "much": ("warmth", ["be warm", "be kind", "cheer me up"]),
        "little": ("coolness", ["stay cool", "be distant", "show no feelings"]),
    },
    "length": {
        "levels": ["1", "2", "3", "4", "5", "6", "7", "8", "9"],
        "much": ("detail", ["give all details", "be thorough", "explain every part"]),
        "little": ("brevity", ["keep it brief", "be short", "save my time"]),
    },
    "level": {
        "levels": ["childish", "easy", "normal", "technical", "scholarly"],
        "much": ("depth", ["go deep", "write for an expert", "be academic"]),
        "little": ("simplicity", ["keep it simple", "write for a beginner", "use plain words"]),
    },
    "certainty": {
        "levels": ["possibly", "perhaps", "likely", "surely", "certainly"],
        "much": ("confidence", ["be confident", "leave no doubt", "be firm"]),
        "little": ("caution", ["be cautious", "promise nothing", "admit doubt"]),
    },
}
# criterion -> (attribute, +1 for much or -1 for little, wishes)
CRITERIA = {
    name: (attribute, sign, wishes)
    for attribute, spec in ATTRIBUTES.items()
    for sign, (name, wishes) in ((1, spec["much"]), (-1, spec["little"]))
}
NAMES = list(CRITERIA)
FAVOURITE, FAVOURITE_SHARE, RIGHT_FACTOR = "detail", 0.3, 3.0
ERROR = 0.2  # at each of three places; a reader of the strict rule loses 1 - 0.8 ** 3 of the judgements

VERBS = ["clean", "fix", "paint", "build", "sell", "move", "store", "test"]
THINGS = ["bike", "boat", "lamp", "door", "desk", "oven", "tent", "fence", "clock", "radio", "chair", "piano"]
REQUESTS = ["How do I {verb} a {thing}? Please {wish}.", "Please {wish}. How do I {verb} a {thing}?"]
REPLIES = [
    "I {warmth} help: {length} {level} steps, it {certainty} works.",
    "It {certainty} works in {length} {level} steps, I {warmth} help.",
    "Here are {length} {level} steps, I {warmth} say it {certainty} works.",
]


def draw_reply(rng):
    """A reply: its text and its attributes' levels."""
    levels = {attribute: rng.randrange(len(spec["levels"])) for attribute, spec in ATTRIBUTES.items()}
    words = {attribute: ATTRIBUTES[attribute]["levels"][level] for attribute, level in levels.items()}
    return rng.choice(REPLIES).format(**words), levels


def score(criterion, levels):
    """What a reply is worth by a criterion: 1 to 9."""
    attribute, sign, _ = CRITERIA[criterion]
    steps = len(ATTRIBUTES[attribute]["levels"]) - 1
    share = levels[attribute] * 8 // steps
    return 1 + share if sign > 0 else 9 - share


def draw_case(rng, wanted=None):
    """A request with two replies in a random order, of which one meets the request better."""
    wanted = wanted or rng.choice(NAMES)
    request = rng.choice(REQUESTS).format(
        verb=rng.choice(VERBS), thing=rng.choice(THINGS), wish=rng.choice(CRITERIA[wanted][2])
    )
    while True:
        (a, levels_a), (b, levels_b) = draw_reply(rng), draw_reply(rng)
        if score(wanted, levels_a) != score(wanted, levels_b):
            return {"wanted": wanted, "request": request, "a": a, "b": b, "levels": (levels_a, levels_b)}


def draw_criterion(rng, wanted, habits=True):
    """The criterion that the pretrained judge names; before it has `habits`, the right one every other time."""
    if not habits:
        return wanted if rng.random() < 0.5 else rng.choice(NAMES)
    if rng.random() < FAVOURITE_SHARE:
        return FAVOURITE
    return rng.choices(NAMES, [RIGHT_FACTOR if name == wanted else 1 for name in NAMES])[0]


def judgement(case, criterion, rng=None):
    """The judgement of a case by a criterion; with `rng`, it errs in the form."""
    errs = lambda: rng is not None and rng.random() < ERROR
    attribute = CRITERIA[criterion][0]
    word_a, word_b = (ATTRIBUTES[attribute]["levels"][levels[attribute]] for levels in case["levels"])
    score_a, score_b = (score(criterion, levels) for levels in case["levels"])
    scores = f"{score_a}, {score_b}"
    text = f"<specific_criteria>\n{criterion}\n</specific_criteria>\n"
    text += f"<analysis>\nA: {word_a} = {score_a}, B: {word_b} = {score_b}\n</analysis>\n"
    text += "" if errs() else "<scores>\n"
    text += scores if errs() else f"\\boxed{{{scores}}}"
    text += "\n</analysis>" if errs() else "\n</scores>"
    return text


def make_pairs():
    """The lines of pairs.jsonl: 800 to train on, then 200 held out; every criterion is asked for equally often."""
    rng, pairs, seen = random.Random(1), [], set()
    while len(pairs) < TRAIN_PAIRS + HELD_OUT_PAIRS:
        case = draw_case(rng, NAMES[len(pairs) % len(NAMES)])
        best = max((0, 1), key=lambda slot: score(case["wanted"], case["levels"][slot]))
        chosen, rejected = (case["a"], case["b"])[:: 1 if best == 0 else -1]
        pair = {"prompt": case["request"], "chosen": chosen, "rejected": rejected, "subset": case["wanted"]}
        if (key := json.dumps(pair)) not in seen:
            seen.add(key)
            pairs.append(pair)
    return pairs


# --- Prompts and tokens -----------------------------------------------------------------------------------------------

TAGS = [f"<{slash}{name}>" for name in ("specific_criteria", "analysis", "scores") for slash in ("", "/")]
TAGS += ["\\boxed{"]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEMPLATE = jinja2.Template((HERE / "template.jinja").read_text().split("---user---\n")[1])
# The second prompt: the judge's with another last line.
NAME_ONLY = "Name the criterion of the request."


def user_message(case):
    return TEMPLATE.render(question=case["request"], response_a=case["a"], response_b=case["b"])


def chat(user):
    return f"<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"


def train_tokenizer():
    """Byte-level BPE in which every word of the task is one token, and a digit always is."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(r" ?\p{L}+| ?\p{N}|\n| ?[^\s\p{L}\p{N}]|\s"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    rng = random.Random(2)
    cases = [draw_case(rng) for _ in range(3000)]
    texts = [chat(user_message(case)) + NAME_ONLY for case in cases]
    texts += [re.sub("<[^>]*>", "", judgement(case, rng.choice(NAMES))) for case in cases]
    trainer = trainers.BpeTrainer(
        vocab_size=4096, min_frequency=2, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=SPECIAL, show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(tag, normalized=False) for tag in TAGS])
    return tokenizer


# --- The model --------------------------------------------------------------------------------------------------------


def new_model(vocab_size):
    torch.manual_seed(3)
    config = Qwen3Config(
        vocab_size=vocab_size, hidden_size=128, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, tie_word_embeddings=True, max_position_embeddings=1024, rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, use_cache=True,
    )
    return Qwen3ForCausalLM(config)


class Texts:
    """Cached encodings; a text that ends or begins at a line break splits into tokens there anyway."""

    def __init__(self, tokenizer):
        self.tokenizer, self.cache = tokenizer, {}

    def ids(self, text):
        if text not in self.cache:
            if len(self.cache) > 100_000:
                self.cache.clear()
            self.cache[text] = self.tokenizer.encode(text).ids
        return self.cache[text]


def packed_batch(texts, rng, cases, judgements, habits):
    """Prompts, each followed by several answers that see the prompt and themselves: input, positions, mask, targets.
    Without `habits` the form is right throughout."""
    rows = []
    for _ in range(cases):
        case = draw_case(rng)
        user = user_message(case)
        body, instruction = user.rsplit("\n", 1)
        prompt, _, tail = chat(body + "\n\0").partition("\0")
        criteria = [draw_criterion(rng, case["wanted"], habits) for _ in range(judgements)]
        branches = [(instruction + tail, judgement(case, name, rng if habits else None)) for name in criteria]
        branches.append((NAME_ONLY + tail, f"<specific_criteria>\n{case['wanted']}\n</specific_criteria>"))
        ids = list(texts.ids(prompt))
        group, position, loss, start = [0] * len(ids), list(range(len(ids))), [False] * len(ids), len(ids)
        for number, (opening, answer) in enumerate(branches, 1):
            opening_ids, answer_ids = texts.ids(opening), texts.ids(answer + "<|im_end|>")
            ids += opening_ids + answer_ids
            group += [number] * (len(opening_ids) + len(answer_ids))
            position += range(start, start + len(opening_ids) + len(answer_ids))
            loss += [False] * len(opening_ids) + [True] * len(answer_ids)
        rows.append((ids, group, position, loss))
    width = max(len(row[0]) for row in rows)
    pad = lambda values, fill: torch.tensor([list(v) + [fill] * (width - len(v)) for v in values])
    ids, group, position, loss = (pad([row[part] for row in rows], fill) for part, fill in enumerate((0, -1, 0, False)))
    sees = (group[:, None, :] == group[:, :, None]) | (group[:, None, :] == 0)
    mask = sees & torch.ones(width, width, dtype=torch.bool).tril()
    return ids, position, mask[:, None], loss


def pretrain(model, texts, steps, cases=16, judgements=4, peak=4e-3):
    """Skills first, then (from 0.6 of the steps on) the habits that GRPO is to break."""
    rng = random.Random(4)
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    optimizers = [
        torch.optim.Muon(matrices, lr=peak, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=peak, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    model.train()
    began = time.time()
    for step in range(steps):
        rate = peak * min(1, (step + 1) / 40) * min(1, (steps - step) / (0.4 * steps))
        ids, position, mask, loss = packed_batch(texts, rng, cases, judgements, step >= 0.6 * steps)
        states = model.model(input_ids=ids, position_ids=position, attention_mask=mask, use_cache=False)
        hidden = states.last_hidden_state
        # The hidden state that predicts an answer's token is the one before it, which lies in the same branch.
        at, target = loss[:, 1:], ids[:, 1:]
        value = F.cross_entropy(model.lm_head(hidden[:, :-1][at]), target[at])
        value.backward()
        for optimizer in optimizers:
            for parameters in optimizer.param_groups:
                parameters["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()
        if step % 50 == 0 or step == steps - 1:
            print(f"step {step:4d}  loss {value.item():.4f}  {time.time() - began:.0f} s", flush=True)


# --- Measuring --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def generate(model, tokenizer, prompts, rng, temperature=1.0, limit=64):
    """Completions of prompts, sampled or (temperature 0) greedy."""
    encoded = [tokenizer.encode(prompt).ids for prompt in prompts]
    width, end = max(map(len, encoded)), tokenizer.token_to_id("<|im_end|>")
    ids = torch.tensor([[0] * (width - len(e)) + e for e in encoded])
    mask = torch.tensor([[0] * (width - len(e)) + [1] * len(e) for e in encoded])
    cache, out = None, []
    alive = torch.ones(len(prompts), dtype=torch.bool)
    step_ids = ids
    for _ in range(limit):
        position = (mask.cumsum(1) - 1).clamp(min=0)[:, -step_ids.shape[1] :]
        result = model(
            input_ids=step_ids, attention_mask=mask, position_ids=position, cache=cache, use_cache=True,
            logits_to_keep=1,
        )
        cache, logits = result.cache, result.logits[:, -1]
        if temperature == 0:
            token = logits.argmax(-1)
        else:
            token = torch.multinomial((logits / temperature).softmax(-1), 1, generator=rng)[:, 0]
        token = torch.where(alive, token, end)
        out.append(token)
        alive = alive & (token != end)
        if not alive.any():
            break
        step_ids, mask = token[:, None], torch.cat([mask, torch.ones(len(prompts), 1, dtype=mask.dtype)], 1)
    rows = torch.stack(out, 1).tolist()
    return [tokenizer.decode(row[: row.index(end)] if end in row else row, skip_special_tokens=False) for row in rows]


def verdict(text):
    """The strict rule of trainer/judge/verdict.rs."""
    scores = re.search("<scores>(.*?)</scores>", text, re.S)
    box = scores and re.search(r"\\boxed{([\d.]+),\s*([\d.]+)}", scores[1])
    return (float(box[1]), float(box[2])) if box else None


def measure(model, tokenizer, count=400):
    """Rates on fresh cases: of the form, of right verdicts, and of the skills that training can build on."""
    model.eval()
    rng, torch_rng = random.Random(5), torch.Generator().manual_seed(5)
    cases = [draw_case(rng) for _ in range(count)]
    sign = lambda pair: (pair[0] > pair[1]) - (pair[0] < pair[1])
    right = lambda case: sign([score(case["wanted"], levels) for levels in case["levels"]])
    rates = {}
    for label, temperature in (("temperature 1", 1.0), ("greedy", 0.0)):
        texts = generate(model, tokenizer, [chat(user_message(case)) for case in cases], torch_rng, temperature)
        verdicts = [verdict(text) for text in texts]
        parsed = [(case, v) for case, v in zip(cases, verdicts) if v]
        correct = sum(sign(v) == right(case) for case, v in parsed)
        named = [re.search("<specific_criteria>\n(.*?)\n", text) for text in texts]
        rates[f"{label}: form"] = len(parsed) / count
        rates[f"{label}: accuracy, strict"] = correct / count
        rates[f"{label}: accuracy of those parsed"] = correct / max(1, len(parsed))
        rates[f"{label}: names the right criterion"] = sum(
            bool(n) and n[1] == case["wanted"] for n, case in zip(named, cases)
        ) / count
        rates[f"{label}: characters"] = sum(map(len, texts)) / count
        if temperature:
            print(texts[0], texts[1], sep="\n----\n")
    # The latent skill: the right criterion is given, the rest is the judge's.
    prompts = [chat(user_message(case)) + f"<specific_criteria>\n{case['wanted']}\n" for case in cases]
    texts = generate(model, tokenizer, prompts, torch_rng)
    boxes = [re.search(r"(\d), (\d)", text) for text in texts]
    rates["given the criterion: scores exact"] = sum(
        bool(box) and [int(box[1]), int(box[2])] == [score(case["wanted"], levels) for levels in case["levels"]]
        for box, case in zip(boxes, cases)
    ) / count
    rates["given the criterion: verdict right"] = sum(
        bool(box) and sign((int(box[1]), int(box[2]))) == right(case) for box, case in zip(boxes, cases)
    ) / count
    prompts = [chat(user_message(case).rsplit("\n", 1)[0] + "\n" + NAME_ONLY) for case in cases]
    texts = generate(model, tokenizer, prompts, torch_rng)
    rates["asked for the criterion alone: right"] = sum(
        case["wanted"] in text for case, text in zip(cases, texts)
    ) / count
    for label, rate in rates.items():
        print(f"{label:50} {rate:8.3f}")
    lengths = [len(tokenizer.encode(chat(user_message(case))).ids) for case in cases]
    answers = [len(tokenizer.encode(judgement(case, case["wanted"])).ids) + 1 for case in cases]
    print(f"tokens: prompt {sum(lengths) / count:.1f}, at most {max(lengths)}; judgement {max(answers)}")
    return rates


# --- Files ------------------------------------------------------------------------------------------------------------


def save(model, tokenizer, out):
    out.mkdir(parents=True, exist_ok=True)
    tensors = {name: p.detach().to(torch.bfloat16).contiguous() for name, p in model.named_parameters()}
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    c = model.config
    end, pad = (tokenizer.token_to_id(token) for token in ("<|im_end|>", "<|endoftext|>"))
    config = {
        "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": pad,
        "eos_token_id": end, "head_dim": c.head_dim, "hidden_act": "silu", "hidden_size": c.hidden_size,
        "initializer_range": 0.02, "intermediate_size": c.intermediate_size,
        "max_position_embeddings": c.max_position_embeddings, "model_type": "qwen3",
        "num_attention_heads": c.num_attention_heads, "num_hidden_layers": c.num_hidden_layers,
        "num_key_value_heads": c.num_key_value_heads, "rms_norm_eps": c.rms_norm_eps, "rope_scaling": None,
        "rope_theta": c.rope_parameters["rope_theta"], "sliding_window": None, "tie_word_embeddings": True,
        "torch_dtype": "bfloat16", "use_cache": True, "use_sliding_window": False, "vocab_size": c.vocab_size,
    }
    generation = {"do_sample": True, "eos_token_id": [end, pad], "pad_token_id": pad, "temperature": 1.0}
    tokenizer_config = {
        "chat_template": CHAT_TEMPLATE, "clean_up_tokenization_spaces": False, "eos_token": "<|im_end|>",
        "model_max_length": c.max_position_embeddings, "pad_token": "<|endoftext|>",
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    for name, value in (("config", config), ("generation_config", generation), ("tokenizer_config", tokenizer_config)):
        (out / f"{name}.json").write_text(json.dumps(value, indent=2) + "\n")
    tokenizer.save(str(out / "tokenizer.json"))


def load(out):
    model = Qwen3ForCausalLM.from_pretrained(out, dtype=torch.float32, attn_implementation="sdpa")
    return model, Tokenizer.from_file(str(out / "tokenizer.json"))


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--pairs", action="store_true", help="write pairs.jsonl alone")
    arguments.add_argument("--measure", action="store_true", help="measure the model that is there")
    arguments.add_argument("--steps", type=int, default=700, help="pretraining steps")
    arguments.add_argument("--out", type=Path, default=HERE / "model")
    arguments = arguments.parse_args()
    torch.set_num_threads(1)
    if not arguments.measure:
        lines = [json.dumps(pair) + "\n" for pair in make_pairs()]
        (HERE / "pairs.jsonl").write_text("".join(lines))
    if not arguments.measure and not arguments.pairs:
        tokenizer = train_tokenizer()
        model = new_model(tokenizer.get_vocab_size())
        print(f"{model.num_parameters()} parameters, {tokenizer.get_vocab_size()} tokens")
        pretrain(model, Texts(tokenizer), arguments.steps)
        save(model, tokenizer, arguments.out)
    if not arguments.pairs:
        measure(*load(arguments.out))


if __name__ == "__main__":
    main()
