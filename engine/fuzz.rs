//! Seeded mutations of a sound file, for tests that assert "an error, never a panic".

use std::time::{Duration, Instant};

/// Calls `check` with thousands of damaged copies of `sound`, for at most 1.5 seconds.
pub(crate) fn mutations(sound: &[u8], mut check: impl FnMut(&[u8])) {
    let started = Instant::now();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move |below: usize| {
        // xorshift64*
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % below.max(1)
    };
    const TOKENS: [&[u8]; 12] = [
        b"0",
        b"-1",
        b"1e400",
        b"18446744073709551615",
        b"null",
        b"[]",
        b"{}",
        b"\"",
        b"true",
        b"9223372036854775807",
        b"[[[[",
        b"\xff",
    ];
    for _ in 0..5000 {
        let mut bytes = sound.to_vec();
        for _ in 0..=random(4) {
            let at = random(bytes.len());
            match random(6) {
                0 if !bytes.is_empty() => bytes[at] = random(256) as u8,
                1 if !bytes.is_empty() => bytes[at] ^= 1 << random(8),
                2 => bytes.truncate(at),
                3 => {
                    let until = (at + random(20)).min(bytes.len());
                    drop(bytes.drain(at..until));
                }
                4 => {
                    let token = TOKENS[random(TOKENS.len())];
                    let until = (at + random(5)).min(bytes.len());
                    drop(bytes.splice(at..until, token.iter().copied()));
                }
                _ => {
                    let from = random(bytes.len());
                    let copied = bytes[from..(from + random(40)).min(bytes.len())].to_vec();
                    drop(bytes.splice(at..at, copied));
                }
            }
        }
        check(&bytes);
        if started.elapsed() > Duration::from_millis(1500) {
            break;
        }
    }
}
