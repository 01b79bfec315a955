//! Python's kinds of values, and the objects that minijinja has no value for: ranges, views of dicts, generators, bound methods.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use minijinja::value::{Enumerator, Object, ObjectRepr, Tuple, ValueKind};
use minijinja::{Error, State, Value};

use super::methods;

/// The type of a value in Python.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::text::template) enum Kind {
    Undefined,
    None,
    Bool,
    Int,
    Float,
    Str,
    List,
    Tuple,
    Range,
    View,
    Generator,
    Dict,
    /// jinja2's, which has attributes and is no dict.
    Namespace,
    Loop,
    /// Functions, macros, methods, types.
    Callable,
}

impl Kind {
    pub(in crate::text::template) fn of(value: &Value) -> Kind {
        match value.kind() {
            ValueKind::Undefined => Kind::Undefined,
            ValueKind::None => Kind::None,
            ValueKind::Bool => Kind::Bool,
            ValueKind::Number if value.is_integer() => Kind::Int,
            ValueKind::Number => Kind::Float,
            ValueKind::String => Kind::Str,
            _ if value.is_tuple() => Kind::Tuple,
            _ if value.downcast_object_ref::<Range>().is_some() => Kind::Range,
            _ if value.downcast_object_ref::<View>().is_some() => Kind::View,
            _ if value.downcast_object_ref::<Group>().is_some() => Kind::Tuple,
            ValueKind::Seq => Kind::List,
            ValueKind::Iterable => Kind::Generator,
            ValueKind::Map => match value.as_object().map_or("", |object| object.type_name()) {
                name if name.ends_with("::Namespace") => Kind::Namespace,
                name if name.ends_with("::Loop") => Kind::Loop,
                name if name.ends_with("::Macro") => Kind::Callable,
                _ => Kind::Dict,
            },
            _ => Kind::Callable,
        }
    }

    /// type(value).__name__
    pub(in crate::text::template) fn name(self) -> &'static str {
        match self {
            Kind::Undefined => "Undefined",
            Kind::None => "NoneType",
            Kind::Bool => "bool",
            Kind::Int => "int",
            Kind::Float => "float",
            Kind::Str => "str",
            Kind::List => "list",
            Kind::Tuple => "tuple",
            Kind::Range => "range",
            Kind::View => "dict view",
            Kind::Generator => "generator",
            Kind::Dict => "dict",
            Kind::Namespace => "Namespace",
            Kind::Loop => "LoopContext",
            Kind::Callable => "function",
        }
    }

    /// Whether `iter()` takes it.
    pub(in crate::text::template) fn is_iterable(self) -> bool {
        !matches!(
            self,
            Kind::None | Kind::Bool | Kind::Int | Kind::Float | Kind::Namespace | Kind::Callable
        )
    }

    /// Whether it can be a key of a dict.
    pub(super) fn is_hashable(self) -> bool {
        !matches!(self, Kind::List | Kind::Dict | Kind::View)
    }
}

/// range(start, stop, step)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::text::template) struct Range {
    pub(super) start: i64,
    pub(super) stop: i64,
    pub(super) step: i64,
}

impl Range {
    pub(super) fn len(&self) -> usize {
        let (start, stop, step) =
            (i128::from(self.start), i128::from(self.stop), i128::from(self.step));
        let steps = if step > 0 { stop - start + step - 1 } else { start - stop - step - 1 };
        usize::try_from(steps / step.abs()).unwrap_or(0)
    }

    pub(super) fn at(&self, index: usize) -> Option<i64> {
        (index < self.len()).then(|| self.start + self.step * index as i64)
    }
}

impl fmt::Display for Range {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Range { start, stop, step } = self;
        match step {
            1 => write!(formatter, "range({start}, {stop})"),
            _ => write!(formatter, "range({start}, {stop}, {step})"),
        }
    }
}

impl Object for Range {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Seq
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.at(key.as_usize()?).map(Value::from)
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Seq(self.len())
    }
}

/// The result of keys(), values() and items().
#[derive(Debug)]
pub(in crate::text::template) struct View {
    pub(super) name: &'static str,
    pub(in crate::text::template) items: Vec<Value>,
}

impl Object for View {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Iterable
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(self.items.clone())
    }
}

/// The result of filters such as `map`: read once, always true, without a length. All items are there from the start.
#[derive(Debug)]
pub(in crate::text::template) struct Generator {
    pub(in crate::text::template) items: Vec<Value>,
    next: AtomicUsize,
}

impl Generator {
    pub(super) fn of(items: Vec<Value>) -> Value {
        Value::from_object(Generator { items, next: AtomicUsize::new(0) })
    }
}

impl Object for Generator {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Iterable
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        let this = Arc::clone(self);
        Enumerator::Iter(Box::new(std::iter::from_fn(move || {
            this.items.get(this.next.fetch_add(1, Ordering::Relaxed)).cloned()
        })))
    }

    fn enumerator_len(self: &Arc<Self>) -> Option<usize> {
        None
    }

    fn is_true(self: &Arc<Self>) -> bool {
        true
    }
}

/// A group of `groupby`: a tuple of two with names.
#[derive(Debug)]
pub(in crate::text::template) struct Group {
    pub(super) grouper: Value,
    pub(super) list: Value,
}

impl Object for Group {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Seq
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        match key.as_usize()? {
            0 => Some(self.grouper.clone()),
            1 => Some(self.list.clone()),
            _ => None,
        }
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Seq(2)
    }
}

/// `value.name`, where that is a method.
#[derive(Debug)]
pub(in crate::text::template) struct Method {
    pub(in crate::text::template) value: Value,
    pub(super) name: String,
}

impl Object for Method {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn call(self: &Arc<Self>, state: &mut State<'_, '_>, args: &[Value]) -> Result<Value, Error> {
        let mut arguments = vec![self.value.clone()];
        arguments.extend_from_slice(args);
        crate::text::template::guard::call_method(state, &self.name, &arguments)
    }
}

/// The type dict.
#[derive(Debug)]
pub(super) struct DictType;

impl Object for DictType {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn call(self: &Arc<Self>, state: &mut State<'_, '_>, args: &[Value]) -> Result<Value, Error> {
        super::dict(state, args)
    }

    fn call_method(
        self: &Arc<Self>,
        state: &mut State<'_, '_>,
        method: &str,
        args: &[Value],
    ) -> Result<Value, Error> {
        match method {
            "fromkeys" => methods::from_keys(state, args),
            _ => Err(super::type_error(format!("type dict has no method {method}"))),
        }
    }
}

pub(super) fn tuple(items: impl Into<Tuple>) -> Value {
    Value::from(items.into())
}
