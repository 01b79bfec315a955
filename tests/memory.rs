//! `j1 info --train` is held to what `j1 train` takes: the peak of a run's memory, as Linux measures it.

use std::{fs, path::Path};

use serde_json::{Value, json};

use crate::cli::{fails, j1, model, stdout};

/// hidden, layers, heads, kv heads, head width, inner, vocabulary: 11 MB of weights, of which a training
/// pass makes hundreds.
const SHAPE: [usize; 7] = [256, 6, 4, 2, 64, 768, 4096];

/// A random model in bf16 with the tokenizer of the tiny ones.
fn write_model(directory: &Path) {
    let [hidden, layers, heads, kv_heads, width, inner, vocabulary] = SHAPE;
    fs::create_dir_all(directory).unwrap();
    let tiny = model();
    let tiny = Path::new(&tiny);
    for name in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
        fs::copy(tiny.join(name), directory.join(name)).unwrap();
    }
    let mut config: Value =
        serde_json::from_slice(&fs::read(tiny.join("config.json")).unwrap()).unwrap();
    for (key, value) in [
        ("hidden_size", hidden),
        ("num_hidden_layers", layers),
        ("num_attention_heads", heads),
        ("num_key_value_heads", kv_heads),
        ("head_dim", width),
        ("intermediate_size", inner),
        ("vocab_size", vocabulary),
    ] {
        config[key] = json!(value);
    }
    config["torch_dtype"] = json!("bfloat16");
    fs::write(directory.join("config.json"), config.to_string()).unwrap();

    let mut tensors = vec![
        ("model.embed_tokens.weight".to_owned(), vec![vocabulary, hidden]),
        ("model.norm.weight".to_owned(), vec![hidden]),
    ];
    for layer in 0..layers {
        for (name, shape) in [
            ("input_layernorm", vec![hidden]),
            ("post_attention_layernorm", vec![hidden]),
            ("self_attn.q_norm", vec![width]),
            ("self_attn.k_norm", vec![width]),
            ("self_attn.q_proj", vec![heads * width, hidden]),
            ("self_attn.k_proj", vec![kv_heads * width, hidden]),
            ("self_attn.v_proj", vec![kv_heads * width, hidden]),
            ("self_attn.o_proj", vec![hidden, heads * width]),
            ("mlp.gate_proj", vec![inner, hidden]),
            ("mlp.up_proj", vec![inner, hidden]),
            ("mlp.down_proj", vec![hidden, inner]),
        ] {
            tensors.push((format!("model.layers.{layer}.{name}.weight"), shape));
        }
    }
    let (mut header, mut data, mut state) = (serde_json::Map::new(), Vec::new(), 1u64);
    for (name, shape) in tensors {
        let start = data.len();
        for _ in 0..shape.iter().product::<usize>() {
            // A linear congruential generator (Knuth's MMIX); values in ±0.03, norms of 1.
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let value = match shape.len() {
                1 => 1.0,
                _ => ((state >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * 0.03,
            };
            // bf16: the upper half of an f32, cut off.
            data.extend_from_slice(&((f32::to_bits(value) >> 16) as u16).to_le_bytes());
        }
        header.insert(
            name,
            json!({"dtype": "BF16", "shape": shape, "data_offsets": [start, data.len()]}),
        );
    }
    let mut header = Value::Object(header).to_string();
    header += &" ".repeat(header.len().next_multiple_of(8) - header.len());
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend(data);
    fs::write(directory.join("model.safetensors"), file).unwrap();
}

#[cfg(target_os = "linux")]
#[test]
fn the_peak_of_a_training_run_is_predicted_within_a_tenth() {
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| scratch.path().join(name).display().to_string();
    let (model, data, template) = (path("model"), path("pairs.jsonl"), path("template.jinja"));
    write_model(Path::new(&model));
    // Both orders begin with another reply: what prompts share has no rows, and the prediction does not count on it.
    let source =
        "---system---\n---user---\n{{ response_a }} or {{ response_b }}? {{ conversation }}\n";
    fs::write(&template, source).unwrap();
    let line = "{\"prompt\": \"Say it\", \"chosen\": \"it\", \"rejected\": \"not\"}\n";
    fs::write(&data, line).unwrap();

    for (checkpointing, key) in [("on", "recomputed"), ("off", "kept")] {
        let out = path(checkpointing);
        let [template, checkpointing] = [
            format!("data.template={template}"),
            format!("train.gradient_checkpointing={checkpointing}"),
        ];
        let common = |prompt: &str| -> Vec<String> {
            let prompt = format!("data.max_prompt_tokens={prompt}");
            let set = [
                "rollout.group_size=4",
                "rollout.prompts_per_step=4",
                "rollout.max_completion_tokens=100",
                "reward.drop_zero_variance=false",
                "train.steps=1",
                &prompt,
                &template,
                &checkpointing,
            ];
            let set = set.into_iter().flat_map(|set| ["--set".to_owned(), set.to_owned()]);
            let more = ["--model", &model, "--threads", "2", "--cache-memory", "256MB"];
            set.chain(more.map(str::to_owned)).collect()
        };
        let run = |first: &[&str], prompt: &str| {
            let common = common(prompt);
            let more: Vec<&str> = common.iter().map(String::as_str).collect();
            stdout(&j1(&[first, &more].concat()))
        };
        run(&["train", "--data", &data, "--out", &out], "300");
        let metrics = fs::read_to_string(Path::new(&out).join("metrics.jsonl")).unwrap();
        let metrics: Value = serde_json::from_str(metrics.lines().last().unwrap()).unwrap();
        let measured = metrics["time/peak_memory_bytes"].as_f64().unwrap();

        // As long as the prompts are; the completions of a random model run to their limit.
        let rollouts = fs::read_to_string(Path::new(&out).join("rollouts/step-1.jsonl")).unwrap();
        let rollout: Value = serde_json::from_str(rollouts.lines().next().unwrap()).unwrap();
        let prompt = rollout["prompt_tokens"].to_string();
        let report = run(&["info", "--train", "--json"], &prompt);
        let report: Value = serde_json::from_str(&report).unwrap();
        let predicted = report["training"][key]["total_bytes"].as_f64().unwrap();
        let ratio = predicted / measured;
        assert!((0.9..=1.1).contains(&ratio), "{key}: {predicted} for {measured}: {ratio}");
        eprintln!("{key}: predicted {predicted}, measured {measured}, ratio {ratio:.3}");
    }
}

#[test]
fn the_run_records_its_batch_and_the_choice_is_explained() {
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| scratch.path().join(name).display().to_string();
    let (data, template, out) = (path("pairs.jsonl"), path("template.jinja"), path("out"));
    fs::write(&template, "{{ response_a }} {{ response_b }}\n").unwrap();
    fs::write(&data, "{\"prompt\": \"x\", \"chosen\": \"y\", \"rejected\": \"z\"}\n").unwrap();
    let (model, template) = (model(), format!("data.template={template}"));
    let args = ["train", "--model", &model, "--data", &data, "--out", &out];
    let set = [
        "train.steps=1",
        "rollout.prompts_per_step=2",
        "rollout.max_completion_tokens=4",
        "data.max_prompt_tokens=5000",
        &template,
    ];
    let set: Vec<&str> = set.into_iter().flat_map(|set| ["--set", set]).collect();
    let output = j1(&[&args[..], &set].concat());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    assert!(said.contains("gradient checkpointing o"), "{said}");
    let config = fs::read_to_string(Path::new(&out).join("config.toml")).unwrap();
    assert!(config.contains("micro_batch_tokens = 5004"), "{config}");
    assert!(config.contains("gradient_checkpointing = \"auto\""), "{config}");
}

#[test]
fn shapes_need_no_checkpoint() {
    let text = stdout(&j1(&["info", "--train", "--shape", "qwen3-0.6b"]));
    for word in ["recomputed / kept", "optimizer", "1.11 GiB", "in all"] {
        assert!(text.contains(word), "{word}: {text}");
    }
    let report = |more: &[&str]| -> Value {
        let all = [&["info", "--train", "--json", "--cache-memory", "1GB"], more].concat();
        serde_json::from_str(&stdout(&j1(&all))).unwrap()
    };
    let nano = report(&[]);
    let micro = report(&["--preset", "j1-micro"]);
    let total =
        |report: &Value, key: &str| report["training"][key]["total_bytes"].as_u64().unwrap();
    assert!(total(&nano, "recomputed") < total(&nano, "kept"));
    assert!(total(&nano, "kept") < total(&micro, "kept"));
    assert_eq!(nano["training"]["micro_batch_rows"], 2048 + 2048);
    // Rank 16 on all seven projections of 28 layers: two moments of 10,092,544 f32.
    assert_eq!(nano["training"]["optimizer_bytes"], 8 * 10_092_544);
    fails(&["info", "--shape", "qwen3-0.6b"], 2, &["--train"]);
    fails(&["info", "--train", "--set", "lora.rnk=3"], 1, &["lora.r"]);
}

#[test]
fn a_gpu_is_budgeted_without_one() {
    let info = |more: &[&str]| stdout(&j1(&[&["info", "--train"], more].concat()));
    for (preset, shape) in [("j1-nano", "qwen3-0.6b"), ("j1-micro", "qwen3-1.7b")] {
        let flags = ["--preset", preset, "--shape", shape, "--device-memory"];
        let text = info(&[&flags[..], &["80GB"]].concat());
        for word in ["74.51 GiB", "recomputed / kept", "fits, a tenth left free", "yes / yes"] {
            assert!(text.contains(word), "{preset}: {word}: {text}");
        }
        assert!(!text.contains("does not fit"), "{text}");
        let report = |memory: &str, more: &[&str]| -> Value {
            let all = [&flags[..], &[memory, "--json"], more].concat();
            serde_json::from_str::<Value>(&info(&all)).unwrap()["training"].take()
        };
        let whole = report("80GB", &[]);
        assert_eq!(whole["device_memory_bytes"], 80_000_000_000u64);
        assert_eq!((&whole["kept"]["fits"], &whole["advice"]), (&json!(true), &Value::Null));
        assert_eq!(whole["gradient_checkpointing"], "off");
        let size = |key: &str| whole[key].as_u64().unwrap();
        let parts = size("weights_bytes") + size("adapter_bytes") + size("optimizer_bytes");
        let phases = (size("generation_bytes") + size("cache_bytes"))
            .max(whole["kept"]["activation_bytes"].as_u64().unwrap());
        assert_eq!(whole["kept"]["total_bytes"], parts + phases);
        // The sums of the parts that the page promises.
        assert!(whole["kept"]["attention_backward_bytes"].as_u64().unwrap() < 700_000_000);

        let small = report("6GiB", &["--set", "data.max_prompt_tokens=30000"]);
        assert_eq!(small["recomputed"]["fits"], false);
        assert_eq!(small["gradient_checkpointing"], "on");
        let advice = small["advice"].as_str().unwrap();
        assert!(advice.contains("data.max_prompt_tokens"), "{advice}");
        let none = report("1GiB", &[]);
        assert!(none["advice"].as_str().unwrap().contains("smaller"), "{none}");
    }
    fails(&["info", "--device-memory", "80GB"], 2, &["--train"]);
    fails(&["info", "--train", "--device-memory", "lots"], 2, &["unknown unit lots"]);
}
