//! A hub of one repository on 127.0.0.1, and whatever misbehavior a test puts before it.

use crate::hub::checksum::Checksum;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// A request as it came in.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) method: String,
    pub(super) path: String,
    headers: Vec<(String, String)>,
}

impl Request {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.iter();
        headers.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    pub(super) fn is(&self, method: &str, part: &str) -> bool {
        self.method == method && self.path.contains(part)
    }

    /// The first byte of `Range: bytes=N-`.
    pub(super) fn offset(&self) -> usize {
        let range = self.header("range").and_then(|r| r.strip_prefix("bytes="));
        range.map_or(0, |r| r.trim_end_matches('-').parse().unwrap())
    }
}

/// An answer to send.
#[derive(Clone, Debug)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
    /// Close after this many bytes of the body.
    pub(super) cut: Option<usize>,
    /// Stay silent so long, then close without an answer.
    pub(super) silence: Option<Duration>,
}

impl Reply {
    pub(super) fn new(status: u16) -> Reply {
        Reply { status, headers: Vec::new(), body: Vec::new(), cut: None, silence: None }
    }

    pub(super) fn with(mut self, name: &str, value: impl ToString) -> Reply {
        self.headers.push((name.to_string(), value.to_string()));
        self
    }

    pub(super) fn body(mut self, bytes: impl Into<Vec<u8>>) -> Reply {
        self.body = bytes.into();
        self
    }
}

/// A thread that accepts, a thread a connection, one request a connection.
pub(super) struct Server {
    pub(super) address: SocketAddr,
    log: Arc<Mutex<Vec<Request>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub(super) fn start(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let answer = Arc::new(answer);
        let (requests, stopped) = (log.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                let (requests, answer) = (requests.clone(), answer.clone());
                // A client that hangs up ends its thread only.
                std::thread::spawn(move || serve(stream.ok()?, &requests, &*answer));
            }
        });
        Server { address, log, stop, thread: Some(thread) }
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(super) fn requests(&self) -> Vec<Request> {
        self.log.lock().unwrap().clone()
    }

    pub(super) fn count(&self, method: &str, part: &str) -> usize {
        let requests = self.requests();
        requests.iter().filter(|r| r.is(method, part)).count()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.address);
        self.thread.take().unwrap().join().unwrap();
    }
}

fn serve(
    stream: TcpStream,
    log: &Mutex<Vec<Request>>,
    answer: &dyn Fn(&Request) -> Reply,
) -> Option<()> {
    stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
    let mut reader = BufReader::new(stream.try_clone().ok()?.take(64 * 1024));
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split_whitespace();
    let (method, path) = (words.next()?.to_string(), words.next()?.to_string());
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        match line.trim_end().split_once(':') {
            Some((name, value)) => headers.push((name.to_string(), value.trim().to_string())),
            None => break,
        }
    }
    let request = Request { method, path, headers };
    log.lock().unwrap().push(request.clone());
    let reply = answer(&request);
    if let Some(silence) = reply.silence {
        std::thread::sleep(silence);
        return None;
    }
    let mut head = format!("HTTP/1.1 {} Status\r\nConnection: close\r\n", reply.status);
    let has_length = |(name, _): &(String, String)| {
        name.eq_ignore_ascii_case("content-length")
            || name.eq_ignore_ascii_case("transfer-encoding")
    };
    if !reply.headers.iter().any(has_length) {
        head.push_str(&format!("Content-Length: {}\r\n", reply.body.len()));
    }
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    let mut stream = stream;
    stream.write_all(head.as_bytes()).ok()?;
    if request.method != "HEAD" {
        let end = reply.cut.unwrap_or(reply.body.len());
        stream.write_all(&reply.body[..end]).ok()?;
    }
    Some(())
}

pub(super) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A repository's content at one commit, with answers as the hub gives them.
#[derive(Clone)]
pub(super) struct FakeHub {
    pub(super) id: &'static str,
    pub(super) commit: &'static str,
    /// Name, bytes, and whether they lie in LFS.
    pub(super) files: Vec<(&'static str, Vec<u8>, bool)>,
    /// Where LFS bytes are; the hub itself if empty.
    pub(super) cdn: String,
}

impl FakeHub {
    /// A small checkpoint.
    pub(super) fn model() -> FakeHub {
        let weights = (0..200_000u32).map(|i| (i * 7 % 251) as u8).collect();
        FakeHub {
            id: "acme/judge",
            commit: COMMIT,
            files: vec![
                (".gitattributes", b"*".to_vec(), false),
                ("config.json", b"{}".to_vec(), false),
                ("tokenizer.json", b"{\"model\":1}".to_vec(), true),
                ("tokenizer_config.json", b"{\"a\":1}".to_vec(), false),
                ("model.safetensors", weights, true),
            ],
            cdn: String::new(),
        }
    }

    pub(super) fn bytes(&self, name: &str) -> &[u8] {
        &self.files.iter().find(|(file, ..)| *file == name).unwrap().1
    }

    /// The ETag that the hub gives for a file.
    pub(super) fn etag(&self, name: &str) -> String {
        let (_, bytes, lfs) = self.files.iter().find(|(file, ..)| *file == name).unwrap();
        let digits = "0".repeat(if *lfs { 64 } else { 40 });
        let mut checksum = Checksum::of_etag(&digits, Some(bytes.len() as u64));
        checksum.update(bytes);
        checksum.finish().unwrap()
    }

    /// The answer of the hub.
    pub(super) fn answer(&self, request: &Request) -> Reply {
        let path = request.path.split('?').next().unwrap();
        if let Some(digest) = path.strip_prefix("/blob/") {
            let mut files = self.files.iter();
            let (name, ..) = files
                .find(|(name, ..)| self.etag(name) == digest)
                .expect("the client asks for blobs it was sent to");
            return ranged(self.bytes(name), request);
        }
        for kind in ["models", "datasets"] {
            let api = format!("/api/{kind}/{}/revision/", self.id);
            if let Some(revision) = path.strip_prefix(&api) {
                return match self.knows(revision) {
                    true => self.listing(),
                    false => Reply::new(404).with("X-Error-Code", "RevisionNotFound"),
                };
            }
        }
        let path = path.trim_start_matches("/datasets");
        let Some(rest) = path.strip_prefix(&format!("/{}/resolve/", self.id)) else {
            return Reply::new(404).with("X-Error-Code", "RepoNotFound");
        };
        let (revision, name) = rest.split_once('/').unwrap();
        if !self.knows(revision) {
            return Reply::new(404).with("X-Error-Code", "RevisionNotFound");
        }
        let Some((name, bytes, lfs)) = self.files.iter().find(|(file, ..)| *file == name) else {
            return Reply::new(404)
                .with("X-Error-Code", "EntryNotFound")
                .with("X-Repo-Commit", self.commit);
        };
        let etag = self.etag(name);
        if *lfs {
            let place = format!("{}/blob/{etag}?Signature=secret", self.cdn);
            Reply::new(302)
                .with("X-Repo-Commit", self.commit)
                .with("X-Linked-Etag", format!("\"{etag}\""))
                .with("X-Linked-Size", bytes.len())
                .with("Location", place)
        } else {
            ranged(bytes, request)
                .with("X-Repo-Commit", self.commit)
                .with("ETag", format!("W/\"{etag}\""))
        }
    }

    fn knows(&self, revision: &str) -> bool {
        ["main", "refs%2Fpr%2F1", self.commit].contains(&revision)
    }

    fn listing(&self) -> Reply {
        let names = self.files.iter().map(|(name, ..)| name);
        let files: Vec<String> = names.map(|n| format!("{{\"rfilename\":{n:?}}}")).collect();
        let (commit, files) = (self.commit, files.join(","));
        Reply::new(200).body(format!("{{\"sha\":\"{commit}\",\"siblings\":[{files}]}}"))
    }
}

/// All of the bytes, or from the requested one on.
fn ranged(bytes: &[u8], request: &Request) -> Reply {
    let (from, size) = (request.offset(), bytes.len());
    match (request.method.as_str(), from) {
        ("HEAD", _) => Reply::new(200).with("Content-Length", size),
        (_, 0) => Reply::new(200).body(bytes),
        (_, from) if from >= size => Reply::new(416),
        (_, from) => Reply::new(206)
            .with("Content-Range", format!("bytes {from}-{}/{size}", size - 1))
            .body(&bytes[from..]),
    }
}
