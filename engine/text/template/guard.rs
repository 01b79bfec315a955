//! Checks between the instructions of a compiled template, for what the fuel of minijinja 3.1 does not count.
//!
//! The crate counts instructions, the bytes of strings, and the items of one list, but not items of items: two lists of two lists
//! of two lists are compared, printed, hashed and sorted in time exponential in the depth, and by recursion. It also joins,
//! repeats and slices lists lazily, view upon view. So the instructions are copied, with checks between them:
//!
//! - After an instruction that makes a value (a literal, an operator, a call), the whole value is visited: every part is paid for,
//!   nesting below [`MAX_DEPTH`] is an error, and a lazy view becomes a list.
//! - Before an instruction that reads whole values (comparisons, `in`, `~`, hashing a key), the parts that it will read are paid
//!   for.
//! - Filters, tests and methods become filters and tests of our own with names that no template can write, which look at
//!   the arguments, call what `python` has, and look at the result. Operators, attributes and items become Python's.
//! - A namespace, whose parts may change later, can be in no other value, or it could come to contain itself.
//!
//! The stable API cannot do this. It has no hook for operators, comparisons, `in`, `~` and literals, which are instructions that
//! build lazy views and compare shared parts before any function of ours is called, and Python's operators are put in at the
//! same place. Fuel, the limit of recursion and a bound on the output do not see that work: `[x, x]` thirty times and one `==`
//! is a billion comparisons for a hundred units of fuel.

use std::collections::{BTreeMap, BTreeSet};

use minijinja::machinery::{self, Instruction, Instructions};
use minijinja::value::{Rest, ValueKind, ValueOrKwargs};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, Value};

use super::python::{self, Generator, Method, View, is_among};

/// Deepest nesting of values.
pub(super) const MAX_DEPTH: usize = 64;
/// A visit of a part takes some 20 ns, its use afterwards a few times that; a unit of fuel stands for a microsecond.
const PARTS_PER_FUEL: usize = 8;
/// The price of text that is written, or read character by character: minijinja's own.
const WRITTEN_BYTES_PER_FUEL: usize = 64;
/// The price of text that is only compared with other text, byte by byte.
const READ_BYTES_PER_FUEL: usize = 1024;

/// Filters that do not look inside the items, or that count their work themselves.
const SHALLOW_FILTERS: &str =
    "length count first last default d list items tojson string attr reverse";
/// Filters that compare text or hand it on, and write none.
const READING_FILTERS: &str =
    "select reject selectattr rejectattr sort unique min max groupby dictsort batch slice zip sum";
/// Tests that look only at the kind of a value.
const SHALLOW_TESTS: &str = "defined undefined none string mapping sequence iterable number integer int float boolean \
    true false odd even divisibleby filter test";
/// Methods of dicts that do not look into the values.
const SHALLOW_METHODS: &str = "get items keys values";

type Arguments = Rest<ValueOrKwargs>;

/// No cache slot for the filter or test of an instruction.
const NO_SLOT: u8 = !0;
const PAY_TO_READ: &str = "=pay-to-read";
const PAY_TO_WRITE: &str = "=pay-to-write";
const PAY_FOR_TEXT: &str = "=pay-for-text";
const REFUSE_NAMESPACE: &str = "=refuse-namespace";
const IS_LAZY: &str = "=is-lazy";
const MAKE_LIST: &str = "=make-list";

/// Adds the checks, and a guarded twin of every filter, test and method that template `name` uses.
pub(super) fn install(environment: &mut Environment<'static>, name: &str) {
    let template = environment.get_template(name).expect("added before");
    let instructions = &machinery::get_compiled_template(&template).instructions;
    let (mut filters, mut tests) = (BTreeSet::new(), BTreeSet::new());
    let (mut methods, mut attributes) = (BTreeSet::new(), BTreeSet::new());
    for instruction in each(instructions) {
        match instruction {
            Instruction::ApplyFilter(name, ..) => filters.insert(spaceless(name)),
            Instruction::PerformTest(name, ..) => tests.insert(spaceless(name)),
            Instruction::CallMethod(name, ..) => methods.insert((*name).to_owned()),
            Instruction::GetAttr(name) => attributes.insert((*name).to_owned()),
            _ => false,
        };
    }
    for name in filters {
        let twin = format!("={name}");
        environment.add_filter(twin, move |state: &mut State, arguments: Arguments| {
            apply_filter(state, &name, &arguments.into_values())
        });
    }
    for name in tests {
        let twin = format!("={name}");
        environment.add_test(twin, move |state: &mut State, arguments: Arguments| {
            perform_test(state, &name, &arguments.into_values())
        });
    }
    for name in methods {
        let twin = format!(".{name}");
        environment.add_filter(twin, move |state: &mut State, arguments: Arguments| {
            call_method(state, &name, &arguments.into_values())
        });
    }
    for name in attributes {
        let twin = format!("@{name}");
        environment.add_filter(twin, move |state: &State, value: ValueOrKwargs| {
            python::attribute(state, &value, &name)
        });
    }
    environment.add_test(PAY_TO_READ, |state: &State, value: ValueOrKwargs| {
        pay(state, &value, READ_BYTES_PER_FUEL).map(|()| true)
    });
    environment.add_test(PAY_TO_WRITE, |state: &State, value: ValueOrKwargs| {
        match value.as_str() {
            Some(_) => Ok(true), // the crate counts what is written of a text, and before it writes
            None => pay(state, &value, WRITTEN_BYTES_PER_FUEL).map(|()| true),
        }
    });
    environment.add_test(PAY_FOR_TEXT, |state: &State, value: ValueOrKwargs| {
        let len_bytes = value.as_str().map_or(0, str::len);
        state.consume_fuel((len_bytes / WRITTEN_BYTES_PER_FUEL) as u64).map(|()| true)
    });
    environment.add_test(REFUSE_NAMESPACE, |value: ValueOrKwargs| {
        if is_mutable(&value) { Err(namespace_inside()) } else { Ok(true) }
    });
    environment.add_test(IS_LAZY, |state: &State, value: ValueOrKwargs| {
        let lazy = is_lazy(&value);
        // A lazy value is looked at once it is a list.
        if lazy { Ok(true) } else { pay(state, &value, usize::MAX).map(|()| false) }
    });
    environment.add_filter(MAKE_LIST, |state: &State, value: ValueOrKwargs| {
        settled(state, value.into_value())
    });
}

/// Renders template `name`, with the checks between its instructions.
pub(super) fn render(
    environment: &Environment<'_>,
    name: &str,
    variables: Value,
) -> Result<String, Error> {
    let template = environment.get_template(name)?;
    let compiled = machinery::get_compiled_template(&template);
    // The names of the guarded twins have to live as long as the instructions.
    let twins: BTreeMap<(char, String), String> = each(&compiled.instructions)
        .filter_map(|instruction| match instruction {
            Instruction::ApplyFilter(name, ..) | Instruction::PerformTest(name, ..) => {
                Some((('=', (*name).to_owned()), format!("={}", spaceless(name))))
            }
            Instruction::CallMethod(name, ..) => {
                Some((('.', (*name).to_owned()), format!(".{name}")))
            }
            Instruction::GetAttr(name) => Some((('@', (*name).to_owned()), format!("@{name}"))),
            _ => None,
        })
        .collect();
    let instructions = guarded(&compiled.instructions, &twins);
    let mut text = String::new();
    let mut output = machinery::make_string_output(&mut text);
    let blocks = BTreeMap::new();
    machinery::eval(environment, &instructions, variables, &blocks, &mut output, AutoEscape::None)?;
    Ok(text)
}

fn each<'a, 'source>(
    instructions: &'a Instructions<'source>,
) -> impl Iterator<Item = &'a Instruction<'source>> {
    (0..).map_while(|at| instructions.get(at))
}

/// A filter's name as the crate looks it up.
fn spaceless(name: &str) -> String {
    name.chars().filter(|character| !character.is_ascii_whitespace()).collect()
}

/// The instructions with the checks, and with jumps to the same instructions as before.
fn guarded<'a>(
    plain: &Instructions<'a>,
    twins: &'a BTreeMap<(char, String), String>,
) -> Instructions<'a> {
    let twin = |kind: char, name: &str| twins[&(kind, name.to_owned())].as_str();
    let result = Instructions::new(plain.name(), plain.source());
    let mut copy = Copy { plain, at: 0, result, len: 0 };
    let mut places = Vec::new(); // where each plain instruction begins in the copy
    let mut jumps = Vec::new();
    for instruction in each(plain) {
        places.push(copy.len);
        copy.look_before(instruction);
        let place = copy.add(match instruction {
            Instruction::ApplyFilter(name, arguments, _) => {
                Instruction::ApplyFilter(twin('=', name), *arguments, NO_SLOT)
            }
            Instruction::PerformTest(name, arguments, _) => {
                Instruction::PerformTest(twin('=', name), *arguments, NO_SLOT)
            }
            Instruction::CallMethod(name, arguments) => {
                Instruction::ApplyFilter(twin('.', name), *arguments, NO_SLOT)
            }
            Instruction::GetAttr(name) => {
                Instruction::ApplyFilter(twin('@', name), Some(1), NO_SLOT)
            }
            other => match operator(other) {
                Some((name, operands)) => Instruction::ApplyFilter(name, Some(operands), NO_SLOT),
                None => other.clone(),
            },
        });
        if target(&mut instruction.clone()).is_some() {
            jumps.push(place);
        }
        copy.look_after(instruction);
        copy.at += 1;
    }
    places.push(copy.len);
    for place in jumps {
        if let Some(target) = copy.result.get_mut(place).and_then(target) {
            *target = places[*target as usize];
        }
    }
    copy.result
}

/// Python's operator in place of the crate's, and the number of its operands.
fn operator(instruction: &Instruction) -> Option<(&'static str, u16)> {
    Some(match instruction {
        Instruction::Add => ("=op-add", 2),
        Instruction::Sub => ("=op-sub", 2),
        Instruction::Mul => ("=op-mul", 2),
        Instruction::Div => ("=op-div", 2),
        Instruction::IntDiv => ("=op-floordiv", 2),
        Instruction::Rem => ("=op-rem", 2),
        Instruction::Pow => ("=op-pow", 2),
        Instruction::StringConcat => ("=op-concat", 2),
        Instruction::Eq => ("=op-eq", 2),
        Instruction::Ne => ("=op-ne", 2),
        Instruction::Lt => ("=op-lt", 2),
        Instruction::Lte => ("=op-le", 2),
        Instruction::Gt => ("=op-gt", 2),
        Instruction::Gte => ("=op-ge", 2),
        Instruction::In => ("=op-in", 2),
        Instruction::GetItem => (python::ITEM, 2),
        Instruction::Slice => (python::SLICE, 4),
        Instruction::Neg => (python::NEGATE, 1),
        _ => return None,
    })
}

/// The target of a jump.
fn target<'a>(instruction: &'a mut Instruction<'_>) -> Option<&'a mut u32> {
    match instruction {
        Instruction::Jump(target)
        | Instruction::JumpIfFalse(target)
        | Instruction::JumpIfFalseOrPop(target)
        | Instruction::JumpIfTrueOrPop(target)
        | Instruction::Iterate(target)
        | Instruction::BuildMacro(_, target, _) => Some(target),
        _ => None,
    }
}

/// A copy of instructions that grows.
struct Copy<'a, 'source> {
    plain: &'a Instructions<'source>,
    /// The plain instruction that is being copied: its checks get its place in the source.
    at: u32,
    result: Instructions<'source>,
    len: u32,
}

impl<'source> Copy<'_, 'source> {
    fn add(&mut self, instruction: Instruction<'source>) -> u32 {
        self.len += 1;
        match (self.plain.get_span(self.at), self.plain.get_line(self.at)) {
            (Some(span), _) => self.result.add_with_span(instruction, span),
            (None, Some(line)) => {
                let line = u16::try_from(line).unwrap_or(u16::MAX);
                self.result.add_with_line(instruction, line)
            }
            (None, None) => self.result.add(instruction),
        }
    }

    /// A test of the value on top of the stack, for its errors.
    fn look(&mut self, test: &'static str) {
        self.add(Instruction::DupTop);
        self.add(Instruction::PerformTest(test, Some(1), NO_SLOT));
        self.add(Instruction::DiscardTop);
    }

    /// The same for the value below.
    fn look_below(&mut self, test: &'static str) {
        self.add(Instruction::Swap);
        self.look(test);
        self.add(Instruction::Swap);
    }

    fn look_before(&mut self, instruction: &Instruction) {
        match instruction {
            Instruction::Eq
            | Instruction::Ne
            | Instruction::Gt
            | Instruction::Gte
            | Instruction::Lt
            | Instruction::Lte
            | Instruction::In
            | Instruction::CompareAndPreserve(_) => {
                self.look(PAY_TO_READ);
                self.look_below(PAY_TO_READ);
            }
            Instruction::StringConcat => {
                self.look(PAY_TO_WRITE);
                self.look_below(PAY_TO_WRITE);
            }
            // The key is hashed; characters of a text are counted from its start.
            Instruction::GetItem => {
                self.look(PAY_TO_READ);
                self.look_below(PAY_FOR_TEXT);
            }
            Instruction::SetAttr(_) => self.look_below(REFUSE_NAMESPACE),
            Instruction::PushLoop(_) => {
                self.look(PAY_FOR_TEXT);
                self.add(Instruction::ApplyFilter(python::ITERATE, Some(1), NO_SLOT));
            }
            Instruction::UnpackList(_) => {
                self.add(Instruction::ApplyFilter(python::UNPACK, Some(1), NO_SLOT));
            }
            Instruction::GetClosure => self.enclose_namespaces(),
            _ => {}
        }
    }

    /// The crate gives a macro the variables that it reads, but not the namespaces whose attributes it only sets.
    fn enclose_namespaces(&mut self) {
        let Some(Instruction::BuildMacro(_, body, _)) = self.plain.get(self.at + 2) else { return };
        for at in *body..self.at {
            let (set, namespace) = (self.plain.get(at + 1), self.plain.get(at));
            if let (Some(Instruction::SetAttr(_)), Some(Instruction::Lookup(name))) =
                (set, namespace)
            {
                self.add(Instruction::Enclose(name));
            }
        }
    }

    fn look_after(&mut self, instruction: &Instruction) {
        match instruction {
            Instruction::BuildMap(_)
            | Instruction::BuildList(_)
            | Instruction::BuildTuple(_)
            | Instruction::Add
            | Instruction::Mul
            | Instruction::CallFunction(..)
            | Instruction::CallObject(_) => self.settle(),
            Instruction::LoadConst(value) if value.as_object().is_some() => self.settle(),
            Instruction::MergeKwargs(_) => self.look(PAY_TO_READ),
            _ => {}
        }
    }

    /// Looks at the value on top of the stack, which is new, and makes it a list if it is lazy.
    fn settle(&mut self) {
        self.add(Instruction::DupTop);
        self.add(Instruction::PerformTest(IS_LAZY, Some(1), NO_SLOT));
        let next = self.len + 2;
        self.add(Instruction::JumpIfFalse(next));
        self.add(Instruction::ApplyFilter(MAKE_LIST, Some(1), NO_SLOT));
    }
}

pub(super) fn apply_filter(
    state: &mut State,
    name: &str,
    arguments: &[Value],
) -> Result<Value, Error> {
    let Some((value, rest)) = arguments.split_first() else {
        return Err(Error::from(ErrorKind::MissingArgument));
    };
    let reads = match name {
        // map(attribute="content") only hands on; map("join") writes.
        "map" => rest.first().is_none_or(|first| first.as_str().is_none()),
        _ => is_among(READING_FILTERS, name),
    };
    let bytes_per_fuel = if reads { READ_BYTES_PER_FUEL } else { WRITTEN_BYTES_PER_FUEL };
    // The crate has charged for the text of the value itself.
    if value.as_str().is_none() && !is_among(SHALLOW_FILTERS, name) {
        pay(state, value, bytes_per_fuel)?;
    }
    for argument in rest {
        pay(state, argument, bytes_per_fuel)?;
    }
    // A part has 24 bytes, however short its text is: it is paid for before it is made.
    if let (Some(text), "split" | "lines") = (value.as_str(), name) {
        let parts = match rest.first().and_then(Value::as_str) {
            Some(separator) if name == "split" => text.matches(separator).count(),
            _ => text.chars().filter(|character| character.is_whitespace()).count(),
        };
        state.consume_fuel(parts as u64 / 2)?;
    }
    match state.apply_filter(name, arguments) {
        Ok(result) => settled(state, result),
        Err(error)
            if error.kind() == ErrorKind::UnknownFilter
                && !state.perform_test("filter", &[Value::from(name)])? =>
        {
            Err(Error::new(ErrorKind::UnknownFilter, format!("filter {name} is unknown")))
        }
        Err(error) => Err(error),
    }
}

pub(super) fn perform_test(
    state: &mut State,
    name: &str,
    arguments: &[Value],
) -> Result<bool, Error> {
    if !is_among(SHALLOW_TESTS, name) {
        for argument in arguments {
            pay(state, argument, WRITTEN_BYTES_PER_FUEL)?;
        }
    }
    state.perform_test(name, arguments).map_err(|error| match error.kind() {
        ErrorKind::UnknownTest => {
            Error::new(ErrorKind::UnknownTest, format!("test {name} is unknown"))
        }
        _ => error,
    })
}

pub(super) fn call_method(
    state: &mut State,
    name: &str,
    arguments: &[Value],
) -> Result<Value, Error> {
    let Some((value, rest)) = arguments.split_first() else {
        return Err(Error::from(ErrorKind::MissingArgument));
    };
    for argument in rest {
        pay(state, argument, WRITTEN_BYTES_PER_FUEL)?;
    }
    // The crate has charged for the text of the value itself.
    if value.as_str().is_none() && !is_mutable(value) && !is_among(SHALLOW_METHODS, name) {
        pay(state, value, WRITTEN_BYTES_PER_FUEL)?;
    }
    let result = python::call_method(state, value, name, rest)?;
    settled(state, result)
}

/// A new value, paid for; a lazy one becomes a list.
fn settled(state: &State, value: Value) -> Result<Value, Error> {
    let value = if is_lazy(&value) { collect(state, &value)?.into() } else { value };
    pay(state, &value, usize::MAX)?;
    Ok(value)
}

/// A list that the crate has not made yet. Views and generators of our own have all their items.
fn is_lazy(value: &Value) -> bool {
    value.kind() == ValueKind::Iterable
        && value.downcast_object_ref::<View>().is_none()
        && value.downcast_object_ref::<Generator>().is_none()
}

/// The items of a list, paid for as they come: a lazy list may never end.
fn collect(state: &State, value: &Value) -> Result<Vec<Value>, Error> {
    let mut items = Vec::new();
    for item in value.try_iter()?.checked() {
        items.push(item?);
        if items.len() % PARTS_PER_FUEL == 0 {
            state.consume_fuel(1)?;
        }
    }
    Ok(items)
}

/// Pays for all that is in `value`.
fn pay(state: &State, value: &Value, bytes_per_fuel: usize) -> Result<(), Error> {
    let mut look = Look { state, parts: 0, bytes: 0, bytes_per_fuel };
    look.at(value, 0)?;
    look.pay()
}

struct Look<'a, 'template, 'env> {
    state: &'a State<'template, 'env>,
    parts: usize,
    bytes: usize,
    bytes_per_fuel: usize,
}

impl Look<'_, '_, '_> {
    fn pay(&mut self) -> Result<(), Error> {
        let fuel = self.parts / PARTS_PER_FUEL + self.bytes / self.bytes_per_fuel;
        self.parts %= PARTS_PER_FUEL;
        self.bytes %= self.bytes_per_fuel;
        self.state.consume_fuel(fuel as u64)
    }

    fn at(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        let Some(object) = value.as_object() else {
            self.bytes = self.bytes.saturating_add(value.as_str().map_or(0, str::len));
            return Ok(());
        };
        if is_mutable(value) && depth > 0 {
            return Err(namespace_inside());
        }
        if depth >= MAX_DEPTH {
            let message = format!("a value is nested deeper than {MAX_DEPTH}");
            return Err(Error::new(ErrorKind::InvalidOperation, message));
        }
        // Looking at a generator would use it up.
        let items = value.downcast_object_ref::<Generator>().map(|generator| &generator.items);
        let items = items.or(value.downcast_object_ref::<View>().map(|view| &view.items));
        if let Some(items) = items {
            return items.iter().try_for_each(|item| self.part(item, depth));
        }
        if let Some(method) = value.downcast_object_ref::<Method>() {
            return self.part(&method.value, depth);
        }
        match value.kind() {
            ValueKind::Seq | ValueKind::Iterable => {
                for item in value.try_iter()?.checked() {
                    self.part(&item?, depth)?;
                }
            }
            ValueKind::Map => {
                for (key, item) in object.try_iter_pairs().into_iter().flatten() {
                    self.part(&key, depth)?;
                    self.part(&item, depth)?;
                }
            }
            _ => {} // functions and macros
        }
        Ok(())
    }

    fn part(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        self.parts += 1;
        if self.parts >= 1024 {
            self.pay()?;
        }
        self.at(value, depth + 1)
    }
}

/// Whether the contents of `value` may change after the visit. These types are private to the crate; a test checks their names.
fn is_mutable(value: &Value) -> bool {
    value.as_object().is_some_and(|object| {
        let name = object.type_name();
        name.ends_with("::Namespace") || name.ends_with("::Loop")
    })
}

fn namespace_inside() -> Error {
    let message = "a namespace or a loop cannot be put into another value";
    Error::new(ErrorKind::InvalidOperation, message)
}
