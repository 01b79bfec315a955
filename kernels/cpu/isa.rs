//! The instruction sets kernels are compiled for, and the choice among them at run time.

use std::fmt;

/// An instruction set the kernels have a variant for, from least to most capable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isa {
    /// Plain Rust; the compiler vectorizes for the build's baseline.
    Portable,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// x86-64 with AVX-512 F, BW, DQ and VL.
    Avx512,
    /// The above with AVX-512 BF16: products of bf16 pairs in one instruction.
    Avx512Bf16,
}

impl Isa {
    /// All instruction sets, least capable first.
    pub const ALL: [Isa; 4] = [Isa::Portable, Isa::Avx2, Isa::Avx512, Isa::Avx512Bf16];

    /// The best one this CPU has, lowered (never raised) by the environment variable `J1_ISA` =
    /// `portable`, `avx2`, `avx512` or `avx512bf16`; other values are ignored.
    pub fn detect() -> Isa {
        Isa::choose(std::env::var("J1_ISA").ok().as_deref())
    }

    /// Every instruction set this CPU can run, least capable first; tests loop over them.
    pub fn available() -> Vec<Isa> {
        Isa::ALL.into_iter().filter(|isa| isa.is_available()).collect()
    }

    /// Whether this CPU has it.
    pub fn is_available(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c");
            let avx512 = avx2
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl");
            match self {
                Isa::Portable => true,
                Isa::Avx2 => avx2,
                Isa::Avx512 => avx512,
                Isa::Avx512Bf16 => avx512 && is_x86_feature_detected!("avx512bf16"),
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            self == Isa::Portable
        }
    }

    /// The name `J1_ISA` takes.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Avx512Bf16 => "avx512bf16",
        }
    }

    fn choose(limit: Option<&str>) -> Isa {
        let limit = limit
            .and_then(|name| Isa::ALL.into_iter().find(|isa| isa.name() == name))
            .unwrap_or(Isa::Avx512Bf16);
        let best = Isa::ALL.into_iter().rev().find(|isa| *isa <= limit && isa.is_available());
        best.expect("the portable variant runs everywhere")
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_lowers_but_never_raises() {
        let best = *Isa::available().last().unwrap();
        assert_eq!(Isa::choose(None), best);
        assert_eq!(Isa::choose(Some("nonsense")), best);
        assert_eq!(Isa::choose(Some("portable")), Isa::Portable);
        for isa in Isa::ALL {
            assert!(Isa::choose(Some(isa.name())) <= best);
            assert!(Isa::choose(Some(isa.name())) <= isa);
        }
        for isa in Isa::available() {
            assert_eq!(Isa::choose(Some(isa.name())), isa);
        }
    }
}
