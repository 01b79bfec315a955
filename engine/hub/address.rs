//! Addresses: their origin, where a redirect leads, and how they are shown.

use std::net::IpAddr;

use ureq::http::Uri;

/// Scheme, host and port: the token goes to one origin only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Origin(pub(super) String, String, u16);

impl Origin {
    pub(super) fn of(uri: &Uri) -> Option<Origin> {
        let scheme = uri.scheme_str()?.to_ascii_lowercase();
        let port = match scheme.as_str() {
            "http" => 80,
            "https" => 443,
            _ => return None,
        };
        let host = uri.host().filter(|host| !host.is_empty())?;
        let port = uri.port_u16().unwrap_or(port);
        Some(Origin(scheme, host.to_ascii_lowercase(), port))
    }

    /// Whether others on the network can read what is sent there: http, to another machine.
    pub(super) fn is_overheard(&self) -> bool {
        let Origin(scheme, host, _) = self;
        let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
        let own = address.map_or(host == "localhost" || host.ends_with(".localhost"), |address| {
            address.is_loopback()
        });
        scheme == "http" && !own
    }
}

/// The address of a redirect: absolute, or relative to the address of the request.
pub(super) fn join(base: &Uri, location: &str) -> String {
    let scheme = base.scheme_str().unwrap_or("https");
    let authority = base.authority().map_or("", |authority| authority.as_str());
    if let Some(rest) = location.strip_prefix("//") {
        format!("{scheme}://{rest}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else if location.contains("://") {
        location.to_string()
    } else {
        let directory = base.path().rsplit_once('/').map_or("", |(head, _)| head);
        format!("{scheme}://{authority}{directory}/{location}")
    }
}

/// For messages: a query may hold a signature, a user part a password.
pub(super) fn without_query(url: &str) -> String {
    let url = url.split(['?', '#']).next().unwrap_or_default();
    match url.split_once("://") {
        Some((scheme, rest)) => {
            let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            let host = authority.rsplit('@').next().unwrap_or_default();
            format!("{scheme}://{host}{path}")
        }
        None => url.to_string(),
    }
}

/// RFC 3986: all but the unreserved characters, and the slashes of a path.
pub(super) fn percent_encode(text: &str, keep_slashes: bool) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                encoded.push(char::from(byte));
            }
            b'/' if keep_slashes => encoded.push('/'),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        let origin = |url: &str| url.parse::<Uri>().ok().as_ref().and_then(Origin::of);
        assert_eq!(origin("https://Hub.co/a"), origin("https://hub.co:443/b?c"));
        // An address that differs in one part gets no token.
        for other in [
            "http://hub.co",
            "https://hub.co:8443",
            "https://hub.co.evil",
            "https://cdn.hub.co",
            "https://hub.co@evil",
        ] {
            assert_ne!(origin("https://hub.co"), origin(other), "{other}");
        }
        assert_eq!(origin("ftp://hub.co"), None);
        assert_eq!(origin("/a"), None);
    }

    #[test]
    fn redirects_are_joined() {
        let base: Uri = "https://hub.co:8/a/b?c=d".parse().unwrap();
        for (location, expected) in [
            ("http://other/x?y", "http://other/x?y"),
            ("//other/x", "https://other/x"),
            ("/x/y", "https://hub.co:8/x/y"),
            ("x", "https://hub.co:8/a/x"),
            ("/x?u=http://other", "https://hub.co:8/x?u=http://other"),
        ] {
            assert_eq!(join(&base, location), expected);
        }
    }

    #[test]
    fn secrets_are_not_shown_and_names_are_encoded() {
        let url = "https://user:secret@cdn.co/a/b?Signature=secret#secret";
        assert_eq!(without_query(url), "https://cdn.co/a/b");
        assert_eq!(without_query("https://cdn.co"), "https://cdn.co");
        assert_eq!(percent_encode("a b/c?#%\u{e9}", true), "a%20b/c%3F%23%25%C3%A9");
        assert_eq!(percent_encode("refs/pr/1", false), "refs%2Fpr%2F1");
    }
}
