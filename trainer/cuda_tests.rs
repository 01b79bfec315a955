//! The dumps and the demo's judge on a GPU: on the emulator with its checks on, or on the driver that
//! `CUDA_DRIVER_LIB` names.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, OnceLock, PoisonError, atomic::AtomicBool},
};

use engine::{
    checkpoint::adapter::{Adapter, AdapterSettings, Projection},
    language_model::LanguageModel,
    model::Precision,
    tensor::{
        Device,
        device::{Cpu, DeviceError},
    },
};
use serde_json::Map;

use crate::{
    check::{Finding, check},
    data,
    judge::{RunStatus, prompt::Template},
    shared::{shared, skipped},
    train::{
        StepReport, Trainer, checkpoint,
        directory::RunDirectory,
        run::{self, RunEvent},
        settings::Settings,
    },
};

/// The GPU all tests share, one at a time; `None`, with a message, where there is none.
fn gpu() -> Option<(Device, MutexGuard<'static, ()>)> {
    static GPU: OnceLock<Option<Device>> = OnceLock::new();
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let open = || {
        if std::env::var_os("CUDA_DRIVER_LIB").is_none() {
            // Refused once it is in use, which is all the same.
            let _ = cuda_driver::set_resolver(emulator::resolve);
        }
        match Device::cuda(0, Cpu::new(1)) {
            Ok(device) => Some(device),
            Err(DeviceError::NoDriver) => None,
            Err(error) => panic!("{error}"),
        }
    };
    let gpu = GPU.get_or_init(open).clone();
    if gpu.is_none() {
        skipped("the driver that CUDA_DRIVER_LIB names cannot be opened");
    }
    Some((gpu?, turn))
}

fn below_root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// The findings of a dump, all within their bounds.
fn checked(directory: &Path, device: &Device) -> Vec<Finding> {
    let findings = check(directory, device).unwrap();
    for finding in &findings {
        let Finding { case, variant, quantity, count, error, bound } = finding;
        eprintln!("{case} {variant} {quantity}: {error:.1e} of {bound:.1e}, {count} values");
    }
    let failed: Vec<&Finding> = findings.iter().filter(|finding| !finding.passes()).collect();
    assert!(failed.is_empty(), "{failed:#?}");
    findings
}

/// Values compared of a quantity.
fn count(findings: &[Finding], quantity: &str) -> usize {
    let of = findings.iter().filter(|finding| finding.quantity == quantity);
    of.map(|finding| finding.count).sum()
}

#[test]
fn dumps_are_within_what_rounding_allows() {
    let Some((gpu, _turn)) = gpu() else { return };
    for case in
        ["qwen3-tied", "qwen3-tied-bf16", "qwen3-sharded", "llama", "llama-llama3", "qwen2-yarn"]
    {
        let findings = checked(&below_root("tests/golden").join(case), &gpu);
        for quantity in [
            "logits",
            "hidden states",
            "log-probs, T = 0.7",
            "log-probs in training, T = 0.7",
            "entropies in training",
            "training's, of the same logits",
            "greedy tokens, logits below the largest",
            "log-prob bits that differ in training",
        ] {
            assert!(count(&findings, quantity) > 0, "{case}: {quantity}");
        }
        let gradients = count(&findings, "gradients (relative)");
        assert_eq!(gradients > 0, case != "qwen3-tied-bf16", "{case}");
        for quantity in ["GRPO losses", "TRL's gradients (relative)", "parameters after AdamW"] {
            assert_eq!(count(&findings, quantity) > 0, case == "qwen3-tied", "{case}: {quantity}");
        }
    }
}

#[test]
fn dumps_that_a_gpu_cannot_run_say_so_and_have_their_steps_compared() {
    let Some((gpu, _turn)) = gpu() else { return };
    for (case, head_dim, steps) in [("qwen3-untied", 24, true), ("qwen2", 12, false)] {
        let findings = checked(&below_root("tests/golden").join(case), &gpu);
        let said = format!("not on a GPU: head_dim is {head_dim}");
        assert!(findings.iter().any(|one| one.quantity.starts_with(&said)), "{findings:#?}");
        for quantity in ["parameters after AdamW", "parameter bits that differ from the CPU's"] {
            assert_eq!(count(&findings, quantity) > 0, steps, "{case}: {quantity}");
        }
        assert_eq!(count(&findings, "logits"), 0);
    }
}

/// GRPO's losses and gradients, and TRL's own steps.
#[test]
fn larger_dumps_are_within_what_rounding_allows() {
    let Some((gpu, _turn)) = gpu() else { return };
    let Some(folder) = shared("golden") else { return };
    let mut found = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.join("case.json").is_file() {
            let findings = checked(&path, &gpu);
            let trl = path.join("step.safetensors").is_file();
            for (quantity, expected) in [
                ("GRPO gradients (relative)", !trl),
                ("TRL's gradients (relative)", trl),
                ("parameters after AdamW", true),
            ] {
                assert_eq!(count(&findings, quantity) > 0, expected, "{}", path.display());
            }
            found += 1;
        }
    }
    assert!(found > 0, "no dump");
}

/// Steps of a short run.
const STEPS: u64 = 3;

fn settings() -> Settings {
    let settings = Settings::from_file(&below_root("cli/commands/demo/config.toml")).unwrap();
    let replaced = ["rollout.prompts_per_step=4", "rollout.group_size=4", "train.save_every=1"];
    let more = [format!("train.steps={STEPS}"), format!("train.keep_last={STEPS}")];
    let replaced = replaced.map(str::to_owned).into_iter().chain(more);
    replaced.fold(settings, |settings, one| settings.with(&one).unwrap())
}

/// The demo's judge with a new adapter, or as a checkpoint has it.
fn trainer(
    device: &Device,
    precision: Precision,
    settings: &Settings,
    from: Option<&Path>,
) -> (Trainer, Adapter) {
    let lora = &settings.lora;
    let new = AdapterSettings {
        rank: lora.r,
        alpha: lora.alpha,
        rank_stabilized: lora.rslora,
        dropout: lora.dropout,
        targets: Projection::ALL.to_vec(),
    };
    let directory = below_root("cli/commands/demo/model");
    let (language_model, adapter) = LanguageModel::builder(&directory)
        .device(device)
        .precision(precision)
        .adapter_from(|config| match from {
            Some(path) => Adapter::load(path, config),
            None => Adapter::initialize(config, &new, settings.train.seed),
        })
        .open_with_adapter()
        .unwrap();
    let template = Template::from_file(&below_root("cli/commands/demo/template.jinja")).unwrap();
    let template = template.with_control_tokens(language_model.control_tokens());
    let pairs = data::read(&below_root("cli/commands/demo/pairs.jsonl")).unwrap();
    let mut trainer = Trainer::new(language_model, template, settings.clone(), pairs, 64 << 20);
    if let Some(from) = from {
        checkpoint::restore(&mut trainer, from).unwrap();
    }
    (trainer, adapter)
}

/// Largest difference between the log-probabilities of training and of sampling.
fn log_prob_difference(report: &StepReport) -> f64 {
    let more = &report.metrics.more;
    let found = more.iter().find(|(name, _)| name == "sampling/sampling_logp_difference/max");
    found.expect("it is logged").1
}

/// Asserts that a GPU is about as near to f32 as the CPU in bf16 is, as for the dumps.
fn assert_as_near(got: f64, other: f64, exact: f64, what: &str) {
    let (error, bound) = ((got - exact).abs(), 2.0 * (other - exact).abs() + exact.abs() / 256.0);
    assert!(error <= bound, "{what}: {got}, in f32 {exact}, {bound} allowed");
}

#[test]
fn the_demos_judge_trains_as_on_the_cpu_and_goes_on_bit_for_bit() {
    let Some((gpu, _turn)) = gpu() else { return };
    let (settings, never) = (settings(), AtomicBool::new(false));
    let scratch = tempfile::tempdir().unwrap();
    let out = scratch.path().join("run");
    let (mut whole, mut adapter) = trainer(&gpu, Precision::Bf16, &settings, None);
    let directory = RunDirectory::start(&out, &settings, &Map::new(), Map::new()).unwrap();
    let mut steps = 0;
    let ended = run::run(&mut whole, &mut adapter, &directory, None, &[], &never, &mut |event| {
        if let RunEvent::Step(report) = event {
            steps += 1;
            assert_eq!(log_prob_difference(report), 0.0, "step {steps}");
            assert!(report.metrics.loss.is_finite());
        }
    });
    assert_eq!((ended.unwrap(), steps), (RunStatus::Complete, STEPS));
    drop(whole);

    // The last step again, from the checkpoint before it.
    let before = checkpoint::directory(&out.join("checkpoints"), STEPS - 1);
    let (mut resumed, mut adapter) = trainer(&gpu, Precision::Bf16, &settings, Some(&before));
    let sampled = resumed.sample(&never, &mut |_| ()).unwrap().unwrap();
    let report = resumed.train_on(&sampled, &mut |_| ()).unwrap();
    let again = scratch.path().join("again");
    checkpoint::save(&resumed, &mut adapter, &again, None).unwrap();
    for file in ["adapter_model.safetensors", "optimizer.safetensors", "state.json"] {
        let [first, second] = [&out.join("checkpoints"), &again]
            .map(|all| fs::read(checkpoint::directory(all, STEPS).join(file)).unwrap());
        assert!(first == second, "{file}");
    }

    // The CPU learns from the same judgements.
    let learned = |precision| {
        let host = Device::cpu_threads(1);
        let (mut policy, _) = trainer(&host, precision, &settings, Some(&before));
        policy.train_on(&sampled, &mut |_| ()).unwrap().metrics
    };
    let (exact, other, got) = (learned(Precision::F32), learned(Precision::Bf16), report.metrics);
    assert!(report.moved && exact.grad_norm > 0.0, "nothing to learn");
    assert_as_near(got.grad_norm, other.grad_norm, exact.grad_norm, "norm of the gradient");
    let [got, other, exact] =
        [got, other, exact].map(|m| m.entropy_trained.expect("tokens were trained on"));
    assert_as_near(got, other, exact, "entropy");
}
