//! The cryptography behind https: rustls over graviola, which is Rust and formally verified assembly in
//! Rust's own `asm!`, so nothing but rustc compiles it.
//!
//! graviola asserts its processor features; asking first turns that panic into an error.

use super::HubError;
use std::sync::Arc;

/// The provider, or what the processor lacks.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(super) fn provider() -> Result<Arc<rustls::crypto::CryptoProvider>, HubError> {
    // graviola takes bmi2 for granted where there is avx2; a virtual machine may hide one.
    #[cfg(target_arch = "x86_64")]
    let supported = is_x86_feature_detected!("bmi2") && is_x86_feature_detected!("ssse3");
    #[cfg(target_arch = "aarch64")]
    let supported = true;
    if !supported || !graviola::util::is_cpu_supported() {
        return Err(HubError::TlsUnsupported {
            reason: if cfg!(target_arch = "x86_64") {
                "a processor with aes, pclmulqdq, bmi1, bmi2, adx and avx2"
            } else {
                "a processor with neon, aes, pmull and sha2"
            },
        });
    }
    Ok(Arc::new(rustls_graviola::default_provider()))
}

/// graviola is written for two architectures.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
pub(super) fn provider() -> Result<Arc<rustls::crypto::CryptoProvider>, HubError> {
    Err(HubError::TlsUnsupported { reason: "an x86_64 or aarch64 processor" })
}
