//! An opcode taken apart: each modifier must be asked for by somebody.

use super::Lowered;
use crate::ptx::syntax::Kind;

pub(super) struct Opcode<'a> {
    pub(super) root: &'a str,
    /// The modifiers, and whether they were asked for.
    modifiers: Vec<(&'a str, bool)>,
}

impl<'a> Opcode<'a> {
    pub(super) fn parse(text: &'a str) -> Opcode<'a> {
        let mut parts = text.split('.');
        let root = parts.next().unwrap_or("");
        Opcode { root, modifiers: parts.map(|part| (part, false)).collect() }
    }

    /// Whether the modifier is there; it then counts as understood.
    pub(super) fn flag(&mut self, name: &str) -> bool {
        let found = self.modifiers.iter_mut().find(|(modifier, taken)| *modifier == name && !taken);
        match found {
            Some((_, taken)) => {
                *taken = true;
                true
            }
            None => false,
        }
    }

    /// The first of the names that is there.
    pub(super) fn one_of(&mut self, names: &[&'static str]) -> Option<&'static str> {
        names.iter().copied().find(|name| self.flag(name))
    }

    /// The next type.
    pub(super) fn kind(&mut self) -> Lowered<Kind> {
        let found = self.modifiers.iter_mut().find_map(|(modifier, taken)| {
            let kind = Kind::parse(modifier).filter(|_| !*taken)?;
            *taken = true;
            Some(kind)
        });
        match found {
            Some(kind) if kind.width() > 64 => Err("128-bit types: width not supported".to_owned()),
            Some(kind) => Ok(kind),
            None => Err("a type is missing".to_owned()),
        }
    }

    /// Modifiers that begin with the prefix, such as cache hints, change nothing here.
    pub(super) fn ignore_prefix(&mut self, prefix: &str) {
        for (modifier, taken) in &mut self.modifiers {
            *taken |= modifier.starts_with(prefix);
        }
    }

    pub(super) fn ignore(&mut self, names: &[&str]) {
        for (modifier, taken) in &mut self.modifiers {
            *taken |= names.contains(modifier);
        }
    }

    /// Refuses what nobody asked for.
    pub(super) fn finish(&self) -> Lowered {
        match self.modifiers.iter().find(|(_, taken)| !taken) {
            Some((modifier, _)) => Err(format!("modifier `.{modifier}` is not supported")),
            None => Ok(()),
        }
    }
}
