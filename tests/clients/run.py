#!/usr/bin/env python3
"""Programs that ask a judge, against `j1 serve`: what they send and what they make of the answers.

    python tests/clients/run.py target/debug/j1 MODEL

MODEL is a checkpoint directory. The official openai package is needed, litellm is used if it is there; OpenRLHF and verl are
not: their requests are sent as these programs send them. Exit status 1 if anything is not as they expect.
"""

import concurrent.futures
import json
import os
import subprocess
import sys
import urllib.request

import openai

REPLY = {"messages": [{"role": "user", "content": "Name a fruit."}], "model": "tiny"}


def post(url, body, headers=()):
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json", **dict(headers)})
    with urllib.request.urlopen(request, timeout=300) as answer:
        return json.load(answer)


def with_openai(client):
    assert [model.id for model in client.models.list()] == ["tiny", "gpt-4o-mini"]
    ask = lambda **more: client.chat.completions.create(**REPLY, max_tokens=12, **more)
    plain = ask(seed=5)
    assert plain.choices[0].message.role == "assistant" and plain.usage.completion_tokens > 0, plain
    # The same seed, the same text, alone and beside others; several samples differ.
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        texts = [answer.choices[0].message.content for answer in pool.map(lambda _: ask(seed=5), range(16))]
    assert texts == [plain.choices[0].message.content] * 16
    four = [choice.message.content for choice in ask(seed=5, n=4).choices]
    assert four[0] == texts[0] and len(set(four)) > 1, four
    stream = list(ask(seed=5, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    assert text == texts[0] and stream[-1].usage.completion_tokens == plain.usage.completion_tokens
    top = ask(seed=5, logprobs=True, top_logprobs=3).choices[0].logprobs.content
    assert len(top) == plain.usage.completion_tokens and all(len(token.top_logprobs) == 3 for token in top)
    extra = ask(seed=5, extra_body={"top_k": 20, "chat_template_kwargs": {"enable_thinking": False}})
    assert extra.choices[0].finish_reason in ("stop", "length")
    # The original's evaluation: four fields of which two mean nothing, ten at once, no limit of tokens.
    original = lambda row: client.chat.completions.create(**REPLY, extra_body={"max_seq_length": 6144, "max_prompt_length": 2048})
    with concurrent.futures.ThreadPoolExecutor(10) as pool:
        assert all(answer.usage.prompt_tokens for answer in pool.map(original, range(10)))
    completion = client.completions.create(model="tiny", prompt=["a", "b"], n=2, max_tokens=3, logprobs=1)
    assert [choice.index for choice in completion.choices] == [0, 1, 2, 3]
    for wrong, error in [({"model": "other"}, openai.NotFoundError), ({"tools": [{"type": "function"}]}, openai.BadRequestError)]:
        try:
            client.chat.completions.create(**{**REPLY, **wrong})
        except error as said:
            assert said.body["message"], said
        else:
            raise AssertionError(f"{wrong} was taken")


def with_litellm(api):
    # It would ask the network for prices.
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    try:
        import litellm
    except ImportError:
        return False
    answer = litellm.completion("hosted_vllm/tiny", REPLY["messages"], api_base=f"{api}/v1", api_key="key", max_tokens=5)
    assert answer.choices[0].message.content is not None
    ranked = litellm.rerank("hosted_vllm/tiny", "Name a fruit.", ["Cherry", "Sky", "Pear"], api_base=api, api_key="key")
    assert sorted(result["index"] for result in ranked.results) == [0, 1, 2]
    return True


def with_trainers(api):
    key = {"Authorization": "Bearer key"}
    # OpenRLHF's remote_rm_fn, one sample a call.
    query = "<|im_start|>user\nName a fruit.<|im_end|>\n<|im_start|>assistant\n"
    body = {"query": [query + "Cherry<|im_end|>"], "prompts": [query], "labels": ["Sky"]}
    answer = post(f"{api}/get_reward", body, key)
    assert -1 <= answer["rewards"][0] <= 1 and 0 <= answer["scores"][0] <= 1 and "parsed" in answer["extra_logs"]
    # verl's discriminative reward model, and its generative one, which parses the text itself.
    answer = post(f"{api}/classify", {"model": "tiny", "input": query + "Cherry<|im_end|>", "activation": False}, key)
    assert -1 <= answer["data"][-1]["probs"][-1] <= 1
    body = {**REPLY, "temperature": 0.7, "top_p": 0.8, "max_tokens": 16}
    assert post(f"{api}/v1/chat/completions", body, key)["choices"][0]["message"]["content"] is not None
    # TRL's reward functions call what they like: one request for a whole batch.
    items = [{"prompt": "Name a fruit.", "responses": [text, "Sky"]} for text in ["Cherry", "Pear", "7"]]
    answer = post(f"{api}/v1/judge/batch", {"items": items, "max_tokens": 16}, key)
    again = post(f"{api}/v1/judge/batch", {"items": items, "max_tokens": 16}, key)
    assert len(answer["data"]) == 3 and answer["data"] == again["data"]


def main():
    program, model = sys.argv[1:3]
    command = [program, "serve", "--model", model, "--port", "0", "--temperature", "1", "--max-new-tokens", "64", "--reference", "Sky"]
    server = subprocess.Popen([*command, "--served-model-name", "tiny", "gpt-4o-mini"], stderr=subprocess.PIPE, text=True)
    try:
        for line in server.stderr:
            if line.startswith("serving "):
                break
        api = line.split(" on ")[1].split(";")[0]
        with_openai(openai.OpenAI(base_url=f"{api}/v1", api_key="key", max_retries=0))
        done = ["openai " + openai.__version__]
        if with_litellm(api):
            done.append("litellm")
        with_trainers(api)
        print(f"{', '.join(done)}, OpenRLHF's, verl's and TRL's requests: as they should be")
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
