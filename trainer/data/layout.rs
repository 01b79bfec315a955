//! Which column of a file holds what.
//!
//! Names are looked for as they stand here, then in any case; `prompt=question,chosen=good` names others:
//!
//! | what | columns |
//! |---|---|
//! | prompt | `prompt`, `question`, `input` |
//! | system | `system`, `system_prompt` |
//! | chosen, rejected | `chosen`, `rejected` |
//! | a, b | `a`, `b`; `response_A`, `response_B`; `response_0`, `response_1`; `conversation_a`, `conversation_b` |
//! | label | `label`, `winner`, `better_response_id`: which of a and b is better |
//! | subset | `subset`, `domain`; beside a label also `source` |
//! | id | `id`, `pair_id` |
//! | source | `source` |
//!
//! `a` and `b` count only where there is neither `chosen` nor `rejected`; `input` not beside an `instruction`.

use std::str::FromStr;

use super::Replies;

/// A field of a pair that a column can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Field {
    /// The prompt: text, or turns.
    Prompt,
    /// A system turn that goes before the prompt.
    System,
    /// The preferred reply.
    Chosen,
    /// The other reply.
    Rejected,
    /// A reply, which [`Field::Label`] may call the better one.
    A,
    /// The other reply.
    B,
    /// Which of a and b is better.
    Label,
    /// A part of the data set.
    Subset,
    /// The id of a row.
    Id,
    /// The origin of a row.
    Source,
}

use Field::{A, B, Chosen, Id, Label, Prompt, Rejected, Source, Subset, System};

impl Field {
    /// All of them, with their names on the command line and in files.
    pub(crate) const ALL: [(Field, &'static str); 10] = [
        (Prompt, "prompt"),
        (System, "system"),
        (Chosen, "chosen"),
        (Rejected, "rejected"),
        (A, "a"),
        (B, "b"),
        (Label, "label"),
        (Subset, "subset"),
        (Id, "id"),
        (Source, "source"),
    ];

    pub(crate) fn name(self) -> &'static str {
        Self::ALL[self as usize].1
    }

    /// Columns that are taken for it, the first that is there.
    fn known(self) -> &'static [&'static str] {
        match self {
            Prompt => &["prompt", "question", "input"],
            System => &["system", "system_prompt"],
            Chosen => &["chosen"],
            Rejected => &["rejected"],
            A => &["a", "response_a", "response_0", "conversation_a"],
            B => &["b", "response_b", "response_1", "conversation_b"],
            Label => &["label", "winner", "better_response_id"],
            Subset => &["subset", "domain"],
            Id => &["id", "pair_id"],
            Source => &["source"],
        }
    }
}

/// Columns under other names: `prompt=question,chosen=better`. A field without a name (`prompt=`) is not read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Columns(Vec<(Field, Option<String>)>);

impl Columns {
    /// The column that is named for a field; `Some(None)` if it is not to be read.
    fn named(&self, field: Field) -> Option<Option<&str>> {
        self.0.iter().find(|(named, _)| *named == field).map(|(_, name)| name.as_deref())
    }

    /// The first name that the file does not have.
    pub(crate) fn missing(&self, names: &[String]) -> Option<(&'static str, &str)> {
        let named =
            |(field, name): &'_ (Field, Option<String>)| Some((field.name(), name.clone()?));
        let lost = self
            .0
            .iter()
            .position(|entry| named(entry).is_some_and(|(_, column)| !names.contains(&column)))?;
        let (field, name) = &self.0[lost];
        Some((field.name(), name.as_deref()?))
    }
}

impl FromStr for Columns {
    type Err = String;

    fn from_str(text: &str) -> Result<Columns, String> {
        let mut columns = Columns::default();
        for entry in text.split(',') {
            let names = || Field::ALL.map(|(_, name)| name).join(", ");
            let (field, column) = entry
                .split_once('=')
                .ok_or_else(|| format!("{entry:?} is not FIELD=COLUMN, such as prompt=question"))?;
            let (field, column) = (field.trim(), column.trim());
            let known = Field::ALL.into_iter().find(|(_, name)| *name == field);
            let (known, _) =
                known.ok_or_else(|| format!("{field:?} is not a field; there are {}", names()))?;
            if columns.named(known).is_some() {
                return Err(format!("{field} is given twice"));
            }
            if let Some((other, _)) =
                columns.0.iter().find(|(_, name)| name.as_deref() == Some(column))
            {
                return Err(format!(
                    "column {column:?} is given for {} and for {field}",
                    other.name()
                ));
            }
            columns.0.push((known, (!column.is_empty()).then(|| column.to_owned())));
        }
        Ok(columns)
    }
}

/// The columns of a file that hold the fields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Layout {
    columns: [Option<String>; Field::ALL.len()],
}

impl Layout {
    /// The layout of a file with columns of these names.
    pub(crate) fn of(names: &[String], replies: Replies, columns: &Columns) -> Layout {
        // What is named for one field is not taken for another.
        let free =
            |name: &&String| columns.0.iter().all(|(_, named)| named.as_ref() != Some(*name));
        let has = |name: &str| names.iter().any(|column| column.eq_ignore_ascii_case(name));
        let find = |field: Field| match columns.named(field) {
            Some(named) => named.map(str::to_owned),
            // Beside an instruction, an input is only a part of what was asked.
            None if field == Prompt && has("instruction") && !has("prompt") && !has("question") => {
                None
            }
            None => field.known().iter().find_map(|known| {
                let mut names = names.iter().filter(free);
                let exact = names.clone().find(|name| name == known);
                exact.or_else(|| names.find(|name| name.eq_ignore_ascii_case(known))).cloned()
            }),
        };
        let mut layout = Layout { columns: Default::default() };
        let mut set = |field: Field| layout.columns[field as usize] = find(field);
        [Prompt, System, Chosen, Rejected, Subset, Id].into_iter().for_each(&mut set);
        if replies == Replies::Prepared || columns.named(Source).is_some() {
            set(Source);
        }
        let labeled = layout.has(Chosen) || layout.has(Rejected);
        let mut set = |field: Field| layout.columns[field as usize] = find(field);
        if !labeled {
            [A, B, Label].into_iter().for_each(&mut set);
        }
        if !labeled && layout.has(Label) && !layout.has(Subset) && columns.named(Subset).is_none() {
            layout.columns[Subset as usize] = find(Source);
        }
        // Without both replies that it is about, a label is another column.
        if !(layout.has(A) && layout.has(B)) {
            layout.columns[Label as usize] = None;
        }
        layout
    }

    /// The column that holds a field.
    pub(crate) fn column(&self, field: Field) -> Option<&str> {
        self.columns[field as usize].as_deref()
    }

    /// Reads a field no more.
    pub(crate) fn leave_out(&mut self, field: Field) {
        self.columns[field as usize] = None;
    }

    pub(crate) fn has(&self, field: Field) -> bool {
        self.column(field).is_some()
    }

    /// Whether a column is read.
    pub(crate) fn reads(&self, name: &str) -> bool {
        self.columns.iter().flatten().any(|column| column == name)
    }

    /// Whether a column holds a conversation or a part of one, whose empty text is text.
    pub(crate) fn is_text(&self, name: &str) -> bool {
        [Prompt, Chosen, Rejected, A, B].iter().any(|field| self.column(*field) == Some(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(names: &[&str], replies: Replies, columns: &str) -> Vec<(Field, String)> {
        let names: Vec<String> = names.iter().map(|name| name.to_string()).collect();
        let columns =
            if columns.is_empty() { Columns::default() } else { columns.parse().unwrap() };
        let layout = Layout::of(&names, replies, &columns);
        let column = |(field, _)| Some((field, layout.column(field)?.to_owned()));
        Field::ALL.into_iter().filter_map(column).collect()
    }

    #[test]
    fn layouts_are_known_by_their_columns() {
        let found = layout(&["Prompt", "prompt", "Chosen", "Rejected", "a", "b"], Replies::Any, "");
        let expected = [(Prompt, "prompt"), (Chosen, "Chosen"), (Rejected, "Rejected")];
        assert_eq!(found, expected.map(|(field, name)| (field, name.to_owned())));
        let judge_bench = [
            "pair_id",
            "source",
            "question",
            "response_model",
            "response_A",
            "response_B",
            "label",
        ];
        let expected = [
            (Prompt, "question"),
            (A, "response_A"),
            (B, "response_B"),
            (Label, "label"),
            (Subset, "source"),
            (Id, "pair_id"),
        ];
        let found = layout(&judge_bench, Replies::Labeled, "");
        assert_eq!(found, expected.map(|(field, name)| (field, name.to_owned())));
        assert_eq!(layout(&["text", "label"], Replies::Any, ""), []);
        assert_eq!(layout(&["instruction", "input"], Replies::Any, ""), []);
        assert_eq!(layout(&["input"], Replies::Any, ""), [(Prompt, "input".to_owned())]);
    }

    #[test]
    fn other_names_are_given_and_fields_left_out() {
        let found = layout(
            &["prompt", "q", "good", "bad", "system"],
            Replies::Labeled,
            "prompt=q, chosen=good,rejected=bad,system=",
        );
        let expected = [(Prompt, "q"), (Chosen, "good"), (Rejected, "bad")];
        assert_eq!(found, expected.map(|(field, name)| (field, name.to_owned())));
        // A column that has the name of another field.
        let found = layout(&["prompt", "question", "rejected"], Replies::Labeled, "chosen=prompt");
        let expected = [(Prompt, "question"), (Chosen, "prompt"), (Rejected, "rejected")];
        assert_eq!(found, expected.map(|(field, name)| (field, name.to_owned())));
        for (text, says) in [
            ("prompt", "not FIELD=COLUMN"),
            ("propmt=q", "not a field; there are prompt, system"),
            ("id=a,id=b", "id is given twice"),
            ("a=x,b=x", "column \"x\" is given for a and for b"),
            ("", "not FIELD=COLUMN"),
        ] {
            let error = text.parse::<Columns>().unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
