//! Downloads, the cache, and runs without a network.

use super::*;
use std::fs;
use std::os::unix::fs::symlink;

#[test]
fn a_model_is_downloaded_once_and_then_works_offline() {
    let (scratch, fake) = (Scratch::new(), FakeHub::model());
    let server = Server::start({
        let fake = fake.clone();
        move |request| fake.answer(request)
    });
    let mut events = Vec::new();
    let directory =
        hub(&scratch, &server).resolve_model("acme/judge", &mut record(&mut events)).unwrap();
    assert_model(&directory, &fake);
    let weights = fake.etag("model.safetensors");
    let started =
        "Started { file: \"model.safetensors\", total_bytes: Some(200000), resumed_bytes: 0 }";
    assert!(events.iter().any(|event| event == started), "{events:?}");
    assert_eq!(events.last().unwrap(), "Finished { file: \"model.safetensors\" }");

    // The layout of huggingface_hub.
    let root = scratch.repository();
    assert_eq!(directory, root.join("snapshots").join(COMMIT));
    assert_eq!(fs::read_to_string(root.join("refs/main")).unwrap(), COMMIT);
    let link = fs::read_link(directory.join("model.safetensors")).unwrap();
    assert_eq!(link, Path::new(&format!("../../blobs/{weights}")));
    assert!(root.join(".no_exist").join(COMMIT).join("generation_config.json").exists());
    assert!(!directory.join(".gitattributes").exists());
    let mut blobs: Vec<_> = fs::read_dir(root.join("blobs")).unwrap().collect();
    assert_eq!(blobs.len(), 4);
    let leftover = |entry: &std::io::Result<fs::DirEntry>| {
        entry.as_ref().unwrap().file_name().to_str().unwrap().contains('.')
    };
    blobs.retain(leftover);
    assert!(blobs.is_empty(), "{blobs:?}");

    // Again: one request, for the ref.
    let before = server.requests().len();
    assert_eq!(resolve(&hub(&scratch, &server)).unwrap(), directory);
    assert_eq!(server.requests().len(), before + 1);

    // Offline: none.
    let mut offline = config(&scratch, &server.url());
    offline.offline = true;
    assert_eq!(resolve(&Hub::new(offline)).unwrap(), directory);
    assert_eq!(server.requests().len(), before + 1);
}

#[test]
fn a_default_chat_template_may_lie_in_its_folder() {
    let (scratch, mut fake) = (Scratch::new(), FakeHub::model());
    fake.files.push(("additional_chat_templates/default.jinja", b"template".to_vec(), false));
    let server = Server::start({
        let fake = fake.clone();
        move |request| fake.answer(request)
    });
    let directory = resolve(&hub(&scratch, &server)).unwrap();
    assert_model(&directory, &fake);
}

#[test]
fn a_pinned_commit_that_is_cached_needs_no_network() {
    let (scratch, fake) = (Scratch::new(), FakeHub::model());
    let server = Server::start(move |request| fake.answer(request));
    let spec = format!("acme/judge@{COMMIT}");
    let directory = hub(&scratch, &server).resolve_model(&spec, &mut |_| {}).unwrap();
    assert!(!scratch.repository().join("refs").exists());
    let unreachable = Hub::new(config(&scratch, &closed_port()));
    let mut events = Vec::new();
    let again = unreachable.resolve_model(&spec, &mut record(&mut events)).unwrap();
    assert_eq!((again, events.len()), (directory, 0));
}

#[test]
fn a_revision_with_slashes_has_its_own_ref() {
    let (scratch, fake) = (Scratch::new(), FakeHub::model());
    let server = Server::start(move |request| fake.answer(request));
    let spec = "acme/judge@refs/pr/1";
    hub(&scratch, &server).resolve_model(spec, &mut |_| {}).unwrap();
    let noted = fs::read_to_string(scratch.repository().join("refs/refs/pr/1"));
    assert_eq!(noted.unwrap(), COMMIT);
}

/// Lays a cache out as Python's huggingface_hub does.
fn python_cache(scratch: &Scratch, fake: &FakeHub) {
    let root = scratch.repository();
    let snapshot = root.join("snapshots").join(COMMIT);
    for directory in [&snapshot, &root.join("blobs"), &root.join("refs")] {
        fs::create_dir_all(directory).unwrap();
    }
    fs::write(root.join("refs/main"), COMMIT).unwrap();
    for (name, bytes, _) in &fake.files {
        fs::write(root.join("blobs").join(fake.etag(name)), bytes).unwrap();
        symlink(format!("../../blobs/{}", fake.etag(name)), snapshot.join(name)).unwrap();
    }
}

#[test]
fn a_cache_made_by_python_is_used() {
    let (scratch, fake) = (Scratch::new(), FakeHub::model());
    python_cache(&scratch, &fake);
    let mut offline = config(&scratch, &closed_port());
    offline.offline = true;
    assert_model(&resolve(&Hub::new(offline)).unwrap(), &fake);
}

#[test]
fn an_unreachable_server_leaves_the_cache_and_a_warning() {
    let (scratch, fake) = (Scratch::new(), FakeHub::model());
    python_cache(&scratch, &fake);
    let failing = Server::start(|_| Reply::new(503));
    for endpoint in [closed_port(), failing.url()] {
        let hub = Hub::new(config(&scratch, &endpoint));
        let mut events = Vec::new();
        let directory = hub.resolve_model("acme/judge", &mut record(&mut events));
        assert_model(&directory.unwrap(), &fake);
        assert_eq!(events.len(), 1, "{events:?}");
        assert!(events[0].contains("using the cached files"), "{events:?}");
    }
    // A request is not repeated if the cache can answer.
    assert_eq!(failing.requests().len(), 1);
}

#[test]
fn a_cache_with_a_missing_blob_is_completed() {
    let (scratch, fake) = (Scratch::new(), FakeHub::model());
    python_cache(&scratch, &fake);
    fs::remove_file(scratch.blob(&fake.etag("tokenizer.json"))).unwrap();

    let mut offline = config(&scratch, &closed_port());
    offline.offline = true;
    let error = resolve(&Hub::new(offline)).unwrap_err();
    assert!(matches!(&error, HubError::NotCached { file, .. } if file == "tokenizer.json"));
    assert!(error.to_string().contains("HF_HUB_OFFLINE"), "{error}");

    let answers = fake.clone();
    let server = Server::start(move |request| answers.answer(request));
    assert_model(&resolve(&hub(&scratch, &server)).unwrap(), &fake);
    assert_eq!(server.count("GET", "/blob/"), 1);
}

#[test]
fn offline_without_a_cache_says_so() {
    let scratch = Scratch::new();
    let mut offline = config(&scratch, &closed_port());
    offline.offline = true;
    let hub = Hub::new(offline);
    let errors = [
        resolve(&hub),
        hub.resolve_adapter("acme/judge", &mut |_| {}),
        hub.resolve_data("acme/judge", &mut |_| {}),
        hub.resolve_dataset_file("acme/judge", "a.csv", &mut |_| {}),
    ];
    for error in errors {
        let error = error.unwrap_err();
        assert!(matches!(error, HubError::NotCached { .. }), "{error}");
    }
    // Looking something up leaves nothing behind.
    assert_eq!(fs::read_dir(&scratch.0).unwrap().count(), 0);
}

#[test]
fn a_ref_that_is_no_commit_is_not_followed() {
    let (scratch, fake) = (Scratch::new(), FakeHub::model());
    python_cache(&scratch, &fake);
    // A whole model, but not where a ref may lead.
    let elsewhere = scratch.0.join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    for (name, bytes, _) in &fake.files {
        fs::write(elsewhere.join(name), bytes).unwrap();
    }
    let escape = "../../../elsewhere";
    let snapshots = scratch.repository().join("snapshots");
    assert!(snapshots.join(escape).join("config.json").exists());
    fs::write(scratch.repository().join("refs/main"), escape).unwrap();
    let mut offline = config(&scratch, &closed_port());
    offline.offline = true;
    let error = resolve(&Hub::new(offline)).unwrap_err();
    assert!(matches!(error, HubError::NotCached { .. }), "{error}");
}

#[test]
fn a_branch_that_moved_brings_only_what_changed() {
    const LATER: &str = "89abcdef0123456789abcdef0123456789abcdef";
    let (scratch, fake) = (Scratch::new(), FakeHub::model());
    python_cache(&scratch, &fake);
    let mut moved = fake.clone();
    moved.commit = LATER;
    moved.files[1].1 = b"{\"changed\":true}".to_vec();
    let answers = moved.clone();
    let server = Server::start(move |request| answers.answer(request));
    let directory = resolve(&hub(&scratch, &server)).unwrap();
    assert!(directory.ends_with(LATER));
    assert_model(&directory, &moved);
    assert_eq!(server.count("GET", "/blob/"), 0);
    assert_eq!(server.count("GET", "/resolve/"), 1);
    let noted = fs::read_to_string(scratch.repository().join("refs/main"));
    assert_eq!(noted.unwrap(), LATER);
    // The earlier snapshot stays.
    assert!(scratch.repository().join("snapshots").join(COMMIT).join("config.json").exists());
}

#[test]
fn a_blob_cut_by_a_crash_is_replaced() {
    let (scratch, fake) = (Scratch::new(), FakeHub::model());
    python_cache(&scratch, &fake);
    let etag = fake.etag("model.safetensors");
    fs::write(scratch.blob(&etag), b"short").unwrap();
    fs::remove_file(scratch.repository().join("snapshots").join(COMMIT).join("model.safetensors"))
        .unwrap();
    let answers = fake.clone();
    let server = Server::start(move |request| answers.answer(request));
    assert_model(&resolve(&hub(&scratch, &server)).unwrap(), &fake);
}

#[test]
fn sharded_weights_come_by_their_index() {
    let (scratch, mut fake) = (Scratch::new(), FakeHub::model());
    fake.files.retain(|(name, ..)| *name != "model.safetensors");
    let index = br#"{"metadata":{},"weight_map":{"a":"model-1.safetensors","b":"parts/model-2.safetensors","c":"model-1.safetensors"}}"#;
    fake.files.push(("model.safetensors.index.json", index.to_vec(), false));
    fake.files.push(("model-1.safetensors", vec![1; 1000], true));
    fake.files.push(("parts/model-2.safetensors", vec![2; 1000], true));
    let answers = fake.clone();
    let server = Server::start(move |request| answers.answer(request));
    let directory = resolve(&hub(&scratch, &server)).unwrap();
    assert_model(&directory, &fake);
    let mut offline = config(&scratch, &closed_port());
    offline.offline = true;
    assert_eq!(resolve(&Hub::new(offline.clone())).unwrap(), directory);
    fs::remove_file(directory.join("parts/model-2.safetensors")).unwrap();
    let error = resolve(&Hub::new(offline)).unwrap_err();
    let missing = "parts/model-2.safetensors";
    assert!(matches!(&error, HubError::NotCached { file, .. } if file == missing), "{error}");
}

#[test]
fn an_adapter_has_its_own_files() {
    let (scratch, mut fake) = (Scratch::new(), FakeHub::model());
    fake.files = vec![
        ("adapter_config.json", b"{}".to_vec(), false),
        ("adapter_model.safetensors", vec![3; 5000], true),
        ("README.md", b"#".to_vec(), false),
    ];
    let answers = fake.clone();
    let server = Server::start(move |request| answers.answer(request));
    let hub = hub(&scratch, &server);
    let directory = hub.resolve_adapter("acme/judge", &mut |_| {}).unwrap();
    assert_eq!(fs::read(directory.join("adapter_model.safetensors")).unwrap(), [3; 5000]);
    assert!(!directory.join("README.md").exists());
    let error = resolve(&hub).unwrap_err().to_string();
    assert!(error.contains("give it as the adapter"), "{error}");
}

#[test]
fn data_sets_by_file_and_by_being_the_only_one() {
    let (scratch, mut fake) = (Scratch::new(), FakeHub::model());
    fake.id = "acme/pairs";
    fake.files =
        vec![("README.md", b"#".to_vec(), false), ("data/filtered 1.parquet", vec![4; 3000], true)];
    // A space travels as %20.
    let decode = |fake: FakeHub| {
        move |request: &Request| {
            let mut request = request.clone();
            request.path = request.path.replace("%20", " ");
            fake.answer(&request)
        }
    };
    let server = Server::start(decode(fake.clone()));
    let hub = hub(&scratch, &server);
    let path = hub.resolve_data("acme/pairs", &mut |_| {}).unwrap();
    let expected = format!("hub/datasets--acme--pairs/snapshots/{COMMIT}/data/filtered 1.parquet");
    assert_eq!(path, scratch.0.join(expected));
    assert_eq!(fs::read(&path).unwrap(), [4; 3000]);
    let link = fs::read_link(&path).unwrap();
    let etag = fake.etag("data/filtered 1.parquet");
    assert_eq!(link, Path::new(&format!("../../../blobs/{etag}")));

    let mut offline = config(&scratch, &closed_port());
    offline.offline = true;
    let offline = Hub::new(offline);
    for spec in ["acme/pairs", "acme/pairs:data/filtered 1.parquet"] {
        assert_eq!(offline.resolve_data(spec, &mut |_| {}).unwrap(), path);
    }
    let file = "data/filtered 1.parquet";
    let by_file = offline.resolve_dataset_file("acme/pairs@main", file, &mut |_| {});
    assert_eq!(by_file.unwrap(), path);

    let mut several = fake;
    several.files.push(("data/test.jsonl", b"{}".to_vec(), false));
    let server = Server::start(decode(several));
    let error = Hub::new(config(&scratch, &server.url())).resolve_data("acme/pairs", &mut |_| {});
    let error = error.unwrap_err().to_string();
    assert!(error.contains("data/filtered 1.parquet, data/test.jsonl"), "{error}");
}

#[test]
fn shards_of_a_data_set_by_pattern_by_folder_and_by_being_all_there_is() {
    let (scratch, mut fake) = (Scratch::new(), FakeHub::model());
    fake.id = "acme/pairs";
    let shard = |name| (name, vec![7; 100], true);
    fake.files = vec![
        ("README.md", b"#".to_vec(), false),
        shard("data/train-00000-of-00002.parquet"),
        shard("data/train-00001-of-00002.parquet"),
        shard("data/test-00000-of-00001.parquet"),
        shard("more/dataset_info.json"),
        shard("more/part-1.jsonl"),
        shard("more/part-2.jsonl"),
    ];
    let server = Server::start({
        let fake = fake.clone();
        move |request| fake.answer(request)
    });
    let online = hub(&scratch, &server);
    let snapshot = scratch.0.join(format!("hub/datasets--acme--pairs/snapshots/{COMMIT}"));
    let mut offline = config(&scratch, &closed_port());
    offline.offline = true;
    let offline = Hub::new(offline);

    let one = "acme/pairs:data/train-00000-of-00002.parquet";
    online.resolve_data(one, &mut |_| {}).unwrap();
    // One of two is not what the pattern means.
    let error = offline.resolve_data("acme/pairs:data/train-*", &mut |_| {}).unwrap_err();
    assert!(
        error.to_string().contains("train-00001-of-00002.parquet is not in the cache"),
        "{error}"
    );

    for (spec, open, here) in [
        ("acme/pairs:data/train-*", "data/train-*", 2),
        ("acme/pairs:more", "more", 4),
        ("acme/pairs@main:more/", "more", 4),
        ("acme/pairs:*/t[er]*-of-00001.parquet", "*/t[er]*-of-00001.parquet", 5),
    ] {
        for hub in [&online, &offline] {
            assert_eq!(hub.resolve_data(spec, &mut |_| {}).unwrap(), snapshot.join(open), "{spec}");
        }
        let count = |folder| fs::read_dir(snapshot.join(folder)).map_or(0, Iterator::count);
        assert_eq!(count("data") + count("more"), here, "{spec}: nothing else is fetched");
    }
    for (spec, says) in [
        (
            "acme/pairs",
            "several data files in it; name one as acme/pairs:FILE, or shards as 'acme/pairs:FOLDER/train-*', of data/test",
        ),
        ("acme/pairs:data", "several data files in it; name one as acme/pairs:FILE"),
        ("acme/pairs:data/dev-*", "no file has a name of this pattern"),
        ("acme/pairs:data/[", "invalid range pattern"),
        ("acme/pairs:nowhere", "no file nowhere"),
    ] {
        let error = online.resolve_data(spec, &mut |_| {}).unwrap_err().to_string();
        assert!(error.contains(says), "{spec}: {error}");
    }

    fake.files.retain(|(name, ..)| !name.contains("test-") && !name.starts_with("more"));
    let server = Server::start(move |request| fake.answer(request));
    let all = hub(&scratch, &server).resolve_data("acme/pairs", &mut |_| {});
    assert_eq!(all.unwrap(), snapshot.join("data"));
}

#[test]
fn two_runs_at_once_download_once() {
    let (scratch, fake) = (Scratch::new(), FakeHub::model());
    let answers = fake.clone();
    let server = Server::start(move |request| {
        if request.is("GET", "/blob/") {
            // Long enough that both runs are there.
            std::thread::sleep(Duration::from_millis(50));
        }
        answers.answer(request)
    });
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert_model(&resolve(&hub(&scratch, &server)).unwrap(), &fake));
        }
    });
    assert_eq!(server.count("GET", "/blob/"), 2, "one for each of the two LFS files");
}

#[test]
fn a_renamed_repository_is_followed() {
    let (scratch, fake) = (Scratch::new(), FakeHub::model());
    let answers = fake.clone();
    let server = Server::start(move |request| {
        if request.path.contains("acme/old") {
            let place = request.path.replace("acme/old", "acme/judge");
            return Reply::new(307).with("Location", place);
        }
        answers.answer(request)
    });
    let mut with_token = config(&scratch, &server.url());
    with_token.token = Token::new("hf_abc", "HF_TOKEN");
    let directory = Hub::new(with_token).resolve_model("acme/old", &mut |_| {}).unwrap();
    assert_model(&directory, &fake);
    assert!(directory.starts_with(scratch.0.join("hub/models--acme--old")));
    // The same origin throughout, so every request carries it.
    let requests = server.requests();
    assert!(requests.iter().all(|r| r.header("authorization") == Some("Bearer hf_abc")));
}
