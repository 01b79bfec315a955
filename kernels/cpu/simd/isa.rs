//! The instruction sets kernels are compiled for, and the choice among them at run time.

use std::{ffi::OsStr, fmt};

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

    /// The best instruction set of this CPU, lowered (never raised) by the environment variable `J1_ISA` =
    /// `portable`, `avx2`, `avx512` or `avx512bf16`; empty means not set.
    ///
    /// # Panics
    /// If `J1_ISA` names no instruction set; see [`Isa::from_environment`].
    pub fn detect() -> Isa {
        Isa::from_environment().unwrap_or_else(|error| panic!("{error}"))
    }

    /// As [`Isa::detect`], with an error where `J1_ISA` names no instruction set: a program calls it first.
    pub fn from_environment() -> Result<Isa, UnknownIsa> {
        Isa::choose(std::env::var_os("J1_ISA").as_deref())
    }

    /// Every instruction set this CPU can run, least capable first; tests loop over them.
    pub fn available() -> Vec<Isa> {
        Isa::ALL.into_iter().filter(|isa| isa.is_available()).collect()
    }

    /// Whether this CPU has the instruction set.
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

    fn choose(limit: Option<&OsStr>) -> Result<Isa, UnknownIsa> {
        let limit = match limit.filter(|name| !name.is_empty()) {
            None => Isa::Avx512Bf16,
            Some(name) => (Isa::ALL.into_iter().find(|isa| name == isa.name()))
                .ok_or_else(|| UnknownIsa { name: name.to_string_lossy().into_owned() })?,
        };
        let best = Isa::ALL.into_iter().rev().find(|isa| *isa <= limit && isa.is_available());
        Ok(best.expect("the portable variant runs everywhere"))
    }
}

/// `J1_ISA` is not the name of an instruction set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownIsa {
    /// The value of `J1_ISA`.
    pub name: String,
}

impl fmt::Display for UnknownIsa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = Isa::ALL.map(Isa::name).join(", ");
        write!(
            f,
            "the environment variable J1_ISA is {:?}; it must be one of {names}, or unset",
            self.name
        )
    }
}

impl std::error::Error for UnknownIsa {}

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
        let choose = |name: &str| Isa::choose(Some(OsStr::new(name)));
        let best = *Isa::available().last().unwrap();
        assert_eq!(Isa::choose(None), Ok(best));
        assert_eq!(choose(""), Ok(best));
        assert_eq!(choose("portable"), Ok(Isa::Portable));
        for isa in Isa::ALL {
            assert!(choose(isa.name()).unwrap() <= best.min(isa));
        }
        for isa in Isa::available() {
            assert_eq!(choose(isa.name()), Ok(isa));
        }
    }

    #[test]
    fn another_name_is_refused_with_those_there_are() {
        for name in ["nonsense", "AVX2", "avx2 ", "avx-512", "0"] {
            let error = Isa::choose(Some(OsStr::new(name))).unwrap_err();
            let text = error.to_string();
            assert!(text.contains(&format!("{name:?}")), "{text}");
            assert!(text.contains("portable, avx2, avx512, avx512bf16"), "{text}");
        }
    }
}
