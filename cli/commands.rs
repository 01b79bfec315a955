//! The commands, one file each: from flags to the libraries and back to the terminal.

pub(crate) mod bench;
pub(crate) mod check;
pub(crate) mod compare;
pub(crate) mod data;
pub(crate) mod demo;
pub(crate) mod eval;
pub(crate) mod info;
pub(crate) mod judge;
pub(crate) mod memory;
pub(crate) mod merge;
pub(crate) mod pages;
pub(crate) mod rollout;
pub(crate) mod serve;
pub(crate) mod train;
