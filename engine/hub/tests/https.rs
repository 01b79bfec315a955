//! https end to end: a server with rustls on 127.0.0.1, its certificate given as SSL_CERT_FILE.

use super::*;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

// Made for this test, for 127.0.0.1 and a hundred years, and used for nothing else:
// openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 36500 -subj "/CN=j1 test"
//   -addext "subjectAltName=IP:127.0.0.1" -addext "basicConstraints=critical,CA:FALSE"
const KEY: &str = "\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgVnHBpAp0D3xACmFp
D5BUhIG2gamFaBqzegvjZgZfIBWhRANCAARkdkgxxjr7443gNv2iIUH9IN3jgxHt
eAaXeBk5yJS7yntzgvEbGTWxkXtWxCeMNmSwVs5ky9nGxhvSTwhEnXO0
-----END PRIVATE KEY-----
";
const CERTIFICATE: &str = "\
-----BEGIN CERTIFICATE-----
MIIBiDCCAS+gAwIBAgIUfyeR9bobReVgPWR6jxKrFJ6hXf0wCgYIKoZIzj0EAwIw
EjEQMA4GA1UEAwwHajEgdGVzdDAgFw0yNjExMjMwOTQ4MDZaGA8yMTI2MTAzMDA5
NDgwNlowEjEQMA4GA1UEAwwHajEgdGVzdDBZMBMGByqGSM49AgEGCCqGSM49AwEH
A0IABGR2SDHGOvvjjeA2/aIhQf0g3eODEe14Bpd4GTnIlLvKe3OC8RsZNbGRe1bE
J4w2ZLBWzmTL2cbGG9JPCESdc7SjYTBfMB0GA1UdDgQWBBQpBfwjNk0N5zrPUCBM
3bUuVJoSzjAfBgNVHSMEGDAWgBQpBfwjNk0N5zrPUCBM3bUuVJoSzjAPBgNVHREE
CDAGhwR/AAABMAwGA1UdEwEB/wQCMAAwCgYIKoZIzj0EAwIDRwAwRAIgcFW/2nwP
ETaQn5dYD+Aj47q6nlXZ8TuCMzUqR7xr8dMCIBgI1qBPJEn3t1+4p1GxzTGQW8Cl
hB3H4l626+QDoM/+
-----END CERTIFICATE-----
";

/// Answers every connection with 404 to its first request.
fn not_found_over_tls(connections: usize) -> (SocketAddr, std::thread::JoinHandle<()>) {
    let certificate = CertificateDer::from_pem_slice(CERTIFICATE.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(KEY.as_bytes()).unwrap();
    let config = ServerConfig::builder_with_provider(crate::hub::tls::provider().unwrap())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let thread = std::thread::spawn(move || {
        for stream in listener.incoming().take(connections) {
            let connection = ServerConnection::new(config.clone()).unwrap();
            let mut stream = StreamOwned::new(connection, stream.unwrap());
            let mut request = [0; 4096];
            // The client that does not trust the certificate hangs up here.
            if stream.read(&mut request).is_ok_and(|read| read > 0) {
                let answer =
                    b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
                stream.write_all(answer).unwrap();
                stream.conn.send_close_notify();
                let _ = stream.flush();
            }
        }
    });
    (address, thread)
}

#[test]
fn certificates_decide() {
    if let Err(error) = crate::hub::tls::provider() {
        crate::shared::skipped(error);
        return;
    }
    let scratch = Scratch::new();
    let (address, thread) = not_found_over_tls(2);
    let mut config = config(&scratch, &format!("https://{address}"));
    config.retry.attempts = 1;

    let error = resolve(&Hub::new(config.clone())).unwrap_err();
    assert!(matches!(error, HubError::Tls { .. }), "{error}");
    assert!(error.to_string().contains("SSL_CERT_FILE"), "{error}");

    let roots = scratch.0.join("roots.pem");
    std::fs::write(&roots, CERTIFICATE).unwrap();
    config.certificates = Some(("SSL_CERT_FILE".to_string(), roots));
    let error = resolve(&Hub::new(config)).unwrap_err();
    // The server's own word came through.
    assert!(matches!(error, HubError::RepositoryNotFound { .. }), "{error}");
    thread.join().unwrap();
}
