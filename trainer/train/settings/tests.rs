//! Round trips, the presets checked by hand, and what is refused.

use super::*;
use crate::train::grpo::loss::LossType;

fn parse(text: &str) -> Settings {
    Settings::parse("c.toml", text).unwrap_or_else(|error| panic!("{error}"))
}

fn refused(text: &str) -> String {
    Settings::parse("c.toml", text).expect_err(text).to_string()
}

/// The lines that are not comments.
fn plain(settings: &Settings) -> Vec<String> {
    let text = settings.to_toml();
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(str::to_owned).collect()
}

#[test]
fn what_is_written_is_read_back() {
    for &(preset, _) in Preset::WORDS {
        let settings = Settings::preset(preset);
        assert_eq!(settings.preset, preset);
        settings.validate().unwrap();
        assert_eq!(parse(&settings.to_toml()), settings, "{}", settings.to_toml());
        assert_eq!(parse(&format!("preset = \"{}\"", preset.name())), settings);
    }
    assert_eq!(parse(""), Settings::preset(Preset::J1Nano));

    // Every key away from its default, awkward texts and numbers among them.
    let other = "
        preset = 'trl-0.15.2'
        [model]
        path = \"a \\\"b\\\" \\\\ \\u007f é \\n #\"
        adapter = 'C:\\x'
        weights = 'mapped'
        [lora]
        r = 0x20
        alpha = 1
        dropout = 1e-3
        target_modules = ['q_proj',
            'v_proj', # two of them
        ]
        rslora = true
        [data]
        train = 't'
        held_out = 'h'
        max_prompt_tokens = 1_000
        over_long = 'drop'
        orders = 'both'
        template = 't.jinja'
        [rollout]
        group_size = 8
        prompts_per_step = 6
        temperature = 0.1
        top_p = 0.95
        top_k = 20
        min_p = 0.05
        max_completion_tokens = 64
        thinking = 'off'
        template_date = '2025-01-31'
        [reward]
        wrong_verdict = -0.5
        length_from_tokens = 32
        normalize_each = true
        drop_zero_variance = true
        scale_rewards = 'batch'
        weights = { format = 0, verdict = 3, consistency = 0.3333333333333333, agreement = 0.1, summed = 2, length = 1e-300 }
        [loss]
        type = 'dr_grpo'
        beta = 0
        reference = 'start'
        epsilon_low = 1
        epsilon_high = 0.28
        bias_corrected_kl = true
        reasoning_weight = 0.5
        num_iterations = 2
        mask_truncated = true
        temperature_scaled = true
        accumulation_steps = 3
        [optimizer]
        learning_rate = 3e-5
        betas = [0, 0.999]
        eps = 1e-6
        weight_decay = 0.0
        max_grad_norm = 1.0
        schedule = 'constant'
        warmup_steps = 0
        [train]
        steps = 1000000000
        epochs = 0
        seed = 18446744073709551615
        micro_batch_tokens = 4096
        gradient_checkpointing = 'on'
        save_every = 1
        keep_last = 1
        eval_every = 0
        eval_pairs = 0
        show_every = 5
        deliver = 'last'
    ";
    let settings = parse(other);
    assert_eq!(parse(&settings.to_toml()), settings);
    let (preset, ours) = (plain(&Settings::preset(Preset::Trl0152)), plain(&settings));
    let same: Vec<_> = preset.iter().zip(&ours).filter(|(a, b)| a == b).map(|(a, _)| a).collect();
    assert!(
        same.iter().all(|line| line.starts_with('[') || line.starts_with("preset")),
        "{same:?}"
    );
    assert_eq!(settings.model.path, "a \"b\" \\ \u{7f} é \n #");
    assert_eq!((settings.lora.r, settings.train.steps), (32, 1_000_000_000));
}

#[test]
fn every_key_is_explained() {
    let text = Settings::preset(Preset::J1Nano).to_toml();
    let lines: Vec<&str> = text.lines().collect();
    for (number, line) in lines.iter().enumerate().filter(|(_, line)| line.contains(" = ")) {
        let key = line.split(" = ").next().unwrap();
        if key.chars().all(|c| c.is_ascii_lowercase() || c == '_') {
            assert!(lines[number - 1].starts_with("# "), "{key}");
        }
    }
    assert!(text.contains("# \"both\" | \"random\"\norders = \"both\"\n"), "{text}");
    assert!(text.contains("# a whole number from 1 to 1024\nr = 16\n"), "{text}");
    assert!(text.lines().all(|line| line.chars().count() <= 110));
}

/// FACTS of the published recipe, value by value, with the mendings.
#[test]
fn j1_nano_is_the_published_recipe_mended() {
    let expected = "
        preset = \"j1-nano\"
        [model]
        path = \"Qwen/Qwen3-0.6B\"
        adapter = \"\"
        weights = \"auto\"
        [lora]
        r = 16
        alpha = 32.0
        dropout = 0.0
        target_modules = [\"q_proj\", \"k_proj\", \"v_proj\", \"o_proj\", \"gate_proj\", \"up_proj\", \"down_proj\"]
        rslora = false
        [data]
        train = \"\"
        held_out = \"\"
        max_prompt_tokens = 2048
        over_long = \"drop\"
        orders = \"both\"
        template = \"\"
        [rollout]
        group_size = 2
        prompts_per_step = 16
        temperature = 0.9
        top_p = 1.0
        top_k = 0
        min_p = 0.0
        max_completion_tokens = 2048
        thinking = \"auto\"
        template_date = \"\"
        [reward]
        wrong_verdict = 0.0
        length_from_tokens = 1536
        normalize_each = true
        drop_zero_variance = true
        scale_rewards = \"group\"
        [reward.weights]
        format = 0.2
        verdict = 1.0
        consistency = 0.0
        agreement = 0.0
        summed = 0.0
        length = 0.0
        [loss]
        type = \"dapo\"
        beta = 0.0005
        reference = \"start\"
        epsilon_low = 0.2
        epsilon_high = 0.2
        bias_corrected_kl = false
        reasoning_weight = 1.0
        num_iterations = 1
        mask_truncated = false
        temperature_scaled = true
        accumulation_steps = 1
        [optimizer]
        learning_rate = 0.0001
        betas = [0.9, 0.99]
        eps = 1e-8
        weight_decay = 0.1
        max_grad_norm = 0.1
        schedule = \"cosine\"
        warmup_steps = 5
        [train]
        steps = 1000
        epochs = 2.0
        seed = 0
        micro_batch_tokens = 0
        gradient_checkpointing = \"auto\"
        save_every = 100
        keep_last = 3
        eval_every = 100
        eval_pairs = 100
        show_every = 0
        deliver = \"best\"
    ";
    let expected: Vec<&str> = expected.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    assert_eq!(plain(&Settings::preset(Preset::J1Nano)), expected);
}

#[test]
fn the_other_presets_differ_in_these_lines_only() {
    let nano = plain(&Settings::preset(Preset::J1Nano));
    let differences = |preset: Preset| -> Vec<String> {
        let lines = plain(&Settings::preset(preset));
        lines.into_iter().zip(&nano).filter(|(a, b)| a != *b).map(|(a, _)| a).collect()
    };
    assert_eq!(
        differences(Preset::J1Micro),
        ["preset = \"j1-micro\"", "path = \"Qwen/Qwen3-1.7B\""]
    );
    assert_eq!(
        differences(Preset::Cpu05b),
        [
            "preset = \"cpu-0.5b\"",
            "path = \"Qwen/Qwen2.5-Coder-0.5B-Instruct\"",
            "max_prompt_tokens = 1800",
            "template = \"examples\"",
            "group_size = 4",
            "prompts_per_step = 32",
            "temperature = 1.0",
            "max_completion_tokens = 160",
            "length_from_tokens = 110",
            "normalize_each = false",
            "scale_rewards = \"batch\"",
            "format = 1.0",
            "verdict = 0.0",
            "consistency = 1.0",
            "summed = 1.0",
            "length = 0.5",
            "beta = 0.0",
            "learning_rate = 7e-5",
            "max_grad_norm = 1.0",
            "schedule = \"constant\"",
            "warmup_steps = 4",
            "steps = 200",
            "micro_batch_tokens = 8192",
            "save_every = 5",
            "eval_every = 20",
        ]
    );
    assert_eq!(
        differences(Preset::Spct),
        [
            "preset = \"spct\"",
            "orders = \"random\"",
            "group_size = 4",
            "wrong_verdict = -1.0",
            "normalize_each = false",
            "format = 0.0",
            "type = \"grpo\"",
            "beta = 0.08",
        ]
    );
    assert_eq!(
        differences(Preset::Trl0152),
        [
            "preset = \"trl-0.15.2\"",
            "dropout = 0.1",
            "over_long = \"truncate-left\"",
            "orders = \"random\"",
            "normalize_each = false",
            "drop_zero_variance = false",
            "format = 1.0",
            "type = \"grpo\"",
            "reference = \"base\"",
            "temperature_scaled = false",
            "accumulation_steps = 4",
            "steps = 0",
            "epochs = 10.0",
            "seed = 42",
        ]
    );
}

#[test]
fn unknown_keys_are_refused_with_the_nearest_name() {
    for (text, says) in [
        (
            "[lora]\nr = 8\nalhpa = 3",
            "c.toml, line 3: there is no key lora.alhpa; did you mean lora.alpha?",
        ),
        ("[lorra]\nr = 8", "line 1: there is no key lorra; did you mean lora?"),
        ("[optimizer]\nlr = 1", "did you mean optimizer.learning_rate?"),
        ("num_generations = 8", "did you mean rollout.group_size?"),
        ("temperature = 1.0", "did you mean rollout.temperature?"),
        ("[reward.weights]\nverdit = 1", "did you mean reward.weights.verdict?"),
        ("reward.weight.format = 1", "did you mean reward.weights?"),
        ("[train]\nseeds = 1", "did you mean train.seed?"),
        ("[loss]\nwhatever_this_is = 1", "[loss] has type, beta, reference, epsilon_low,"),
        ("[frobnication]", "there are preset and the sections model, lora, data, rollout, reward,"),
        ("[[lora]]\nr = 1", "lora = "),
        ("lora = 3", "line 1: lora = 3; it must be a section"),
        ("[lora.r]\nx = 1", "lora.r = "),
    ] {
        let error = refused(text);
        assert!(error.contains(says), "{text}: {error}");
    }
}

#[test]
fn wrong_values_are_refused_with_what_is_allowed() {
    for (text, says) in [
        (
            "\n[lora]\nr = \"8\"",
            "c.toml, line 3: lora.r = \"8\"; it must be a whole number from 1 to 1024",
        ),
        ("lora.r = 0", "from 1 to 1024"),
        ("lora.r = -1", "from 1 to 1024"),
        ("lora.r = 8.0", "from 1 to 1024"),
        ("lora.r = 99999999999999999999", "from 1 to 1024"),
        ("lora.alpha = nan", "a number above 0"),
        ("lora.alpha = inf", "a number above 0"),
        ("lora.dropout = 1", "from 0 to below 1"),
        ("lora.rslora = 1", "true | false"),
        ("lora.target_modules = []", "a list of q_proj"),
        ("lora.target_modules = ['q_proj', 'q_proj']", "a list of q_proj"),
        ("lora.target_modules = ['lm_head']", "a list of q_proj"),
        ("data.orders = 'chosen'", "data.orders = 'chosen'; it must be \"both\" | \"random\""),
        ("rollout.group_size = 1", "from 2 to 1024"),
        ("rollout.top_p = 0", "above 0, up to 1"),
        ("loss.type = 'ppo'", "\"grpo\" | \"bnpo\" | \"dapo\" | \"dr_grpo\""),
        ("optimizer.betas = [0.9]", "two numbers from 0 to below 1"),
        ("optimizer.betas = [0.9, 1.0]", "two numbers"),
        ("optimizer.learning_rate = 1979-05-27", "a number above 0"),
        (
            "preset = 'j1-mini'",
            "\"j1-nano\" | \"j1-micro\" | \"cpu-0.5b\" | \"spct\" | \"trl-0.15.2\"",
        ),
        ("reward.weights.verdict = -1", "from 0 to 1000000"),
        // Their sums and products would be infinite, or NaN, in a step.
        ("reward.weights.verdict = 1e308", "from 0 to 1000000"),
        ("reward.wrong_verdict = -1e308", "from -1000000 to below 1"),
        ("loss.beta = 1e300", "from 0 to 1000000"),
        ("loss.epsilon_high = 1e39", "from 0 to 1000000"),
        ("lora.alpha = 1e39", "above 0, up to 1000000"),
        ("rollout.temperature = 1e-40", "from 0.01 to 10"),
        ("optimizer.eps = 1e-60", "from 1e-30 to 1"),
        ("optimizer.weight_decay = 1e39", "from 0 to 1000000"),
        // And these take more memory than there is, or wrap.
        ("rollout.max_completion_tokens = 18446744073709551615", "from 1 to 1048576"),
        ("rollout.max_completion_tokens = 1000000000000", "from 1 to 1048576"),
        ("data.max_prompt_tokens = 1000000000000", "from 1 to 1048576"),
        ("rollout.prompts_per_step = 1000000000000", "from 1 to 65536"),
        ("loss.accumulation_steps = 4294967296", "from 1 to 65536"),
        ("train.steps = 18446744073709551615", "from 0 to 1000000000"),
        ("train.micro_batch_tokens = 18446744073709551615", "from 0 to 1000000000"),
        ("optimizer.warmup_steps = 18446744073709551615", "from 0 to 1000000000"),
    ] {
        let error = refused(text);
        assert!(error.contains(says), "{text}: {error}");
    }
    let long = refused(&format!("train.seed = '{}'", "x".repeat(5000)));
    assert!(long.len() < 200, "{long}");
}

#[test]
fn keys_that_disagree_are_refused_together() {
    let zero = "format = 0\nverdict = 0";
    for (text, says) in [
        (format!("[reward.weights]\n{zero}"), "all of reward.weights are 0"),
        ("data.orders = 'random'\nreward.weights.consistency = 1".into(), "needs data.orders"),
        ("data.orders = 'random'\nreward.weights.summed = 1".into(), "weights.summed needs data"),
        ("rollout.prompts_per_step = 5".into(), "prompts_per_step = 5 is odd"),
        (
            "[rollout]\nprompts_per_step = 65536\ngroup_size = 1024".into(),
            "are 67108864 completions a step",
        ),
        (
            "reward.weights.length = 1\nrollout.max_completion_tokens = 100".into(),
            "length_from_tokens = 1536",
        ),
        ("loss.accumulation_steps = 3".into(), "accumulation_steps = 3 must divide"),
        ("train.epochs = 0".into(), "nothing would be trained"),
    ] {
        let error = refused(&text);
        assert!(error.starts_with("c.toml: ") && error.contains(says), "{text}: {error}");
    }
}

#[test]
fn what_is_not_toml_is_refused_with_its_line() {
    for (text, line) in [
        ("[lora]\nr = = 8", 2),
        ("[lora]\nr = 8\nr = 9", 3),
        ("\n\n[lora\n", 3),
        ("train.seed = 'x", 1),
        ("x = [[[[", 1),
    ] {
        let error = refused(text);
        assert!(error.starts_with(&format!("c.toml, line {line}: not TOML: ")), "{text}: {error}");
    }
    let deep = refused(&format!("lora.r = {}", "[".repeat(100_000)));
    assert!(deep.contains("not TOML"), "{deep}");
}

#[test]
fn files_are_read_within_bounds() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.toml");
    let read = || Settings::from_file(&path).map_err(|error| error.to_string());
    assert!(read().unwrap_err().contains("config.toml"));
    let settings = Settings::preset(Preset::Spct);
    std::fs::write(&path, settings.to_toml()).unwrap();
    assert_eq!(read().unwrap(), settings);
    std::fs::write(&path, "data.template = 'own/t.jinja'").unwrap();
    let template = read().unwrap().data.template;
    assert_eq!(
        Path::new(&template),
        directory.path().join("own/t.jinja"),
        "it lies beside the file"
    );
    std::fs::write(&path, "data.template = '/own/t.jinja'").unwrap();
    assert_eq!(read().unwrap().data.template, "/own/t.jinja");
    std::fs::write(&path, "#".repeat(2 << 20)).unwrap();
    assert!(read().unwrap_err().contains("larger than 1048576 bytes"));
    std::fs::write(&path, b"preset = \"\xff\"").unwrap();
    assert!(read().unwrap_err().contains("UTF-8"), "{:?}", read());
}

/// Who asks for epochs gets them, whatever steps the preset has.
#[test]
fn epochs_that_are_given_alone_count() {
    let steps_and_epochs = |settings: &Settings| (settings.train.steps, settings.train.epochs);
    let nano = Settings::preset(Preset::J1Nano);
    assert_eq!(steps_and_epochs(&nano), (1000, 2.0));
    assert_eq!(steps_and_epochs(&parse("train.epochs = 3")), (0, 3.0));
    assert_eq!(steps_and_epochs(&parse("[train]\nepochs = 3\nsteps = 5")), (5, 3.0));
    assert_eq!(steps_and_epochs(&nano.with("train.epochs=0.5").unwrap()), (0, 0.5));
    let later = nano.with("train.epochs=0.5").unwrap().with("train.steps=7").unwrap();
    assert_eq!(steps_and_epochs(&later), (7, 0.5));
}

/// Every number of f64, and awkward texts, through JSON.
#[test]
fn values_are_read_back_as_the_same_settings() {
    let mut settings = Settings::preset(Preset::Trl0152);
    settings.model.path = "a \"b\" \\ \u{7f} é \n #".to_owned();
    settings.optimizer.learning_rate = 0.1 + 0.2;
    settings.optimizer.eps = 1e-30;
    settings.train.seed = u64::MAX;
    let text = serde_json::to_string(&settings.values()).unwrap();
    let values = serde_json::from_str(&text).unwrap();
    assert_eq!(Settings::from_values("run.json", &values).unwrap(), settings);
    let differing = |a: &Settings, b: &Settings| -> Vec<String> {
        let b = b.values();
        a.values().into_iter().filter(|(key, value)| b[key] != *value).map(|(key, _)| key).collect()
    };
    let other = settings.with("optimizer.betas=[0.9, 0.9900000000000001]").unwrap();
    assert_eq!(differing(&settings, &other), ["optimizer.betas"]);
    for key in settings.values().keys() {
        let may = [
            "model.path",
            "model.adapter",
            "model.weights",
            "data.train",
            "data.held_out",
            "data.template",
            "train.steps",
            "train.epochs",
            "train.gradient_checkpointing",
            "train.save_every",
            "train.keep_last",
            "train.eval_every",
            "train.eval_pairs",
            "train.show_every",
            "train.deliver",
        ];
        assert_eq!(Settings::may_change(key), may.contains(&key.as_str()), "{key}");
    }
}

#[test]
fn one_value_can_be_replaced() {
    let settings = Settings::preset(Preset::Spct);
    let changed = settings.with("loss.type=dr_grpo").unwrap().with("train.steps = 7").unwrap();
    assert_eq!((changed.loss.kind, changed.train.steps), (LossType::DrGrpo, 7));
    assert_eq!(
        Settings { loss: settings.loss.clone(), train: settings.train.clone(), ..changed },
        settings
    );
    for (assignment, part) in [
        ("loss.typ=grpo", "loss.type"),
        ("loss.type=none", "loss.type = \"none\""),
        ("train.steps=many", "train.steps"),
        ("train.steps", "not TOML"),
    ] {
        let error = settings.with(assignment).unwrap_err().to_string();
        assert!(error.contains(part) && error.starts_with(assignment), "{error}");
    }
}
