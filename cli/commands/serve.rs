//! `j1 serve`: from flags to a server.

use std::{net::SocketAddr, path::Path, process::ExitCode, time::Duration};

use engine::checkpoint::config::GenerationConfig;
use sha2::{Digest, Sha256};
use trainer::data::fingerprint;

use crate::{
    Failure,
    args::{GenerationArgs, Serve},
    commands::judge::texts,
    interrupt,
    output::note,
    serve::{self, Defaults, Limits, Options},
    session::Session,
};

/// Bytes of a file of keys at most.
const KEYS: u64 = 1 << 20;

pub(crate) fn run(args: &Serve) -> Result<ExitCode, Failure> {
    let is_public = !args.host.is_loopback();
    if is_public && !args.public {
        return Err(format!(
            "--host {} lets other machines in, and nothing is encrypted: add --public if that is meant, with a proxy that \
             speaks TLS in between",
            args.host
        )
        .into());
    }
    let keys = args.api_key_file.as_deref().map(keys).transpose()?.unwrap_or_default();
    if is_public && keys.is_empty() {
        note(
            "warning: everybody who reaches this address may use the model: --api-key-file asks for a key",
        );
    }
    let reference = args.reference.as_deref().map(|value| texts(&[("--reference", value)]));
    let reference = reference.transpose()?.and_then(|mut texts| texts.pop());
    let session = Session::open(&args.model, &args.runtime, &args.generation)?;
    let room = session.room(None)?;
    let settings = session.settings(&session.judge_within(&room))?;
    let options = Options {
        address: SocketAddr::new(args.host, args.port),
        names: match args.served_model_name.as_slice() {
            [] => vec![args.model.clone()],
            names => names.to_vec(),
        },
        keys,
        defaults: defaults(&args.generation, &session.language_model.generation),
        room,
        reference,
        limits: Limits {
            body_bytes: args.max_body as usize,
            connections: args.max_connections as usize,
            max_queue: args.max_queue,
            max_wait_seconds: args.max_wait.into(),
            drain: Duration::from_secs(args.drain.into()),
        },
        log_requests: args.log_requests,
    };
    serve::run(session, options, fingerprint::of_json(&settings))?;
    Ok(interrupt::status())
}

/// How completions are drawn where a request does not say: as flags have it, then the checkpoint's file, then the model's own
/// distribution, as vLLM does.
fn defaults(flags: &GenerationArgs, file: &GenerationConfig) -> Defaults {
    let or = |flag: Option<f32>, file: Option<f64>, neutral: f32| {
        flag.or(file.map(|value| value as f32)).unwrap_or(neutral)
    };
    Defaults {
        temperature: or(flags.temperature, file.temperature, 1.0),
        top_p: or(flags.top_p, file.top_p, 1.0),
        top_k: flags.top_k.or(file.top_k).unwrap_or(0),
        min_p: or(flags.min_p, file.min_p, 0.0),
        repetition_penalty: or(flags.repetition_penalty, file.repetition_penalty, 1.0),
    }
}

/// The digests of a file's keys.
fn keys(path: &Path) -> Result<Vec<[u8; 32]>, Failure> {
    let wrong = |what: &str| format!("--api-key-file {}: {what}", path.display());
    let size = std::fs::metadata(path).map_err(|error| wrong(&error.to_string()))?.len();
    if size > KEYS {
        return Err(wrong(&format!("it is larger than {KEYS} bytes")).into());
    }
    let text = std::fs::read_to_string(path).map_err(|error| wrong(&error.to_string()))?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let lines: Vec<&str> = lines.collect();
    if lines.iter().any(|key| !key.bytes().all(|byte| byte.is_ascii_graphic())) {
        return Err(wrong("a key is of visible ASCII characters, as it is sent in a header").into());
    }
    let keys: Vec<[u8; 32]> =
        lines.iter().map(|key| Sha256::digest(key.as_bytes()).into()).collect();
    if keys.is_empty() { Err(wrong("it has no key").into()) } else { Ok(keys) }
}
