#!/bin/sh
# Fills corpus/TARGET with seeds: this repository's own fixtures, and small files written here.
set -eu
cd "$(dirname "$0")"
fixtures=../tests/fixtures golden=../tests/golden

# seed TARGET FILE...
seed() {
    target=$1
    shift
    mkdir -p "corpus/$target"
    for file in "$@"; do
        cp "$file" "corpus/$target/$(echo "$file" | tr -c 'a-zA-Z0-9.\n' _)"
    done
}

# text TARGET NAME, from stdin
text() {
    mkdir -p "corpus/$1"
    cat > "corpus/$1/$2"
}

seed safetensors $golden/qwen2/adapter/adapter_model.safetensors $golden/qwen2/model/model.safetensors
seed config $golden/*/model/config.json $golden/*/model/generation_config.json
seed adapter_config $golden/*/adapter/adapter_config.json $fixtures/adapter/*/adapter_config.json
seed tokenizer $golden/qwen3-tied/model/tokenizer.json
seed chat_template $fixtures/chat/templates/*.jinja
seed judge_template ../trainer/judge/prompt/*.jinja
seed parquet $fixtures/prepare/*.parquet
for preset in j1-nano j1-micro trl-0.15.2; do
    echo "preset = \"$preset\"" | text settings "$preset"
done
text settings keys <<'END'
preset = "j1-nano"
[lora]
r = 8
target_modules = ["q_proj", "v_proj"]
[rollout]
temperature = 0.9
[reward.weights]
consistency = 0.5
[optimizer]
betas = [0.9, 0.99]
END
text judge_template own <<'END'
---system---
You judge.
---user---
{% for message in messages %}{{ message.role }}: {{ message.content }}
{% endfor %}{{ conversation }}{{ question }} A: {{ response_a }} B: {{ response_b }}
END
text jsonl pairs <<'END'
{"id": "a", "subset": "math", "prompt": "2 + 2?", "chosen": "4", "rejected": "5"}
{"prompt": [{"role": "user", "content": "Hi"}], "chosen": "Hello", "rejected": ""}
{"chosen": [{"role": "user", "content": "é"}, {"role": "assistant", "content": "1"}], "rejected": [{"role": "user", "content": "é"}, {"role": "assistant", "content": "2"}]}
{"prompt": "x", "a": "y", "b": "z", "other": [1e3, null, {"k": [true]}]}
END
text csv pairs <<'END'
id,subset,prompt,chosen,rejected
1,math,"2 + 2, please?","4
four",5
2,,"[{""role"": ""user"", ""content"": ""Hi""}]",Hello,
END
text verdict strict <<'END'
<specific_criteria>
1. Right (weight 100)
</specific_criteria>
<analysis>
A is right, B is not.
</analysis>
<scores>
\boxed{8, 3}
</scores>
END
text verdict thinking <<'END'
<think>\boxed{1, 2}</think> Reply A: 7.5/10, Reply B: 9. The better one is B: [[B]] **\boxed{ 7.5 , 9 }** 回复 A \boxed{10}
END
text results outputs <<'END'
{"row":0,"id":"0","subset":"math","order":"chosen-first","vote":0,"prompt_tokens":10,"tokens":3,"finish":"stop","log_prob":-1.5,"strict":{"scores":[8.0,3.0]},"soft":{"scores":[8.0,3.0]},"text":"\\boxed{8, 3}"}
{"row":0,"id":"0","subset":null,"order":"rejected-first","vote":0,"prompt_tokens":10,"tokens":3,"finish":"length","log_prob":-1.5,"strict":{"unparsed":"truncated"},"soft":{"unparsed":"truncated"},"text":"<think>"}
END
text results table <<'END'
prompt,chosen,rejected,judgement,scores
"Hi","a","b","\boxed{8, 3}","[8.0, 3.0]"
END
