//! HTTP to the hub: requests, redirects, repetition, and the meaning of each answer.

use super::HubError;
use super::address::{Origin, join, percent_encode, without_query};
use super::cache::{Kind, Repository};
use super::config::{HubConfig, Retry};
use super::reference::{Reference, is_commit};
use super::{HubEvent, HubProgress};
use crate::error::excerpt_of;
use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use ureq::http::{HeaderMap, Method, Request, Uri, header};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig};

/// The hub answers with one redirect to its CDN; renamed repositories add one.
const REDIRECTS: usize = 8;
/// The listing of a repository, JSON. The largest model repositories stay under 1 MB.
const LISTING_LIMIT: u64 = 32 << 20;

/// One connection pool and its settings.
pub(super) struct Client {
    agent: ureq::Agent,
    config: HubConfig,
    origin: Origin,
    /// Whether the warning was given that others can read the token.
    warned: AtomicBool,
}

/// Metadata of a file, from the hub.
#[derive(Clone, Debug)]
pub(super) struct Metadata {
    /// The commit of the revision, if the server says.
    pub(super) commit: Option<String>,
    /// The name of the blob; checked to be a file name.
    pub(super) etag: String,
    pub(super) size: Option<u64>,
}

/// A revision, as the hub lists it.
pub(super) struct Listing {
    pub(super) commit: String,
    /// File names as the server wrote them: compare them, or check them before use.
    pub(super) files: Vec<String>,
}

/// An answer, after redirects.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    pub(super) body: ureq::Body,
    /// The address, for messages.
    pub(super) url: String,
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Failure {
    /// It may pass: try again, after the pause that the server asks for (Retry-After).
    Passing(HubError, Duration),
    /// It will not pass.
    Lasting(HubError),
}

impl Client {
    pub(super) fn new(config: &HubConfig) -> Result<Client, HubError> {
        let setting = |variable: &str, reason: String| HubError::BadSetting {
            variable: variable.to_string(),
            reason,
        };
        let endpoint = config.endpoint.parse::<Uri>().ok();
        let origin = endpoint.as_ref().and_then(Origin::of).ok_or_else(|| {
            let reason = "is not of the form https://host".to_string();
            setting("HF_ENDPOINT", reason)
        })?;
        if let Some(token) = &config.token
            && !token.secret.bytes().all(|b| b.is_ascii_graphic())
        {
            let reason = "the token has characters that no token has".to_string();
            return Err(setting(&token.source, reason));
        }
        let proxy = match &config.proxy {
            None => None,
            Some((variable, address)) => {
                // The address itself stays out of the message: it may hold a password.
                let invalid = |_| {
                    let reason = "is not of the form http://[user:password@]host:port".to_string();
                    setting(variable, reason)
                };
                let parsed = ureq::Proxy::new(address).map_err(invalid)?;
                let mut proxy =
                    ureq::Proxy::builder(parsed.protocol()).host(parsed.host()).port(parsed.port());
                if let Some(username) = parsed.username() {
                    proxy = proxy.username(username);
                }
                if let Some(password) = parsed.password() {
                    proxy = proxy.password(password);
                }
                for host in config.no_proxy.split(',') {
                    let host = host.trim();
                    // `.host` is understood by everyone as the host and all below it.
                    proxy = proxy.no_proxy(host);
                    proxy = proxy.no_proxy(host.trim_start_matches('.'));
                }
                Some(proxy.build().map_err(invalid)?)
            }
        };
        // Redirects are followed here, not by the library: the token must not leave its origin.
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("j1/", env!("CARGO_PKG_VERSION")))
            // Sizes and ranges count the file's bytes, not those of a compressed form.
            .accept_encoding("identity")
            .proxy(proxy)
            .tls_config(tls_config(config)?)
            .timeout_resolve(Some(config.metadata_timeout))
            .timeout_connect(Some(config.metadata_timeout))
            .timeout_per_read(Some(config.download_timeout))
            .timeout_per_write(Some(config.download_timeout))
            .build();
        Ok(Client {
            agent: agent.new_agent(),
            config: config.clone(),
            origin,
            warned: AtomicBool::new(false),
        })
    }

    /// The commit and the file names of a revision.
    pub(super) fn listing(
        &self,
        repository: &Repository,
        reference: &Reference,
        attempts: u32,
        progress: &mut HubProgress,
    ) -> Result<Listing, HubError> {
        let kind = match repository.kind {
            Kind::Model => "models",
            Kind::Dataset => "datasets",
        };
        let url = format!(
            "{}/api/{kind}/{}/revision/{}",
            self.config.endpoint,
            repository.id,
            percent_encode(&reference.revision, false)
        );
        let body = self.repeat(&reference.id, attempts, progress, || {
            let answer = self.send(Method::GET, &url, None, |_| false)?;
            if answer.status != 200 {
                return Err(self.refusal(repository, reference, None, &answer));
            }
            let mut bytes = Vec::new();
            let mut reader = answer.body.into_reader().take(LISTING_LIMIT + 1);
            match reader.read_to_end(&mut bytes) {
                Ok(_) => Ok(bytes),
                Err(error) => Err(self.failure(&answer.url, ureq::Error::from(error))),
            }
        })?;
        let protocol =
            |reason: &str| HubError::Protocol { url: url.clone(), reason: reason.to_string() };
        if body.len() as u64 > LISTING_LIMIT {
            return Err(protocol("the listing is longer than 32 MiB"));
        }
        let listing: serde_json::Value = serde_json::from_slice(&body)
            .map_err(|error| protocol(&format!("the listing is no JSON ({error})")))?;
        let commit = listing["sha"].as_str().filter(|commit| is_commit(commit));
        let files = listing["siblings"].as_array().into_iter().flatten();
        Ok(Listing {
            commit: commit.ok_or_else(|| protocol("the listing names no commit"))?.to_string(),
            files: files.filter_map(|file| Some(file["rfilename"].as_str()?.to_string())).collect(),
        })
    }

    /// The ETag, size and commit of a file, from the hub itself and not from its CDN.
    pub(super) fn metadata(
        &self,
        repository: &Repository,
        reference: &Reference,
        file: &str,
        attempts: u32,
        progress: &mut HubProgress,
    ) -> Result<Metadata, HubError> {
        let url = self.file_url(repository, &reference.revision, file);
        self.repeat(file, attempts, progress, || {
            // The redirect to the CDN carries the metadata; the one of a renamed repository does not.
            let answer = self
                .send(Method::HEAD, &url, None, |headers| headers.contains_key("x-linked-etag"))?;
            if !matches!(answer.status, 200..=399) {
                return Err(self.refusal(repository, reference, Some(file), &answer));
            }
            let protocol = |reason: &str| {
                Failure::Lasting(HubError::Protocol {
                    url: answer.url.clone(),
                    reason: reason.to_string(),
                })
            };
            let text = |name: &str| answer.headers.get(name)?.to_str().ok();
            let etag = text("x-linked-etag").or_else(|| text("etag"));
            let etag = etag.ok_or_else(|| protocol("the answer has no ETag"))?;
            let etag = etag.trim().trim_start_matches("W/").trim_matches('"');
            let is_name = etag.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
            if etag.is_empty() || etag.len() > 128 || etag.starts_with('.') || !is_name {
                return Err(protocol("the ETag is no checksum"));
            }
            let size = match text("x-linked-size") {
                None if (300..400).contains(&answer.status) => None,
                None => text("content-length"),
                size => size,
            };
            let size = match size.map(str::parse::<u64>) {
                None => None,
                Some(Ok(size)) => Some(size),
                Some(Err(_)) => return Err(protocol("the size is no number")),
            };
            let commit = text("x-repo-commit").filter(|commit| is_commit(commit));
            Ok(Metadata { commit: commit.map(str::to_string), etag: etag.to_string(), size })
        })
    }

    /// A file's bytes from `offset` on; the status is 200 (all of it), 206 or 416.
    pub(super) fn open(
        &self,
        repository: &Repository,
        reference: &Reference,
        file: &str,
        offset: u64,
    ) -> Result<Answer, Failure> {
        let url = self.file_url(repository, &reference.revision, file);
        let answer = self.send(Method::GET, &url, Some(offset), |_| false)?;
        match answer.status {
            200 | 206 | 416 => Ok(answer),
            _ => Err(self.refusal(repository, reference, Some(file), &answer)),
        }
    }

    pub(super) fn endpoint(&self) -> &str {
        &self.config.endpoint
    }

    pub(super) fn retry(&self) -> &Retry {
        &self.config.retry
    }

    fn file_url(&self, repository: &Repository, revision: &str, file: &str) -> String {
        format!(
            "{}/resolve/{}/{}",
            self.page(repository),
            percent_encode(revision, false),
            percent_encode(file, true)
        )
    }

    /// The repository's page for people.
    fn page(&self, repository: &Repository) -> String {
        let prefix = match repository.kind {
            Kind::Model => "",
            Kind::Dataset => "datasets/",
        };
        format!("{}/{prefix}{}", self.config.endpoint, repository.id)
    }

    /// One request with its redirects, up to the first answer that is no redirect or that `enough` accepts.
    fn send(
        &self,
        method: Method,
        url: &str,
        offset: Option<u64>,
        enough: impl Fn(&HeaderMap) -> bool,
    ) -> Result<Answer, Failure> {
        let mut url = url.to_string();
        for _ in 0..REDIRECTS {
            let shown = without_query(&url);
            let protocol = |reason: &str| {
                Failure::Lasting(HubError::Protocol {
                    url: shown.clone(),
                    reason: reason.to_string(),
                })
            };
            let uri: Uri = url.parse().map_err(|_| protocol("this is no URL"))?;
            let origin = Origin::of(&uri).ok_or_else(|| protocol("this is no http(s) URL"))?;
            if self.origin.0 == "https" && origin.0 != "https" {
                return Err(protocol("refuses to go from https to http"));
            }
            if origin.0 == "https" {
                // An http:// mirror may redirect to https:// where there is no TLS.
                super::tls::provider().map_err(Failure::Lasting)?;
            }
            let mut request = Request::builder().method(method.clone()).uri(&uri);
            if origin == self.origin
                && let Some(token) = &self.config.token
            {
                let value = format!("Bearer {}", token.secret);
                request = request.header(header::AUTHORIZATION, value);
            }
            if let Some(offset) = offset.filter(|&offset| offset > 0) {
                request = request.header(header::RANGE, format!("bytes={offset}-"));
            }
            let request = request.body(()).map_err(|_| protocol("this is no request"))?;
            let answer_time = match method {
                Method::HEAD => self.config.metadata_timeout,
                _ => self.config.download_timeout,
            };
            let request = self
                .agent
                .configure_request(request)
                .timeout_recv_response(Some(answer_time))
                .build();
            let response = self.agent.run(request);
            let response = response.map_err(|error| self.failure(&shown, error))?;
            let (head, body) = response.into_parts();
            let status = head.status.as_u16();
            let location = match status {
                301 | 302 | 303 | 307 | 308 if !enough(&head.headers) => {
                    head.headers.get(header::LOCATION)
                }
                _ => None,
            };
            let Some(location) = location else {
                return Ok(Answer { status, headers: head.headers, body, url: shown });
            };
            let location =
                location.to_str().map_err(|_| protocol("the redirect's address is no text"))?;
            url = join(&uri, location);
        }
        Err(Failure::Lasting(HubError::Protocol {
            url: without_query(&url),
            reason: format!("more than {REDIRECTS} redirects"),
        }))
    }

    /// Repeats a request while its failure may pass, with growing pauses.
    fn repeat<T>(
        &self,
        what: &str,
        attempts: u32,
        progress: &mut HubProgress,
        mut attempt: impl FnMut() -> Result<T, Failure>,
    ) -> Result<T, HubError> {
        if let Some(token) = &self.config.token
            && self.origin.is_overheard()
            && !self.warned.swap(true, Ordering::Relaxed)
        {
            let message = format!(
                "the token from {} is sent to {} over http, where it can be read on the way; use https, or do without it",
                token.source,
                without_query(&self.config.endpoint)
            );
            progress(HubEvent::Warning { message: &message });
        }
        let mut made = 1;
        loop {
            match attempt() {
                Ok(value) => return Ok(value),
                Err(Failure::Lasting(error)) => return Err(error),
                Err(Failure::Passing(error, _)) if made >= attempts => return Err(error),
                Err(Failure::Passing(error, asked)) => {
                    self.pause(what, made, asked, &error, progress);
                    made += 1;
                }
            }
        }
    }

    /// Reports the wait before attempt `made + 1`, and waits.
    pub(super) fn pause(
        &self,
        what: &str,
        made: u32,
        asked: Duration,
        reason: &HubError,
        progress: &mut HubProgress,
    ) {
        let Retry { attempts, first_pause, longest_pause } = self.config.retry;
        let pause = first_pause.saturating_mul(1 << (made - 1).min(16));
        let pause = pause.max(asked).min(longest_pause);
        progress(HubEvent::Retrying {
            what,
            reason: &reason.to_string(),
            attempt: made + 1,
            attempts,
            pause,
        });
        std::thread::sleep(pause);
    }

    /// The meaning of an error of the library.
    pub(super) fn failure(&self, url: &str, error: ureq::Error) -> Failure {
        use std::io::ErrorKind as Kind;
        let url = url.to_string();
        let reason = self.redact(&error.to_string());
        let passing = |error| Failure::Passing(error, Duration::ZERO);
        match &error {
            ureq::Error::Timeout(_) => passing(HubError::Timeout { url }),
            ureq::Error::Io(io) => match io.kind() {
                Kind::TimedOut | Kind::WouldBlock => passing(HubError::Timeout { url }),
                // rustls wraps its errors so.
                Kind::InvalidData => Failure::Lasting(HubError::Tls { url, reason }),
                Kind::ConnectionReset
                | Kind::ConnectionAborted
                | Kind::BrokenPipe
                | Kind::UnexpectedEof
                | Kind::Interrupted => passing(HubError::Network { url, reason }),
                // Refused, unreachable, no route: another attempt in a second will not help.
                _ => Failure::Lasting(HubError::Network { url, reason }),
            },
            ureq::Error::Rustls(_) | ureq::Error::Tls(_) | ureq::Error::TlsRequired => {
                Failure::Lasting(HubError::Tls { url, reason })
            }
            ureq::Error::HostNotFound
            | ureq::Error::ConnectionFailed
            | ureq::Error::ConnectProxyFailed(_) => {
                Failure::Lasting(HubError::Network { url, reason })
            }
            _ => Failure::Lasting(HubError::Protocol { url, reason }),
        }
    }

    /// The meaning of an unexpected status. The hub explains itself in X-Error-Code.
    fn refusal(
        &self,
        repository: &Repository,
        reference: &Reference,
        file: Option<&str>,
        answer: &Answer,
    ) -> Failure {
        let text = |name: &str| answer.headers.get(name)?.to_str().ok();
        let code = text("x-error-code").unwrap_or_default();
        let message = text("x-error-message").unwrap_or_default();
        let bad_credentials = message.starts_with("Invalid credentials");
        let mut shown = excerpt_of(&self.redact(message), 200);
        if !shown.is_empty() {
            shown.insert_str(0, ": ");
        }
        let asked = text("retry-after").and_then(|text| text.trim().parse().ok());
        let asked = Duration::from_secs(asked.unwrap_or(0));
        let id = repository.id.clone();
        let page = self.page(repository);
        let endpoint = self.config.endpoint.clone();
        let token = self.config.token.as_ref();
        let not_found = |repository: String| HubError::RepositoryNotFound {
            repository,
            endpoint: endpoint.clone(),
            private: match token {
                None => {
                    ", or if it is private set HF_TOKEN to a token that may read it".to_string()
                }
                Some(token) => format!(
                    ", or if it is private check that the token from {} may read it",
                    token.source
                ),
            },
        };
        let error = match (answer.status, code, token) {
            (401 | 403, "GatedRepo", _) => HubError::Gated {
                repository: id,
                page,
                token_advice: match token {
                    None => "set HF_TOKEN to a token of the account that accepted them".to_string(),
                    Some(token) => format!(
                        "wait for access to be granted, or check that the token from {} is of the account that accepted them",
                        token.source
                    ),
                },
            },
            (_, "RevisionNotFound", _) => HubError::RevisionNotFound {
                repository: id,
                revision: reference.revision.clone(),
                page: format!("{page}/branches"),
            },
            (401, "RepoNotFound", _) => not_found(id),
            (401 | 403, _, Some(token)) if answer.status == 403 || bad_credentials => {
                HubError::TokenRefused {
                    repository: id,
                    token_source: token.source.clone(),
                    status: answer.status,
                    message: shown,
                    endpoint,
                }
            }
            // Without a token, or with one that may not see it, the hub says 401 for what is not there.
            (401, _, _) => not_found(id),
            (404, code, _) => match file {
                Some(file) if code != "RepoNotFound" => HubError::FileNotFound {
                    repository: id,
                    revision: reference.revision.clone(),
                    file: file.to_string(),
                    hint: format!(
                        "check the spelling, or see the files at {page}/tree/{}",
                        reference.revision
                    ),
                },
                _ => not_found(id),
            },
            (429, _, _) => {
                let url = answer.url.clone();
                return Failure::Passing(HubError::RateLimited { url }, asked);
            }
            (status, _, _) => {
                let error = HubError::Server { url: answer.url.clone(), status, message: shown };
                return match status {
                    408 | 500..=599 => Failure::Passing(error, asked),
                    _ => Failure::Lasting(error),
                };
            }
        };
        Failure::Lasting(error)
    }

    /// The text of a server or a library, without the token.
    fn redact(&self, text: &str) -> String {
        match &self.config.token {
            Some(token) => text.replace(&token.secret, "***"),
            None => text.to_string(),
        }
    }
}

/// TLS by rustls over graviola; roots from Mozilla, or from the user's own file.
fn tls_config(config: &HubConfig) -> Result<TlsConfig, HubError> {
    let mut tls = TlsConfig::builder();
    let needed = config.endpoint.starts_with("https:")
        || matches!(&config.proxy, Some((_, address)) if address.starts_with("https:"));
    match super::tls::provider() {
        Ok(provider) => tls = tls.unversioned_rustls_crypto_provider(provider),
        Err(error) if needed => return Err(error),
        Err(_) => {}
    }
    if let Some((variable, path)) = &config.certificates {
        let setting = |reason: String| HubError::BadSetting {
            variable: variable.clone(),
            reason: format!("{}: {reason}", path.display()),
        };
        let mut pem = Vec::new();
        let read = std::fs::File::open(path).and_then(|file| {
            // Debian's bundle of every root is 0.2 MB.
            file.take(64 << 20).read_to_end(&mut pem)
        });
        read.map_err(|error| setting(error.to_string()))?;
        let mut certificates: Vec<Certificate<'static>> = Vec::new();
        for item in ureq::tls::parse_pem(&pem) {
            match item {
                Ok(PemItem::Certificate(certificate)) => certificates.push(certificate),
                Ok(_) => {}
                Err(error) => return Err(setting(error.to_string())),
            }
        }
        if certificates.is_empty() {
            return Err(setting("there is no PEM certificate in it".to_string()));
        }
        tls = tls.root_certs(RootCerts::from(certificates));
    }
    Ok(tls.build())
}
