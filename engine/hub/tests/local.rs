//! Paths, ids and settings: nothing here connects.

use super::*;
use crate::error::FileError;
use crate::hub::reference::{Location, locate, parse};
use std::collections::HashMap;
use std::fs;

/// Offline, so that an id shows itself by not being cached.
fn offline(scratch: &Scratch) -> Hub {
    let mut config = config(scratch, "http://127.0.0.1:9");
    config.offline = true;
    config.home = Some(scratch.0.clone());
    Hub::new(config)
}

#[test]
fn a_path_that_exists_wins() {
    let scratch = Scratch::new();
    let directory = scratch.0.join("acme/judge");
    fs::create_dir_all(&directory).unwrap();
    let file = directory.join("rows.jsonl");
    fs::write(&file, "").unwrap();
    let hub = offline(&scratch);
    let model = |spec: &str| hub.resolve_model(spec, &mut |_| {});
    assert_eq!(model(directory.to_str().unwrap()).unwrap(), directory);
    assert_eq!(model("~/acme/judge").unwrap(), directory);
    let data = hub.resolve_data("~/acme/judge/rows.jsonl", &mut |_| {});
    assert_eq!(data.unwrap(), file);
    let error = model(file.to_str().unwrap()).unwrap_err();
    assert!(matches!(error, HubError::NotADirectory { .. }), "{error}");
}

#[test]
fn a_file_for_a_model_says_at_once_what_it_is() {
    let scratch = Scratch::new();
    let hub = offline(&scratch);
    for (name, model, adapter) in [
        ("q4.gguf", "GGUF, which is not read: fetch the checkpoint", "give the directory"),
        ("pytorch_model.bin", "pickle", "give the directory"),
        (
            "adapter_model.safetensors",
            "a LoRA adapter: give it as the adapter",
            "give the directory",
        ),
        ("model.safetensors", "give the directory", "give the directory"),
    ] {
        let file = scratch.0.join(name);
        fs::write(&file, "x").unwrap();
        let spec = file.to_str().unwrap();
        for (resolved, part) in [
            (hub.resolve_model(spec, &mut |_| {}), model),
            (hub.resolve_adapter(spec, &mut |_| {}), adapter),
        ] {
            let error = resolved.unwrap_err().to_string();
            assert!(error.contains(part) && error.contains(name), "{error}");
        }
    }
}

#[test]
#[cfg(unix)]
fn a_link_to_nothing_is_no_id() {
    let scratch = Scratch::new();
    let hub = offline(&scratch);
    let link = scratch.0.join("judge");
    std::os::unix::fs::symlink("/nowhere/judge", &link).unwrap();
    let spec = link.to_str().unwrap();
    for resolved in [
        hub.resolve_model(spec, &mut |_| {}),
        hub.resolve_adapter(spec, &mut |_| {}),
        hub.resolve_data(spec, &mut |_| {}),
    ] {
        let error = resolved.unwrap_err();
        assert!(matches!(error, HubError::File(FileError::DanglingLink { .. })), "{error}");
        assert!(error.to_string().contains("/nowhere/judge"), "{error}");
    }
}

#[test]
fn a_string_that_looks_like_a_path_is_no_id() {
    let scratch = Scratch::new();
    let hub = offline(&scratch);
    let specs = [
        "./acme",
        "../acme/judge",
        "/acme/judge",
        "~/judge",
        "~acme/judge",
        "a/b/c",
        "acme/judge/",
        "rows.jsonl",
        "data/rows.jsonl",
        "data/rows.parquet",
        "a/model.safetensors",
        ".",
        "a//b",
    ];
    for spec in specs {
        if Path::new(spec).exists() {
            continue;
        }
        let error = hub.resolve_data(spec, &mut |_| {}).unwrap_err();
        assert!(matches!(error, HubError::PathNotFound { .. }), "{spec}: {error}");
    }
}

#[test]
fn ids_are_checked_before_they_become_paths() {
    let reference = |spec: &str| match locate(spec, None) {
        Ok(Location::Remote(reference)) => reference,
        other => panic!("{spec}: {other:?}"),
    };
    let plain = reference("Qwen/Qwen3-0.6B");
    assert_eq!((plain.id.as_str(), plain.revision.as_str()), ("Qwen/Qwen3-0.6B", "main"));
    let full = reference("acme/pairs@refs/pr/1:data/a b.csv");
    assert_eq!(full.revision, "refs/pr/1");
    assert_eq!(full.file.as_deref(), Some("data/a b.csv"));
    let bad = [
        "",
        "gpt2",
        "a/",
        "-a/b",
        "a/b-",
        "a/.b",
        "a/b--c",
        "a/b..c",
        "a/b c",
        "a/b\u{e9}",
        "a/b?x=1",
        "a/b#c",
        "a/b%2e",
        "a/b@",
        "a/b@..",
        "a/b@../x",
        "a/b@x/../y",
        "a/b@/x",
        "a/b@x/",
        "a/b@-x",
        "a/b@x y",
        "a/b@x~1",
        "a/b@x\\y",
        "a/b@x@y",
        "a/b@.x",
        "a/b@x/.y",
        "a/b@x.lock",
        "a/b@x\n",
        "a/b:",
        "a/b:../c",
        "a/b:/c",
        "a/b:c//d",
        "a/b:c\\d",
    ];
    for spec in bad {
        let error = parse(spec).unwrap_err();
        assert!(matches!(error, HubError::BadId { .. }), "{spec}: {error}");
    }
    let long = format!("a/{}", "b".repeat(5000));
    assert!(matches!(locate(&long, None), Err(HubError::BadId { .. })));
    let scratch = Scratch::new();
    let hub = offline(&scratch);
    let model = hub.resolve_model("a/b:config.json", &mut |_| {}).unwrap_err();
    assert!(matches!(model, HubError::PathNotFound { .. } | HubError::BadId { .. }), "{model}");
    let name = hub.resolve_dataset_file("a/b", "../x.csv", &mut |_| {}).unwrap_err();
    assert!(matches!(name, HubError::UnsafeFileName { .. }), "{name}");
}

fn from(variables: &[(&str, &str)]) -> HubConfig {
    let variables: HashMap<_, _> = variables.iter().copied().collect();
    HubConfig::from_variables(|name| variables.get(name).map(|value| value.into()))
}

#[test]
fn variables_mean_what_they_mean_to_python() {
    let cache = |variables: &[(&str, &str)]| from(variables).cache.unwrap();
    assert_eq!(cache(&[("HOME", "/h")]), Path::new("/h/.cache/huggingface/hub"));
    assert_eq!(cache(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")]), Path::new("/x/huggingface/hub"));
    assert_eq!(cache(&[("HOME", "/h"), ("HF_HOME", "~/f")]), Path::new("/h/f/hub"));
    assert_eq!(cache(&[("HF_HOME", "/f"), ("HF_HUB_CACHE", "/c")]), Path::new("/c"));
    assert_eq!(cache(&[("HF_HOME", "/f"), ("HUGGINGFACE_HUB_CACHE", "/c")]), Path::new("/c"));
    assert!(from(&[]).cache.is_none());

    for (value, expected) in [
        ("1", true),
        ("True", true),
        ("YES", true),
        ("on", true),
        ("0", false),
        ("", false),
        ("no", false),
    ] {
        assert_eq!(from(&[("HF_HUB_OFFLINE", value)]).offline, expected, "{value:?}");
    }
    assert!(from(&[("TRANSFORMERS_OFFLINE", "1")]).offline);
    assert_eq!(from(&[]).endpoint, "https://huggingface.co");
    assert_eq!(from(&[("HF_ENDPOINT", "http://mirror/hf/")]).endpoint, "http://mirror/hf");
    let seconds = from(&[("HF_HUB_ETAG_TIMEOUT", "3"), ("HF_HUB_DOWNLOAD_TIMEOUT", "x")]);
    assert_eq!(seconds.metadata_timeout, Duration::from_secs(3));
    assert_eq!(seconds.download_timeout, Duration::from_secs(30));
    let proxy = |variables: &[(&str, &str)]| from(variables).proxy.map(|(_, address)| address);
    let both = [("HTTPS_PROXY", "http://s"), ("http_proxy", "http://p")];
    assert_eq!(proxy(&both).as_deref(), Some("http://s"));
    let plain = [both[0], both[1], ("HF_ENDPOINT", "http://mirror")];
    assert_eq!(proxy(&plain).as_deref(), Some("http://p"));
}

#[test]
fn the_token_is_found_and_hidden() {
    let scratch = Scratch::new();
    fs::write(scratch.0.join("token"), "hf_file\r\n").unwrap();
    fs::write(scratch.0.join("other"), "hf_other").unwrap();
    let home = ("HF_HOME", scratch.0.to_str().unwrap());
    let other = scratch.0.join("other");
    let token = |variables: &[(&str, &str)]| from(variables).token.map(|token| token.secret);
    assert_eq!(token(&[home]).as_deref(), Some("hf_file"));
    assert_eq!(token(&[home, ("HF_TOKEN", " hf_variable\n")]).as_deref(), Some("hf_variable"));
    assert_eq!(token(&[home, ("HF_TOKEN", " ")]).as_deref(), Some("hf_file"));
    assert_eq!(
        token(&[home, ("HF_TOKEN_PATH", other.to_str().unwrap())]).as_deref(),
        Some("hf_other")
    );
    assert_eq!(token(&[("HF_HOME", "/nonexistent")]), None);
    let config = from(&[home, ("HTTPS_PROXY", "http://user:hf_file@host")]);
    let shown = format!("{config:?}");
    assert!(!shown.contains("hf_file") && shown.contains("/token"), "{shown}");
}
