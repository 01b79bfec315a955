//! Everything that goes wrong between here and the server.

use super::*;
use std::fs;
use std::sync::Arc;
use std::time::Instant;

/// Serves `fake`, except where `change` has another answer.
fn serve(
    fake: &FakeHub,
    change: impl Fn(&Request, Reply) -> Reply + Send + Sync + 'static,
) -> Server {
    let fake = fake.clone();
    Server::start(move |request| change(request, fake.answer(request)))
}

/// The error of a server that answers every request alike, with and without a token.
fn refused(reply: Reply, token: Option<&str>) -> String {
    let scratch = Scratch::new();
    let server = Server::start(move |_| reply.clone());
    let mut config = config(&scratch, &server.url());
    config.token = token.and_then(|token| Token::new(token, "HF_TOKEN"));
    let error = resolve(&Hub::new(config)).unwrap_err();
    // Nothing is left in the cache by a refusal.
    assert!(!scratch.repository().exists());
    for text in [error.to_string(), format!("{error:?}")] {
        assert!(!text.contains("hf_secret"), "{text}");
    }
    format!("{error:?} {error}")
}

#[test]
fn a_broken_connection_is_continued_where_it_broke() {
    let (scratch, fake) = (Scratch::new(), FakeHub::model());
    let server = serve(&fake, |request, mut reply| {
        if request.is("GET", "/blob/") && reply.body.len() > 150_000 {
            reply.cut = Some(70_000);
        }
        reply
    });
    let mut events = Vec::new();
    let directory = hub(&scratch, &server).resolve_model("acme/judge", &mut record(&mut events));
    assert_model(&directory.unwrap(), &fake);
    let requests = server.requests();
    let offsets = requests.iter().filter(|r| r.is("GET", "/blob/")).map(Request::offset);
    // tokenizer.json, then the weights twice.
    assert_eq!(offsets.collect::<Vec<_>>(), [0, 0, 70_000]);
    let retries: Vec<_> = events.iter().filter(|e| e.contains("Retrying")).collect();
    assert_eq!(retries.len(), 1, "{events:?}");
}

#[test]
fn a_later_run_continues_what_an_earlier_one_left() {
    let (scratch, fake) = (Scratch::new(), FakeHub::model());
    let etag = fake.etag("model.safetensors");
    fs::create_dir_all(scratch.repository().join("blobs")).unwrap();
    fs::write(scratch.partial(&etag), &fake.bytes("model.safetensors")[..123_456]).unwrap();
    let server = serve(&fake, |_, reply| reply);
    let mut events = Vec::new();
    let directory = hub(&scratch, &server).resolve_model("acme/judge", &mut record(&mut events));
    assert_model(&directory.unwrap(), &fake);
    assert!(events.iter().any(|event| event.contains("resumed_bytes: 123456")), "{events:?}");
    assert!(server.requests().iter().any(|r| r.offset() == 123_456));
    assert!(!scratch.partial(&etag).exists());
}

#[test]
fn a_whole_partial_file_needs_no_request() {
    let (scratch, fake) = (Scratch::new(), FakeHub::model());
    fs::create_dir_all(scratch.repository().join("blobs")).unwrap();
    for name in ["model.safetensors", "tokenizer.json"] {
        fs::write(scratch.partial(&fake.etag(name)), fake.bytes(name)).unwrap();
    }
    let server = serve(&fake, |_, reply| reply);
    assert_model(&resolve(&hub(&scratch, &server)).unwrap(), &fake);
    assert_eq!(server.count("GET", "/blob/"), 0);
}

#[test]
fn a_damaged_partial_file_is_started_again() {
    let (scratch, fake) = (Scratch::new(), FakeHub::model());
    fs::create_dir_all(scratch.repository().join("blobs")).unwrap();
    fs::write(scratch.partial(&fake.etag("model.safetensors")), [9; 1000]).unwrap();
    // Longer than the file can be.
    fs::write(scratch.partial(&fake.etag("tokenizer.json")), [9; 1000]).unwrap();
    let server = serve(&fake, |_, reply| reply);
    let mut events = Vec::new();
    let directory = hub(&scratch, &server).resolve_model("acme/judge", &mut record(&mut events));
    assert_model(&directory.unwrap(), &fake);
    let warnings: Vec<_> = events.iter().filter(|e| e.contains("Warning")).collect();
    assert_eq!(warnings.len(), 1, "{events:?}");
    assert!(warnings[0].contains("damaged"), "{warnings:?}");
}

#[test]
fn servers_without_ranges_send_all_of_it_again() {
    for status in [200, 206, 416] {
        let (scratch, fake) = (Scratch::new(), FakeHub::model());
        let etag = fake.etag("model.safetensors");
        fs::create_dir_all(scratch.repository().join("blobs")).unwrap();
        fs::write(scratch.partial(&etag), &fake.bytes("model.safetensors")[..1000]).unwrap();
        let all = fake.bytes("model.safetensors").to_vec();
        let server = serve(&fake, move |request, reply| match (request.offset(), status) {
            (0, _) => reply,
            (_, 200) => Reply::new(200).body(all.clone()),
            // A range, but another one.
            (_, 206) => {
                Reply::new(206).with("Content-Range", "bytes 5-199999/200000").body(&all[5..])
            }
            (_, status) => Reply::new(status),
        });
        assert_model(&resolve(&hub(&scratch, &server)).unwrap(), &fake);
    }
}

#[test]
fn a_connection_that_always_breaks_is_given_up_and_kept() {
    let (scratch, fake) = (Scratch::new(), FakeHub::model());
    let server = serve(&fake, |request, mut reply| {
        if request.is("GET", "/blob/") && reply.body.len() > 100 {
            reply.cut = Some(10);
        }
        reply
    });
    let error = resolve(&hub(&scratch, &server)).unwrap_err();
    assert!(
        matches!(error, HubError::Truncated { got: 30, expected: 200_000, attempts: 3, .. }),
        "{error}"
    );
    assert!(error.to_string().contains("run again to continue"), "{error}");
    let kept = fs::read(scratch.partial(&fake.etag("model.safetensors"))).unwrap();
    assert_eq!(kept, &fake.bytes("model.safetensors")[..30]);
    // No snapshot pretends to be whole, and the ref is not moved onto half of one.
    assert!(!scratch.repository().join("refs/main").exists());
}

#[test]
fn a_silent_server_is_a_timeout() {
    let (scratch, fake) = (Scratch::new(), FakeHub::model());
    let silent = |part: &'static str| {
        serve(&fake, move |request, mut reply| {
            if request.path.contains(part) {
                reply.silence = Some(Duration::from_millis(300));
            }
            reply
        })
    };
    for part in ["/api/", "/resolve/", "/blob/"] {
        let server = silent(part);
        let mut config = config(&scratch, &server.url());
        config.metadata_timeout = Duration::from_millis(60);
        config.download_timeout = Duration::from_millis(60);
        config.retry.attempts = 2;
        let error = resolve(&Hub::new(config)).unwrap_err();
        assert!(matches!(error, HubError::Timeout { .. }), "{part}: {error}");
        assert!(error.to_string().contains("run again to continue"), "{error}");
    }
}

#[test]
fn a_refused_token_is_named_and_not_shown() {
    let reply =
        Reply::new(401).with("X-Error-Message", "Invalid credentials in Authorization header");
    let text = refused(reply, Some("hf_secret"));
    assert!(text.starts_with("TokenRefused"), "{text}");
    assert!(text.contains("HF_TOKEN") && text.contains("/settings/tokens"), "{text}");
    // A server that repeats the token does not get it printed.
    let text = refused(Reply::new(403).with("X-Error-Message", "no hf_secret!"), Some("hf_secret"));
    assert!(text.starts_with("TokenRefused") && text.contains("***"), "{text}");
    let text = refused(Reply::new(500).with("X-Error-Message", "hf_secret"), Some("hf_secret"));
    assert!(text.starts_with("Server"), "{text}");
}

#[test]
fn a_401_without_a_token_may_be_a_private_repository() {
    let text = refused(Reply::new(401), None);
    assert!(text.starts_with("RepositoryNotFound") && text.contains("set HF_TOKEN"), "{text}");
    let text = refused(Reply::new(401).with("X-Error-Code", "RepoNotFound"), Some("hf_secret"));
    assert!(text.contains("check that the token from HF_TOKEN may read it"), "{text}");
}

#[test]
fn a_gated_repository_names_the_page() {
    for status in [401, 403] {
        let reply = || Reply::new(status).with("X-Error-Code", "GatedRepo");
        let text = refused(reply(), None);
        assert!(
            text.starts_with("Gated") && text.contains("/acme/judge, then set HF_TOKEN"),
            "{text}"
        );
        let text = refused(reply(), Some("hf_secret"));
        assert!(text.contains("wait for access"), "{text}");
    }
    // The listing is public, the files are not.
    let scratch = Scratch::new();
    let server =
        serve(&FakeHub::model(), |request, reply| match request.path.contains("/resolve/") {
            true => Reply::new(401).with("X-Error-Code", "GatedRepo"),
            false => reply,
        });
    let error = resolve(&hub(&scratch, &server)).unwrap_err();
    assert!(matches!(error, HubError::Gated { .. }), "{error}");
}

#[test]
fn what_is_not_found_is_named() {
    let (scratch, fake) = (Scratch::new(), FakeHub::model());
    let server = serve(&fake, |_, reply| reply);
    let hub = hub(&scratch, &server);
    let model = |spec: &str| hub.resolve_model(spec, &mut |_| {}).unwrap_err();
    let error = model("acme/jugde");
    assert!(matches!(error, HubError::RepositoryNotFound { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("acme/jugde") && text.contains("spelling") && text.contains("private"));
    let error = model("acme/judge@v9");
    assert!(
        matches!(&error, HubError::RevisionNotFound { revision, .. } if revision == "v9"),
        "{error}"
    );
    let error = hub.resolve_dataset_file("acme/judge", "nowhere.csv", &mut |_| {});
    let error = error.unwrap_err();
    assert!(
        matches!(&error, HubError::FileNotFound { file, .. } if file == "nowhere.csv"),
        "{error}"
    );
}

#[test]
fn a_repository_without_what_a_model_needs() {
    let cases = [
        ("config.json", "config.json"),
        ("tokenizer.json", "no fast tokenizer"),
        ("model.safetensors", "it has PyTorch's pickle format"),
    ];
    for (lacking, expected) in cases {
        let (scratch, mut fake) = (Scratch::new(), FakeHub::model());
        fake.files.retain(|(name, ..)| *name != lacking);
        fake.files.push(("pytorch_model.bin", vec![0; 10], true));
        let server = serve(&fake, |_, reply| reply);
        let error = resolve(&hub(&scratch, &server)).unwrap_err();
        assert!(
            matches!(&error, HubError::FileNotFound { file, .. } if file == lacking),
            "{error}"
        );
        assert!(error.to_string().contains(expected), "{error}");
        // Refused before anything was downloaded.
        assert_eq!(server.requests().len(), 1);
    }
}

#[test]
fn passing_failures_are_repeated_and_others_are_not() {
    for (status, attempts) in
        [(429, 3), (500, 3), (502, 3), (503, 3), (504, 3), (522, 3), (418, 1), (410, 1)]
    {
        let scratch = Scratch::new();
        // An hour is not waited: `longest_pause` bounds it.
        let server = Server::start(move |_| Reply::new(status).with("Retry-After", 3600));
        let before = Instant::now();
        let error = resolve(&hub(&scratch, &server)).unwrap_err();
        assert_eq!(server.requests().len(), attempts, "{status}");
        assert!(before.elapsed() < Duration::from_secs(5));
        match status {
            429 => assert!(matches!(error, HubError::RateLimited { .. }), "{error}"),
            _ => assert!(
                matches!(error, HubError::Server { status: s, .. } if s == status),
                "{error}"
            ),
        }
    }
    // Each kind of request fails twice, then works.
    let (scratch, fake) = (Scratch::new(), FakeHub::model());
    let counts = Arc::new(std::sync::Mutex::new(std::collections::HashMap::new()));
    let server = serve(&fake, move |request, reply| {
        let mut counts = counts.lock().unwrap();
        let count = counts.entry((request.method.clone(), request.path.clone())).or_insert(0);
        *count += 1;
        if *count < 3 { Reply::new(503) } else { reply }
    });
    let mut config = config(&scratch, &server.url());
    // A GET passes the hub and then its CDN, and each fails twice.
    config.retry.attempts = 5;
    assert_model(&resolve(&Hub::new(config)).unwrap(), &fake);
}

#[test]
fn wrong_bytes_are_removed() {
    for part in ["/blob/", "/resolve/"] {
        let (scratch, fake) = (Scratch::new(), FakeHub::model());
        let server = serve(&fake, move |request, mut reply| {
            if request.is("GET", part)
                && let Some(last) = reply.body.last_mut()
            {
                *last ^= 1;
            }
            reply
        });
        let error = resolve(&hub(&scratch, &server)).unwrap_err();
        let HubError::Checksum { file, expected, .. } = &error else {
            panic!("{error}");
        };
        assert_eq!(*expected, fake.etag(file));
        assert!(!scratch.partial(expected).exists() && !scratch.blob(expected).exists());
    }
}

#[test]
fn wrong_lengths_are_refused() {
    for change in [-1, 1] {
        let (scratch, fake) = (Scratch::new(), FakeHub::model());
        let server = serve(&fake, move |request, mut reply| {
            if request.is("GET", "/blob/") {
                let length = (reply.body.len() as i64 + change) as usize;
                reply.body.resize(length, 0);
            }
            reply
        });
        let error = resolve(&hub(&scratch, &server)).unwrap_err();
        assert!(matches!(error, HubError::LengthMismatch { .. }), "{error}");
    }
    // Without an announcement: chunked, and longer than the hub said.
    let (scratch, fake) = (Scratch::new(), FakeHub::model());
    let server = serve(&fake, |request, reply| {
        if !request.is("GET", "/blob/") {
            return reply;
        }
        let mut body = format!("{:x}\r\n", reply.body.len() + 3).into_bytes();
        body.extend_from_slice(&reply.body);
        body.extend_from_slice(b"abc\r\n0\r\n\r\n");
        Reply::new(200).with("Transfer-Encoding", "chunked").body(body)
    });
    let error = resolve(&hub(&scratch, &server)).unwrap_err();
    assert!(matches!(error, HubError::LengthMismatch { .. }), "{error}");
}

#[test]
fn absurd_sizes_are_refused_before_downloading() {
    let sizes = [("model.safetensors", "1152921504606846976"), ("tokenizer.json", "99999999999")];
    for (name, size) in sizes {
        let (scratch, fake) = (Scratch::new(), FakeHub::model());
        let server = serve(&fake, move |request, mut reply| {
            if request.is("HEAD", name) {
                reply.headers.retain(|(header, _)| header != "X-Linked-Size");
                reply = reply.with("X-Linked-Size", size);
            }
            reply
        });
        let error = resolve(&hub(&scratch, &server)).unwrap_err();
        match name {
            "tokenizer.json" => assert!(matches!(error, HubError::TooLarge { .. }), "{error}"),
            _ => assert!(matches!(error, HubError::DiskSpace { .. }), "{error}"),
        }
        assert_eq!(server.count("GET", "/blob/"), 0);
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_is_named() {
    let (scratch, fake) = (Scratch::new(), FakeHub::model());
    fs::create_dir_all(scratch.repository().join("blobs")).unwrap();
    let partial = scratch.partial(&fake.etag("model.safetensors"));
    std::os::unix::fs::symlink("/dev/full", &partial).unwrap();
    let server = serve(&fake, |_, reply| reply);
    let error = resolve(&hub(&scratch, &server)).unwrap_err();
    assert!(matches!(&error, HubError::DiskFull { path } if *path == partial), "{error}");
}

#[test]
fn no_network_says_what_to_do() {
    let scratch = Scratch::new();
    let error = resolve(&Hub::new(config(&scratch, &closed_port()))).unwrap_err();
    assert!(matches!(error, HubError::Network { .. }), "{error}");
    let text = error.to_string();
    for word in ["HF_HUB_OFFLINE", "local path", "HF_ENDPOINT"] {
        assert!(text.contains(word), "{text}");
    }
}

#[test]
fn the_token_stays_with_its_origin() {
    let (scratch, fake) = (Scratch::new(), FakeHub::model());
    let cdn = serve(&fake, |_, reply| reply);
    let mut with_cdn = fake.clone();
    with_cdn.cdn = cdn.url();
    let server = serve(&with_cdn, |_, reply| reply);
    let mut config = config(&scratch, &server.url());
    config.token = Token::new("hf_secret\n", "HF_TOKEN");
    assert_model(&resolve(&Hub::new(config)).unwrap(), &fake);
    let sent = |server: &Server| -> Vec<Option<String>> {
        let requests = server.requests();
        requests.iter().map(|r| r.header("authorization").map(str::to_string)).collect()
    };
    assert!(sent(&server).iter().all(|token| token.as_deref() == Some("Bearer hf_secret")));
    assert_eq!(sent(&cdn), [None, None]);
}

#[test]
fn a_redirect_loop_ends() {
    let scratch = Scratch::new();
    let server = Server::start(|request| Reply::new(302).with("Location", &request.path));
    let error = resolve(&hub(&scratch, &server)).unwrap_err();
    assert!(matches!(error, HubError::Protocol { .. }), "{error}");
    assert!(server.requests().len() < 20);
}

#[test]
fn a_redirect_to_a_file_is_refused() {
    let scratch = Scratch::new();
    for place in ["file:///etc/passwd", "gopher://127.0.0.1/", "http://", "http://[::", "\t"] {
        let server = Server::start(move |_| Reply::new(302).with("Location", place));
        let error = resolve(&hub(&scratch, &server)).unwrap_err();
        assert!(matches!(error, HubError::Protocol { .. }), "{place}: {error}");
    }
}

#[test]
fn an_index_cannot_name_files_elsewhere() {
    let long = format!("{}.safetensors", "a".repeat(300));
    let names = [
        "../../../evil.safetensors",
        "/etc/evil.safetensors",
        "a/../../evil.safetensors",
        "a\\evil.safetensors",
        "a\u{0}.safetensors",
        "./evil.safetensors",
        "config.json",
        "",
        &long,
    ];
    for name in names {
        let (scratch, mut fake) = (Scratch::new(), FakeHub::model());
        fake.files.retain(|(name, ..)| *name != "model.safetensors");
        let index = serde_json::json!({"weight_map": {"a": name}}).to_string();
        fake.files.push(("model.safetensors.index.json", index.into_bytes(), false));
        let server = serve(&fake, |_, reply| reply);
        let error = resolve(&hub(&scratch, &server)).unwrap_err();
        assert!(matches!(error, HubError::UnsafeFileName { .. }), "{name:?}: {error}");
        assert_eq!(fs::read_dir(&scratch.0).unwrap().count(), 1);
    }
    for index in
        ["", "[", "{}", "{\"weight_map\":{}}", "{\"weight_map\":{\"a\":1}}", "{\"weight_map\":[]}"]
    {
        let (scratch, mut fake) = (Scratch::new(), FakeHub::model());
        fake.files.retain(|(name, ..)| *name != "model.safetensors");
        fake.files.push(("model.safetensors.index.json", index.into(), false));
        let server = serve(&fake, |_, reply| reply);
        let error = resolve(&hub(&scratch, &server)).unwrap_err();
        assert!(matches!(error, HubError::BadIndex { .. }), "{index:?}: {error}");
    }
}

#[test]
fn answers_that_are_not_the_hubs_are_refused() {
    let deep = "[".repeat(100_000);
    let commit = "../../../../0123456789abcdef0123456789ab";
    let listings = [
        "<html>".to_string(),
        "{}".to_string(),
        "{\"sha\":1}".to_string(),
        format!("{{\"sha\":\"{commit}\"}}"),
        deep,
    ];
    for listing in listings {
        let scratch = Scratch::new();
        let server = Server::start(move |_| Reply::new(200).body(listing.clone()));
        let error = resolve(&hub(&scratch, &server)).unwrap_err();
        assert!(matches!(error, HubError::Protocol { .. }), "{error}");
    }
    // The ETag becomes a file's name.
    for etag in ["\"../../../evil\"", "\"\"", "a/b", ".hidden", "\"a b\""] {
        let (scratch, fake) = (Scratch::new(), FakeHub::model());
        let server = serve(&fake, move |request, mut reply| {
            if request.method == "HEAD" {
                reply.headers.retain(|(name, _)| !name.to_lowercase().contains("etag"));
                reply = reply.with("ETag", etag);
            }
            reply
        });
        let error = resolve(&hub(&scratch, &server)).unwrap_err();
        assert!(matches!(error, HubError::Protocol { .. }), "{etag}: {error}");
    }
    // Another commit than the one that was pinned.
    let scratch = Scratch::new();
    let server = serve(&FakeHub::model(), |_, reply| reply);
    let other = "f".repeat(40);
    let listing = format!("{{\"sha\":\"{other}\",\"siblings\":[]}}");
    let lying = Server::start(move |_| Reply::new(200).body(listing.clone()));
    let spec = format!("acme/judge@{COMMIT}");
    let error = hub(&scratch, &lying).resolve_model(&spec, &mut |_| {}).unwrap_err();
    assert!(matches!(error, HubError::Protocol { .. }), "{error}");
    drop(server);
}

#[test]
fn https_to_a_server_without_tls_is_an_error() {
    let scratch = Scratch::new();
    let server = Server::start(|_| Reply::new(200));
    let endpoint = format!("https://{}", server.address);
    let error = resolve(&Hub::new(config(&scratch, &endpoint))).unwrap_err();
    // Network: the server may close before it answers in its own language.
    let expected = matches!(
        error,
        HubError::Tls { .. }
            | HubError::Network { .. }
            | HubError::TlsUnsupported { .. }
            | HubError::Timeout { .. }
    );
    assert!(expected, "{error}");
}

#[test]
fn the_proxy_of_the_environment_is_used() {
    let scratch = Scratch::new();
    let proxy = Server::start(|_| Reply::new(403));
    let mut config = config(&scratch, "http://hub.invalid");
    let address = format!("http://user:pass@{}", proxy.address);
    config.proxy = Some(("http_proxy".to_string(), address));
    config.retry.attempts = 1;
    let error = resolve(&Hub::new(config.clone())).unwrap_err().to_string();
    assert_eq!(proxy.requests().len(), 1, "{error}");
    assert!(!error.contains("pass"), "{error}");
    // Except for the hosts of NO_PROXY.
    let direct = Server::start(|_| Reply::new(404));
    config.endpoint = direct.url();
    config.no_proxy = "example.com, 127.0.0.1".to_string();
    let error = resolve(&Hub::new(config)).unwrap_err();
    assert!(matches!(error, HubError::RepositoryNotFound { .. }), "{error}");
    assert_eq!((proxy.requests().len(), direct.requests().len()), (1, 1));
}

#[test]
fn unusable_settings_are_named() {
    let scratch = Scratch::new();
    let base = config(&scratch, "http://127.0.0.1:9");
    let certificates = scratch.0.join("roots.pem");
    fs::write(&certificates, "no certificate").unwrap();
    let mut cases = vec![base.clone(); 5];
    cases[0].endpoint = "huggingface.co".to_string();
    cases[1].endpoint = "ftp://huggingface.co".to_string();
    cases[2].token = Token::new("hf secret", "HF_TOKEN");
    cases[3].proxy = Some(("HTTPS_PROXY".to_string(), "http://user:secret@".to_string()));
    cases[4].certificates = Some(("SSL_CERT_FILE".to_string(), certificates));
    for (case, variable) in cases.into_iter().zip([
        "HF_ENDPOINT",
        "HF_ENDPOINT",
        "HF_TOKEN",
        "HTTPS_PROXY",
        "SSL_CERT_FILE",
    ]) {
        let error = resolve(&Hub::new(case)).unwrap_err();
        assert!(matches!(&error, HubError::BadSetting { .. }), "{error}");
        let text = error.to_string();
        assert!(text.starts_with(variable) && !text.contains("secret"), "{text}");
    }
    let mut homeless = base;
    homeless.cache = None;
    let error = resolve(&Hub::new(homeless)).unwrap_err();
    assert!(matches!(error, HubError::NoCacheDirectory), "{error}");
}

#[test]
fn a_token_that_can_be_read_on_its_way_is_warned_of_once() {
    let warnings = |endpoint: &str, token: Option<&str>| {
        let scratch = Scratch::new();
        let mut config = config(&scratch, endpoint);
        config.token = token.and_then(|token| Token::new(token, "HF_TOKEN"));
        let mut events = Vec::new();
        Hub::new(config).resolve_model("acme/judge", &mut record(&mut events)).unwrap_err();
        let warnings = events.into_iter().filter(|event| event.contains("Warning"));
        warnings.collect::<Vec<_>>()
    };
    let local = closed_port();
    // Not a loopback address, though nothing leaves this machine.
    let other = local.replace("127.0.0.1", "user:secret@0.0.0.0");
    let said = warnings(&other, Some("hf_x"));
    assert!(
        said.len() == 1 && said[0].contains("HF_TOKEN") && said[0].contains("use https"),
        "{said:?}"
    );
    assert!(!said[0].contains("secret") && !said[0].contains("hf_x"), "{said:?}");
    assert!(warnings(&other, None).is_empty());
    assert!(warnings(&local, Some("hf_x")).is_empty());
    assert!(warnings(&local.replace("127.0.0.1", "localhost"), Some("hf_x")).is_empty());
    let overheard = |url: &str| address::Origin::of(&url.parse().unwrap()).unwrap().is_overheard();
    assert!(
        ["http://hub.example", "http://10.0.0.1:8080", "http://[2001:db8::1]/"]
            .map(overheard)
            .iter()
            .all(|o| *o)
    );
    assert!(
        ["https://hub.example", "http://[::1]:80", "http://x.localhost", "http://127.9.9.9"]
            .map(overheard)
            .iter()
            .all(|o| !o)
    );
}
