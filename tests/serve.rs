//! `j1 serve` over its socket: answers, errors, streams, clients that go, the end.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::cli::{fails, j1, model, stdout};

/// A server of the tiny model, which ends with the test.
struct Server {
    child: Child,
    address: String,
    /// What it writes to stderr.
    log: BufReader<std::process::ChildStderr>,
}

/// A template of few tokens: the tiny model decodes a token a step.
fn short_template(directory: &Path) -> String {
    let path = directory.join("short.jinja");
    fs::write(
        &path,
        "---system---\n---user---\n{{ conversation }}|{{ response_a }}|{{ response_b }}",
    )
    .unwrap();
    path.display().to_string()
}

impl Server {
    fn start(more: &[&str]) -> Server {
        let mut child = Command::new(env!("CARGO_BIN_EXE_j1"))
            .args([
                "serve",
                "--model",
                &model(),
                "--port",
                "0",
                "--threads",
                "1",
                "--served-model-name",
                "tiny",
                "--temperature",
                "1",
            ])
            .args(more)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        while !line.starts_with("serving ") {
            line.clear();
            assert!(log.read_line(&mut line).unwrap() > 0, "it ended");
        }
        let address = line.split("http://").nth(1).unwrap().split(';').next().unwrap().to_owned();
        Server { child, address, log }
    }

    fn connect(&self, request: &str) -> TcpStream {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        stream
    }

    /// Status and body of a request with these headers.
    fn send(&self, method: &str, path: &str, headers: &str, body: &str) -> (u16, String) {
        let length = body.len();
        let host = if headers.contains("Host:") { "" } else { "Host: localhost\r\n" };
        let request = format!(
            "{method} {path} HTTP/1.1\r\n{host}Connection: close\r\nContent-Length: {length}\r\n{headers}\r\n{body}"
        );
        let mut answer = String::new();
        self.connect(&request).read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
        (status.unwrap_or(0), if chunked { unchunked(body) } else { body.to_owned() })
    }

    fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let (status, text) =
            self.send("POST", path, "Content-Type: application/json\r\n", &body.to_string());
        (status, serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}")))
    }

    /// The value of a metric.
    fn metric(&self, name: &str) -> f64 {
        let (_, text) = self.send("GET", "/metrics", "", "");
        let line = text.lines().find(|line| line.split(' ').next() == Some(name));
        line.unwrap_or_else(|| panic!("no {name}: {text}"))
            .rsplit(' ')
            .next()
            .unwrap()
            .parse()
            .unwrap()
    }

    /// Waits until nothing runs, and all memory is given back.
    fn wait_until_idle(&self) {
        let begin = Instant::now();
        let busy = || {
            ["vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"]
                .iter()
                .any(|name| self.metric(name) > 0.0)
        };
        while busy() {
            assert!(begin.elapsed() < Duration::from_secs(30), "something still runs");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The content of a chunked body.
fn unchunked(mut body: &str) -> String {
    let mut content = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        content += &rest[..size];
        body = &rest[size..];
        body = body.strip_prefix("\r\n").unwrap_or(body);
    }
    content
}

/// The objects of a stream of events, which ends as it should.
fn events(body: &str) -> Vec<Value> {
    let mut events: Vec<&str> =
        body.split("\n\n").filter(|event| !event.is_empty() && !event.starts_with(':')).collect();
    assert_eq!(events.pop(), Some("data: [DONE]"), "{body}");
    events
        .iter()
        .map(|event| serde_json::from_str(event.strip_prefix("data: ").unwrap()).unwrap())
        .collect()
}

fn chat(more: Value) -> Value {
    let mut body =
        json!({"messages": [{"role": "user", "content": "Hi"}], "seed": 4, "max_tokens": 12});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

#[test]
fn completions_have_openais_form_and_their_own_bytes() {
    let server = Server::start(&[]);
    let (status, answer) = server.post(
        "/v1/chat/completions",
        &chat(json!({"n": 3, "max_seq_length": 6144, "max_prompt_length": 2048})),
    );
    assert_eq!(status, 200, "unknown fields are left alone: {answer}");
    assert_eq!((&answer["object"], &answer["model"]), (&json!("chat.completion"), &json!("tiny")));
    let choices = answer["choices"].as_array().unwrap();
    let text = |index: usize| choices[index]["message"]["content"].as_str().unwrap().to_owned();
    assert_eq!(choices.len(), 3);
    assert_ne!(text(0), text(1), "samples of one seed differ");
    let usage = &answer["usage"];
    let tokens = |key: &str| usage[key].as_u64().unwrap();
    assert_eq!(tokens("total_tokens"), tokens("prompt_tokens") + tokens("completion_tokens"));
    // The same bytes again, beside others, in parts, and as a stream.
    let parts = json!([{"role": "user", "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]}]);
    std::thread::scope(|scope| {
        let others: Vec<_> = (0..4)
            .map(|seed| {
                let server = &server;
                scope.spawn(move || {
                    server.post("/v1/chat/completions", &chat(json!({"seed": seed, "n": 4})))
                })
            })
            .collect();
        let (_, again) =
            server.post("/v1/chat/completions", &chat(json!({"n": 3, "messages": parts})));
        assert_eq!(again["choices"], answer["choices"]);
        let body = chat(json!({"n": 3, "stream": true, "stream_options": {"include_usage": true}}))
            .to_string();
        let (status, body) = server.send(
            "POST",
            "/v1/chat/completions",
            "Content-Type: application/json\r\n",
            &body,
        );
        let events = events(&body);
        assert_eq!(status, 200);
        let mut texts = vec![String::new(); 3];
        for choice in events.iter().flat_map(|event| event["choices"].as_array().unwrap()) {
            texts[choice["index"].as_u64().unwrap() as usize] +=
                choice["delta"]["content"].as_str().unwrap_or_default();
        }
        assert_eq!(texts, [text(0), text(1), text(2)]);
        assert_eq!(&events.last().unwrap()["usage"], usage);
        others.into_iter().for_each(|other| assert_eq!(other.join().unwrap().0, 200));
    });
    // Without a seed, samples of equal requests differ.
    let free =
        |_| server.post("/v1/chat/completions", &chat(json!({"seed": null}))).1["choices"].clone();
    let [one, other] = [0, 1].map(free);
    assert_ne!(one, other);
    // A stop string ends a choice, which does not have it.
    let first = text(0);
    let stop: String = first.chars().skip(2).take(2).collect();
    let (_, stopped) = server.post(
        "/v1/chat/completions",
        &chat(json!({"stop": [stop], "logprobs": true, "top_logprobs": 2})),
    );
    let choice = &stopped["choices"][0];
    assert_eq!((&choice["finish_reason"], &choice["stop_reason"]), (&json!("stop"), &json!(stop)));
    let kept = choice["message"]["content"].as_str().unwrap();
    assert!(first.starts_with(kept) && !kept.contains(&stop), "{kept:?} of {first:?}");
    let log_probs = choice["logprobs"]["content"].as_array().unwrap();
    assert!(log_probs.iter().all(|token| token["top_logprobs"].as_array().unwrap().len() == 2
        && token["logprob"].as_f64().unwrap() <= 0.0));
    // Several prompts, as text and as ids.
    let (status, many) = server.post(
        "/v1/completions",
        &json!({"prompt": ["a b", "c"], "n": 2, "seed": 1, "max_tokens": 3, "logprobs": 1}),
    );
    let indices: Vec<_> = many["choices"]
        .as_array()
        .unwrap()
        .iter()
        .map(|choice| choice["index"].as_u64().unwrap())
        .collect();
    assert_eq!((status, indices), (200, vec![0, 1, 2, 3]), "{many}");
    let (status, ids) = server.post("/v1/completions", &json!({"prompt": [65, 66, 67]}));
    assert_eq!((status, ids["usage"]["prompt_tokens"].as_u64()), (200, Some(3)));
    server.wait_until_idle();
}

#[test]
fn a_judgement_is_that_of_the_command_line() {
    let scratch = tempfile::tempdir().unwrap();
    let template = short_template(scratch.path());
    let server =
        Server::start(&["--template", &template, "--max-new-tokens", "20", "--reference", "none"]);
    let judge = [
        "judge",
        "--model",
        &model(),
        "--prompt",
        "Name a fruit",
        "--a",
        "Cherry",
        "--b",
        "The sky",
    ];
    let more = [
        "--order",
        "both",
        "--votes",
        "2",
        "--template",
        &template,
        "--max-new-tokens",
        "20",
        "--temperature",
        "1",
        "--json",
    ];
    let expected: Value =
        serde_json::from_str(&stdout(&j1(&[&judge[..], &more].concat()))).unwrap();
    let item = json!({"prompt": "Name a fruit", "responses": ["Cherry", "The sky"], "votes": 2, "return": ["text"]});
    let (status, answer) = server.post("/v1/judge", &item);
    assert_eq!(status, 200, "{answer}");
    let all = |list: &Value, key: &str| -> Vec<Value> {
        list.as_array().unwrap().iter().map(|one| one[key].clone()).collect()
    };
    let trimmed = |texts: Vec<Value>| -> Vec<String> {
        texts.iter().map(|text| text.as_str().unwrap().trim().to_owned()).collect()
    };
    let (ours, theirs) = (&answer["judgements"], &expected["judgements"]);
    assert_eq!(trimmed(all(ours, "text")), trimmed(all(theirs, "text")));
    assert_eq!(all(ours, "order"), [json!([0, 1]), json!([0, 1]), json!([1, 0]), json!([1, 0])]);
    assert_eq!((&answer["judgements_made"], &answer["winner"]), (&json!(4), &Value::Null));

    // A batch has the same of each, whatever else is in it; its items share what stands beside them.
    let other =
        json!({"messages": [{"role": "user", "content": "x"}], "responses": ["a", "b", "c"]});
    let batch = json!({"items": [other, item], "return": ["text"], "votes": 2});
    let (status, list) = server.post("/v1/judge/batch", &batch);
    assert_eq!(status, 200, "{list}");
    assert_eq!(list["data"][1]["judgements"], answer["judgements"]);
    assert_eq!(list["data"][0]["judgements"].as_array().unwrap().len(), 3 * 2 * 2);
    let mut streamed = batch.clone();
    streamed["stream"] = json!(true);
    let (_, lines) = server.send(
        "POST",
        "/v1/judge/batch",
        "Content-Type: application/json\r\n",
        &streamed.to_string(),
    );
    let mut lines: Vec<Value> =
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    lines.sort_by_key(|line| line["index"].as_u64());
    assert_eq!(lines[1]["judgements"], answer["judgements"]);

    // The forms of others.
    let (status, reward) = server.post(
        "/get_reward",
        &json!({"query": ["Q: one<|im_end|>"], "prompts": ["Q: "], "labels": ["two"]}),
    );
    assert_eq!(
        (status, reward),
        (200, json!({"rewards": [0.0], "scores": [0.5], "extra_logs": {"parsed": [0.0]}}))
    );
    let text = "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\nA<|im_end|>";
    let (status, classes) =
        server.post("/classify", &json!({"model": "tiny", "input": text, "activation": false}));
    assert_eq!((status, &classes["data"][0]["probs"]), (200, &json!([0.0])), "{classes}");
    let (status, ranked) = server.post(
        "/v1/rerank",
        &json!({"query": "Q", "documents": ["a", {"text": "b"}, "c"], "top_n": 2}),
    );
    assert_eq!((status, ranked["results"].as_array().unwrap().len()), (200, 2), "{ranked}");
    server.wait_until_idle();
}

#[test]
fn what_is_wrong_is_named_and_harms_nobody() {
    let scratch = tempfile::tempdir().unwrap();
    let keys = scratch.path().join("keys");
    fs::write(&keys, "secret-1\nsecret-2\n").unwrap();
    let server =
        Server::start(&["--max-body", "20KB", "--api-key-file", &keys.display().to_string()]);
    let json_type = "Content-Type: application/json\r\n";
    let key = format!("{json_type}Authorization: Bearer secret-2\r\n");
    let post = |path: &str, body: &str| server.send("POST", path, &key, body);
    for (path, body, status, says) in [
        ("/v1/chat/completions", "{", 400, "not JSON"),
        ("/v1/chat/completions", "[]", 400, "not a JSON object"),
        ("/v1/chat/completions", "{}", 400, "messages"),
        (
            "/v1/chat/completions",
            r#"{"messages":[{"role":"user","content":7}]}"#,
            400,
            "messages[0]",
        ),
        (
            "/v1/chat/completions",
            r#"{"messages":[{"role":"user","content":"x"}],"model":"gpt"}"#,
            404,
            "`gpt`",
        ),
        (
            "/v1/chat/completions",
            r#"{"messages":[{"role":"user","content":"x"}],"temperature":-1}"#,
            400,
            "temperature",
        ),
        (
            "/v1/chat/completions",
            r#"{"messages":[{"role":"user","content":"x"}],"repetition_penalty":1000}"#,
            400,
            "repetition_penalty",
        ),
        (
            "/v1/chat/completions",
            r#"{"messages":[{"role":"user","content":"x"}],"logprobs":true,"top_logprobs":20,"n":8,"max_tokens":9000}"#,
            400,
            "log-probabilities",
        ),
        ("/v1/completions", r#"{"prompt":[999999],"stream":true}"#, 400, "999999"),
        (
            "/v1/judge/batch",
            r#"{"items":[{"prompt":"x","responses":["a","b"],"max_tokens":99999}],"stream":true}"#,
            400,
            "maximum context length",
        ),
        ("/v1/judge", r#"{"prompt":"x","responses":["a","b"],"top_p":0.5}"#, 400, "top_p"),
        (
            "/get_reward",
            r#"{"query":["y"],"prompts":["x"],"labels":["z"]}"#,
            400,
            "does not begin with its prompt",
        ),
        (
            "/v1/chat/completions",
            r#"{"messages":[{"role":"user","content":"x"}],"n":0}"#,
            400,
            "n: ",
        ),
        (
            "/v1/chat/completions",
            r#"{"messages":[{"role":"user","content":"x"}],"logit_bias":{"5":1}}"#,
            400,
            "logit_bias",
        ),
        (
            "/v1/chat/completions",
            r#"{"messages":[{"role":"user","content":"x"}],"response_format":{"type":"json_object"}}"#,
            400,
            "response_format",
        ),
        (
            "/v1/chat/completions",
            r#"{"messages":[{"role":"user","content":"x"}],"stop":[""]}"#,
            400,
            "stop",
        ),
        (
            "/v1/chat/completions",
            r#"{"messages":[{"role":"user","content":"x"}],"max_tokens":99999}"#,
            400,
            "maximum context length",
        ),
        (
            "/v1/chat/completions",
            r#"{"messages":[{"role":"user","content":"x"}],"stream_options":{}}"#,
            400,
            "stream_options",
        ),
        (
            "/v1/chat/completions",
            r#"{"messages":[{"role":"user","content":"x"}],"top_logprobs":2}"#,
            400,
            "logprobs: true",
        ),
        ("/v1/completions", r#"{"prompt":[999999]}"#, 400, "999999"),
        ("/v1/completions", r#"{"prompt":[]}"#, 400, "prompt"),
        ("/v1/completions", r#"{"prompt":"x","echo":true}"#, 400, "echo"),
        ("/v1/judge", r#"{"prompt":"x","responses":["a"]}"#, 400, "responses"),
        (
            "/v1/judge",
            r#"{"prompt":"x","responses":["a","b"],"orders":"up"}"#,
            400,
            "both, given, random",
        ),
        (
            "/v1/judge/batch",
            r#"{"items":[{"prompt":"x","responses":["a","b"]},{"prompt":"x"}]}"#,
            400,
            "items[1]",
        ),
        ("/get_reward", r#"{"query":["x"],"prompts":["x"]}"#, 400, "labels"),
        ("/classify", r#"{"input":"x"}"#, 400, "--reference"),
        ("/v1/rerank", r#"{"query":"x","documents":["a"]}"#, 400, "documents"),
        ("/v1/nothing", "{}", 404, "/v1/nothing"),
        ("/v1/models", "{}", 405, "GET"),
    ] {
        let (got, text) = post(path, body);
        assert_eq!(got, status, "{path} {body}: {text}");
        let error: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(error["error"]["code"], json!(status), "{text}");
        assert!(
            error["error"]["message"].as_str().unwrap().contains(says),
            "{path} {body}: {text}"
        );
    }
    let deep = format!("{}1{}", "[".repeat(9000), "]".repeat(9000));
    assert_eq!(post("/v1/judge", &deep).0, 400);
    assert_eq!(post("/v1/judge", &"x".repeat(30_000)).0, 413);
    let body = chat(json!({})).to_string();
    assert_eq!(server.send("POST", "/v1/chat/completions", json_type, &body).0, 401);
    let wrong = format!("{json_type}Authorization: Bearer secret-3\r\n");
    assert_eq!(server.send("POST", "/v1/chat/completions", &wrong, &body).0, 401);
    assert_eq!(server.send("GET", "/health", "", "").0, 200, "open to all");
    let text = key.replace("application/json", "text/plain");
    assert_eq!(server.send("POST", "/v1/chat/completions", &text, &body).0, 400);
    let host = format!("{key}Host: evil.example\r\n");
    assert_eq!(server.send("POST", "/v1/chat/completions", &host, &body).0, 403);
    // What is no HTTP, half a request, and headers without an end.
    for bytes in [
        "\u{1}\u{2}\r\n\r\n",
        "POST /v1/judge HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n{",
        "GET / HTTP/1.1\r\nX: ",
    ] {
        drop(server.connect(bytes));
    }
    let mut huge = server.connect("GET / HTTP/1.1\r\n");
    let _ = huge.write_all(format!("X: {}\r\n\r\n", "y".repeat(40_000)).as_bytes());
    let (status, text) = post("/v1/chat/completions", &body);
    assert_eq!(status, 200, "{text}");
    server.wait_until_idle();
}

/// Samples that end at a stop string, at a stop token and at their limit, side by side and in a queue: none is lost.
#[test]
fn samples_that_end_early_take_no_other_along() {
    let server = Server::start(&["--batch", "5"]);
    let ask = |seed: u64| {
        chat(
            json!({"seed": seed, "n": 24, "max_tokens": 30, "stop": ["e", "s", "1"], "stop_token_ids": [33, 40]}),
        )
    };
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..4)
            .map(|seed| {
                let (server, ask) = (&server, &ask);
                scope.spawn(move || server.post("/v1/chat/completions", &ask(seed)))
            })
            .collect();
        for client in clients {
            let (status, answer) = client.join().unwrap();
            assert_eq!(
                (status, answer["choices"].as_array().map(Vec::len)),
                (200, Some(24)),
                "{answer}"
            );
        }
    });
    server.wait_until_idle();
    assert_eq!(server.metric("j1:requests_cancelled_total"), 0.0);
}

/// Clients that go while their requests wait or are decoded: pages and places come back, and another one's bytes do not change.
#[test]
fn a_client_that_goes_takes_its_requests_along() {
    let server = Server::start(&["--batch", "2"]);
    let (_, alone) = server.post("/v1/chat/completions", &chat(json!({})));
    let long = |stream: bool| {
        chat(json!({"n": 2, "max_tokens": 30000, "stream": stream, "stop_token_ids": []}))
            .to_string()
    };
    let request = |body: &str| {
        format!(
            "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    // The tiny model ends now and then by itself: many tries, of which most run when their client goes.
    for stream in [true, false, true, false] {
        let running: Vec<TcpStream> =
            (0..3).map(|_| server.connect(&request(&long(stream)))).collect();
        std::thread::sleep(Duration::from_millis(150));
        drop(running);
    }
    let (_, again) = server.post("/v1/chat/completions", &chat(json!({})));
    assert_eq!(again["choices"], alone["choices"]);
    server.wait_until_idle();
    assert!(server.metric("j1:requests_cancelled_total") > 0.0);
}

#[cfg(unix)]
#[test]
fn a_signal_lets_what_runs_end_and_takes_nothing_new() {
    let mut server = Server::start(&["--drain", "20"]);
    let body = chat(json!({"max_tokens": 300, "stream": true, "n": 4})).to_string();
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut stream = server.connect(&request);
    let mut first = [0; 64];
    stream.read_exact(&mut first).unwrap();
    let pid = server.child.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("data: [DONE]"), "{rest}");
    let status = server.child.wait().unwrap();
    assert_eq!(status.code(), Some(143));
    assert!(TcpStream::connect(&server.address).is_err());
    let mut log = String::new();
    server.log.read_to_string(&mut log).unwrap();
    assert!(!log.contains("panicked"), "{log}");
}

#[test]
fn a_server_that_cannot_be_is_not_begun() {
    let model = model();
    let serve = ["serve", "--model", &model, "--threads", "1"];
    let with = |more: &[&'static str]| [&serve[..], more].concat();
    fails(&with(&["--host", "0.0.0.0"]), 1, &["--public"]);
    fails(&with(&["--api-key-file", "/nothing"]), 1, &["--api-key-file", "/nothing"]);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    fails(&[&serve[..], &["--port", &port]].concat(), 1, &["cannot listen", &port]);
}
