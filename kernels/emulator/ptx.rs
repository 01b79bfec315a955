//! PTX text to a syntax tree: tokens, declarations, statements with resolved registers. The text is
//! not trusted: what cannot be read is a [`crate::LoadError`] with its line, never a panic.

pub(crate) mod body;
pub(crate) mod parse;
pub(crate) mod syntax;
pub(crate) mod token;
