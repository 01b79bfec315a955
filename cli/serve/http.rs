//! Connections: what may connect, how much it may send, which path is which, and how the server ends.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    net::{IpAddr, SocketAddr},
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use engine::error::printable;
use http_body_util::{BodyExt, Limited};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Body as HttpBody, Bytes, Incoming},
    header::{
        ALLOW, AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE,
    },
    service::service_fn,
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::{
    net::TcpListener,
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use super::{
    Defaults, Served,
    body::{Body, UNREAD, json_response, text_response},
    completion::{self, Kind},
    error::ApiError,
    judging,
    metrics::Metrics,
    rewards::{self, Classify, Rerank},
    worker::Worker,
};
use crate::{
    Failure, interrupt,
    output::note,
    session::{JudgeRoom, Session},
};

/// Time in which the headers and the body of a request must arrive.
const HEADERS_TIME: Duration = Duration::from_secs(10);
const BODY_TIME: Duration = Duration::from_secs(60);
/// Bodies of the largest size that may be read at once.
const BODIES: usize = 16;
/// Bytes of a request's headers.
const HEADERS: usize = 16 << 10;

/// What clients may do, and for how long.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    pub(crate) body_bytes: usize,
    pub(crate) connections: usize,
    /// Sequences that wait.
    pub(crate) max_queue: usize,
    /// Estimated wait of a request that is still taken.
    pub(crate) max_wait_seconds: f64,
    /// Time that requests under way have to end when the server is told to.
    pub(crate) drain: Duration,
}

/// Where to listen, and what to serve.
pub(crate) struct Options {
    pub(crate) address: SocketAddr,
    pub(crate) names: Vec<String>,
    /// Digests of the keys; none: everybody may ask.
    pub(crate) keys: Vec<[u8; 32]>,
    pub(crate) defaults: Defaults,
    pub(crate) room: JudgeRoom,
    pub(crate) reference: Option<String>,
    pub(crate) limits: Limits,
    pub(crate) log_requests: bool,
}

/// A server's paths, with the method of each and what it is.
const PATHS: [(&str, &str, &str); 14] = [
    ("/", "GET", "this list"),
    ("/health", "GET", "200 while requests are taken"),
    ("/ping", "GET", "the same"),
    ("/version", "GET", "of this program"),
    ("/metrics", "GET", "counters, in Prometheus' form"),
    ("/v1/models", "GET", "the names of the model"),
    ("/v1/chat/completions", "POST", "as OpenAI's"),
    ("/v1/completions", "POST", "as OpenAI's"),
    ("/v1/judge", "POST", "2 to 8 replies, judged"),
    ("/v1/judge/batch", "POST", "many of them"),
    ("/v1/rerank", "POST", "replies by score, as Cohere's"),
    ("/rerank", "POST", "the same"),
    ("/get_reward", "POST", "as OpenRLHF asks"),
    ("/classify", "POST", "as verl asks"),
];

/// Serves until a signal comes. Returns when all is answered, or the time for that is over.
pub(crate) fn run(session: Session, options: Options, fingerprint: String) -> Result<(), Failure> {
    let session = Arc::new(session);
    let metrics = Arc::new(Metrics::default());
    let cache_tokens = cache_tokens(&session, options.room.options.cache_bytes);
    let generator = options.room.options.clone();
    let (worker, thread) = Worker::start(session.clone(), generator, metrics.clone())?;
    let served = Arc::new(Served {
        render_options: session.render_options(),
        session,
        worker,
        metrics,
        names: options.names.clone(),
        defaults: options.defaults,
        fingerprint,
        room: options.room.clone(),
        reference: options.reference.clone(),
        limits: options.limits.clone(),
        cache_tokens,
        bodies: Arc::new(Semaphore::new(BODIES * options.limits.body_bytes / 1024)),
        is_draining: Default::default(),
        random: Default::default(),
        drawn: Default::default(),
        started: super::now(),
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let tasks = tokio::task::LocalSet::new();
    let result = runtime.block_on(tasks.run_until(serve(served.clone(), Arc::new(options))));
    // Handlers that are still there are dropped, which cancels what they asked for; then the engine's thread ends.
    drop(tasks);
    drop(served);
    let _ = thread.join();
    result
}

/// Has the system end a connection whose other side takes nothing, or is no more.
#[cfg(target_os = "linux")]
fn give_up_on_the_silent(stream: &tokio::net::TcpStream) {
    let socket = socket2::SockRef::from(stream);
    // Without them such a connection keeps its place for longer; it does no other harm.
    let _ = socket.set_tcp_user_timeout(Some(UNREAD));
    let _ = socket.set_tcp_keepalive(&socket2::TcpKeepalive::new().with_time(UNREAD));
}

#[cfg(not(target_os = "linux"))]
fn give_up_on_the_silent(_: &tokio::net::TcpStream) {}

/// Tokens that a cache of so many bytes holds.
fn cache_tokens(session: &Session, bytes: usize) -> usize {
    use engine::model::kv_cache::{KvCache, PAGE};
    let model = &session.language_model.model;
    bytes / KvCache::page_bytes(model.config(), model.cache_dtype()) * PAGE
}

async fn serve(served: Arc<Served>, options: Arc<Options>) -> Result<(), Failure> {
    let listener = TcpListener::bind(options.address)
        .await
        .map_err(|error| format!("cannot listen on {}: {error}", options.address))?;
    let address = listener.local_addr()?;
    note(&format!(
        "serving {} on http://{address}; GET / lists the paths, Ctrl-C ends it",
        served.names[0]
    ));
    let stop = interrupt::flag();
    let (places, graceful) =
        (Arc::new(Semaphore::new(options.limits.connections)), GracefulShutdown::new());
    let mut tick = tokio::time::interval(Duration::from_millis(50));
    loop {
        let stream = tokio::select! {
            _ = tick.tick() => {
                if served.worker.state().is_dead {
                    // Whoever watches over this process starts it again.
                    return Err("the engine has ended; what it said is above".into());
                }
                match stop.load(Ordering::Relaxed) {
                    true => break,
                    false => continue,
                }
            }
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                // Out of descriptors, or a client that went at once: the next one may do.
                Err(error) => {
                    note(&format!("warning: a connection was not taken: {error}"));
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
        };
        // Connections beyond the limit are closed at once: their clients try again.
        let Ok(place) = places.clone().try_acquire_owned() else { continue };
        let peer = stream.peer_addr().map_or_else(|_| "?".to_owned(), |peer| peer.to_string());
        let _ = stream.set_nodelay(true);
        give_up_on_the_silent(&stream);
        let (served, options) = (served.clone(), options.clone());
        let service = service_fn(move |request| {
            let (served, options, peer) = (served.clone(), options.clone(), peer.clone());
            async move { Ok::<_, Infallible>(answer(served, &options, &peer, request).await) }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADERS_TIME)
            .max_buf_size(HEADERS)
            .serve_connection(TokioIo::new(stream), service);
        let connection = graceful.watch(connection);
        tokio::task::spawn_local(async move {
            let _place = place;
            // A client that breaks off, or sends what is no HTTP, harms its own connection.
            let _ = connection.await;
        });
    }
    served.is_draining.store(true, Ordering::Relaxed);
    drop(listener);
    let ended = timeout(options.limits.drain, graceful.shutdown()).await;
    if ended.is_err() {
        note("the time for requests under way is over; those that are left are cancelled");
    }
    Ok(())
}

async fn answer(
    served: Arc<Served>,
    options: &Options,
    peer: &str,
    request: Request<Incoming>,
) -> Response<Body> {
    let begin = Instant::now();
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let plain = if path.len() > 1 { path.trim_end_matches('/') } else { &path };
    let known = PATHS.iter().find(|(known, ..)| *known == plain);
    let result = match admitted(options, plain, &request) {
        Ok(()) => route(&served, known.copied(), request).await,
        Err(error) => Err(error),
    };
    let mut response = result.unwrap_or_else(|error| {
        let mut response = json_response(error.status, &error.to_json());
        if let Some(seconds) = error.retry_after {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if error.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let (StatusCode::METHOD_NOT_ALLOWED, Some((_, method, _))) = (error.status, known) {
            response.headers_mut().insert(ALLOW, HeaderValue::from_static(method));
        }
        response
    });
    if method == Method::HEAD {
        *response.body_mut() = Body::Whole(Default::default());
    }
    let (status, seconds) = (response.status().as_u16(), begin.elapsed().as_secs_f64());
    served.metrics.answered(known.map_or("other", |(path, ..)| path), status);
    if options.log_requests {
        note(&format!("{peer} {method} {} {status} {seconds:.3}s", printable(&path)));
    }
    response
}

/// Whether a request may be answered at all.
fn admitted(options: &Options, path: &str, request: &Request<Incoming>) -> Result<(), ApiError> {
    if options.address.ip().is_loopback() {
        // A page of another site may have a browser ask this server by a name that it resolves to loopback.
        let host = request.headers().get(HOST).and_then(|host| host.to_str().ok());
        if host.is_some_and(|host| !is_loopback(host)) {
            return Err(ApiError::other_host());
        }
    }
    let is_open = ["/", "/health", "/ping", "/version", "/metrics"].contains(&path);
    if options.keys.is_empty() || is_open {
        return Ok(());
    }
    let given = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let given = given.and_then(|value| value.split_once(' '));
    let given = given.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("Bearer"));
    let given = given.map_or("", |(_, key)| key);
    let digest: [u8; 32] = Sha256::digest(given.trim().as_bytes()).into();
    // All keys and all bytes of each are looked at, whatever is found.
    let same = options.keys.iter().fold(false, |found, key| {
        let differing = key.iter().zip(&digest).fold(0, |bits, (a, b)| bits | (a ^ b));
        found | (differing == 0)
    });
    if same { Ok(()) } else { Err(ApiError::unauthorized()) }
}

/// Whether a Host header names this machine's loopback.
fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name.trim_end_matches('.').eq_ignore_ascii_case("localhost")
        || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

async fn route(
    served: &Arc<Served>,
    known: Option<(&'static str, &'static str, &'static str)>,
    request: Request<Incoming>,
) -> Result<Response<Body>, ApiError> {
    let Some((path, method, _)) = known else {
        return Err(ApiError::no_path(request.uri().path()));
    };
    let given = request.method();
    if given != method && !(method == "GET" && given == Method::HEAD) {
        return Err(ApiError::method(method));
    }
    if method == "GET" {
        return get(served, path);
    }
    let body = body(served, request).await?;
    match path {
        "/v1/chat/completions" | "/v1/completions" => {
            let kind = if path.contains("chat") { Kind::Chat } else { Kind::Text };
            let read =
                move |body: &Value, served: &Served| completion::Asked::read(kind, body, served);
            completion::answer(served.clone(), understood(served, body, read).await?).await
        }
        "/v1/judge" | "/v1/judge/batch" => {
            let is_batch = path.ends_with("batch");
            let read =
                move |body: &Value, served: &Served| judging::Asked::read(body, is_batch, served);
            judging::answer(served.clone(), understood(served, body, read).await?).await
        }
        "/v1/rerank" | "/rerank" => {
            rewards::rerank(served, understood(served, body, Rerank::read).await?).await
        }
        "/get_reward" => {
            let asked = understood(served, body, rewards::read_get_reward).await?;
            rewards::get_reward(served, asked).await
        }
        "/classify" => {
            rewards::classify(served, understood(served, body, Classify::read).await?).await
        }
        _ => Err(ApiError::no_path(path)),
    }
}

/// Reads a body on another thread: a long prompt takes long to encode, and other connections go on meanwhile.
async fn understood<T: Send + 'static>(
    served: &Arc<Served>,
    body: Received,
    read: impl FnOnce(&Value, &Served) -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let served = served.clone();
    let work = move || {
        let json = serde_json::from_slice(&body.bytes)
            .map_err(|error| ApiError::bad(format!("the body is not JSON: {error}")))?;
        read(&json, &served)
    };
    match tokio::task::spawn_blocking(work).await {
        Ok(read) => read,
        Err(error) => Err(ApiError::internal(&error)),
    }
}

/// A body, and its part of the memory that all of them may take.
struct Received {
    bytes: Bytes,
    _room: OwnedSemaphorePermit,
}

/// The body of a request in JSON.
async fn body(served: &Served, request: Request<Incoming>) -> Result<Received, ApiError> {
    let kind = request.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    // A page of another site may send a plain text without asking first, but no JSON.
    if kind
        .is_none_or(|kind| !kind.trim_start().to_ascii_lowercase().starts_with("application/json"))
    {
        return Err(ApiError::bad("Content-Type: application/json is wanted"));
    }
    let limit = served.limits.body_bytes;
    let said = request.body().size_hint().upper();
    if said.is_some_and(|said| said > limit as u64) {
        return Err(ApiError::too_large(limit));
    }
    // A chunked body may become as large as any.
    let room = (said.unwrap_or(limit as u64) as usize / 1024 + 1) as u32;
    let room = served.bodies.clone().try_acquire_many_owned(room).map_err(|_| {
        ApiError::busy("requests that are being read take all the memory that they may", 1)
    })?;
    let collected = timeout(BODY_TIME, Limited::new(request.into_body(), limit).collect()).await;
    let bytes = match collected {
        Err(_) => return Err(ApiError::too_slow()),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
            return Err(ApiError::too_large(limit));
        }
        Ok(Err(error)) => return Err(ApiError::bad(format!("the body did not arrive: {error}"))),
        Ok(Ok(collected)) => collected.to_bytes(),
    };
    Ok(Received { bytes, _room: room })
}

fn get(served: &Served, path: &str) -> Result<Response<Body>, ApiError> {
    let state = served.worker.state();
    let ok = |value: Value| Ok(json_response(StatusCode::OK, &value));
    match path {
        "/health" | "/ping" => {
            if state.is_dead {
                return Err(ApiError::busy("the engine has ended", 60));
            }
            if served.is_draining.load(Ordering::Relaxed) {
                return Err(ApiError::busy("the server is about to end", 60));
            }
            Ok(text_response(StatusCode::OK, String::new()))
        }
        "/version" => ok(json!({"version": env!("CARGO_PKG_VERSION"), "program": "j1"})),
        "/metrics" => {
            Ok(text_response(StatusCode::OK, served.metrics.to_text(state, served.waiting())))
        }
        "/v1/models" => {
            let model = |name: &String| {
                json!({
                    "id": name, "object": "model", "created": served.started, "owned_by": "j1", "root": served.names[0],
                    "parent": null, "max_model_len": served.positions(), "permission": [],
                })
            };
            ok(
                json!({"object": "list", "data": served.names.iter().map(model).collect::<Vec<_>>()}),
            )
        }
        _ => {
            let paths: BTreeMap<&str, String> = PATHS
                .iter()
                .map(|(path, method, what)| (*path, format!("{method}: {what}")))
                .collect();
            ok(json!(paths))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_of_this_machine_are_told_from_others() {
        for host in [
            "localhost",
            "LOCALHOST:80",
            "127.0.0.1:8000",
            "127.9.9.9",
            "[::1]:8000",
            "[::1]",
            "localhost.:1",
        ] {
            assert!(is_loopback(host), "{host}");
        }
        for host in
            ["example.com", "localhost.example.com:80", "10.0.0.1", "[::2]", "", "127.0.0.1.nip.io"]
        {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
