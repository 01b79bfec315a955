//! Constant lists that a template repeats or joins: `[0] * 100000000`.
//!
//! minijinja folds constants while it compiles, and fuel does not count then: it compares, searches and joins such lists for hours
//! or until memory is full. It folds strings only if they are short. So the length of every constant list is computed first.

use minijinja::machinery::ast::{BinOpKind, CallArg, Expr, Stmt};

/// Longer than any list that a sound template writes down, and short enough for what folding does with it.
const LEN_LIMIT: usize = 1000;

/// The shape of an expression, as far as it is known before it is evaluated.
#[derive(Clone, Copy, PartialEq)]
enum Shape {
    /// Depends on variables.
    Open,
    /// A constant that is no list.
    Scalar,
    /// A constant that is, or may be, a list of at most this many items.
    List(usize),
}

/// The line of a constant list that is repeated too often, if there is one.
pub(super) fn too_long(template: &Stmt) -> Option<usize> {
    let mut search = Search { line: None };
    search.statement(template);
    search.line
}

struct Search {
    line: Option<usize>,
}

impl Search {
    fn statements(&mut self, statements: &[Stmt]) {
        statements.iter().for_each(|statement| self.statement(statement));
    }

    fn statement(&mut self, statement: &Stmt) {
        match statement {
            Stmt::Template(it) => self.statements(&it.children),
            Stmt::EmitExpr(it) => self.ignore(&it.expr),
            Stmt::EmitRaw(_) | Stmt::Continue(_) | Stmt::Break(_) => {}
            Stmt::ForLoop(it) => {
                self.ignore(&it.target);
                self.ignore(&it.iter);
                self.option(&it.filter_expr);
                self.statements(&it.body);
                self.statements(&it.else_body);
            }
            Stmt::IfCond(it) => {
                self.ignore(&it.expr);
                self.statements(&it.true_body);
                self.statements(&it.false_body);
            }
            Stmt::WithBlock(it) => {
                for (target, value) in &it.assignments {
                    self.ignore(target);
                    self.ignore(value);
                }
                self.statements(&it.body);
            }
            Stmt::Set(it) => {
                self.ignore(&it.target);
                self.ignore(&it.expr);
            }
            Stmt::SetBlock(it) => {
                self.ignore(&it.target);
                self.option(&it.filter);
                self.statements(&it.body);
            }
            Stmt::AutoEscape(it) => {
                self.ignore(&it.enabled);
                self.statements(&it.body);
            }
            Stmt::FilterBlock(it) => {
                self.ignore(&it.filter);
                self.statements(&it.body);
            }
            Stmt::Macro(it) => {
                self.all(&it.defaults);
                self.statements(&it.body);
            }
            Stmt::CallBlock(it) => {
                self.ignore(&it.call.expr);
                self.arguments(&it.call.args);
                self.all(&it.macro_decl.defaults);
                self.statements(&it.macro_decl.body);
            }
            Stmt::Do(it) => {
                self.ignore(&it.call.expr);
                self.arguments(&it.call.args);
            }
        }
    }

    fn ignore(&mut self, expression: &Expr) {
        self.shape(expression);
    }

    fn option(&mut self, expression: &Option<Expr>) {
        expression.iter().for_each(|expression| self.ignore(expression));
    }

    fn arguments(&mut self, arguments: &[CallArg]) {
        for argument in arguments {
            match argument {
                CallArg::Pos(it)
                | CallArg::Kwarg(_, it)
                | CallArg::PosSplat(it)
                | CallArg::KwargSplat(it) => self.ignore(it),
            }
        }
    }

    /// Whether all are constant.
    fn all(&mut self, expressions: &[Expr]) -> bool {
        // Not Iterator::all, which would leave the rest unread.
        expressions.iter().filter(|it| self.shape(it) == Shape::Open).count() == 0
    }

    fn shape(&mut self, expression: &Expr) -> Shape {
        match expression {
            Expr::Const(_) => return Shape::Scalar,
            Expr::List(it) if self.all(&it.items) => return Shape::List(it.items.len()),
            Expr::Tuple(it) if self.all(&it.items) => return Shape::List(it.items.len()),
            Expr::Map(it) => {
                let constant = self.all(&it.keys) & self.all(&it.values);
                return if constant { Shape::Scalar } else { Shape::Open };
            }
            Expr::UnaryOp(it) => {
                let shape = self.shape(&it.expr);
                return if shape == Shape::Open { Shape::Open } else { Shape::Scalar };
            }
            Expr::BinOp(it) => {
                let (left, right) = (self.shape(&it.left), self.shape(&it.right));
                return match (it.op, left, right) {
                    (_, Shape::Open, _) | (_, _, Shape::Open) => Shape::Open,
                    (BinOpKind::Mul, Shape::List(len), _) => {
                        self.repeated(len, &it.right, expression)
                    }
                    (BinOpKind::Mul, _, Shape::List(len)) => {
                        self.repeated(len, &it.left, expression)
                    }
                    (BinOpKind::Add, Shape::List(left), Shape::List(right)) => {
                        self.list(left.saturating_add(right), expression)
                    }
                    (BinOpKind::ScAnd | BinOpKind::ScOr, Shape::List(left), Shape::List(right)) => {
                        Shape::List(left.max(right))
                    }
                    (BinOpKind::ScAnd | BinOpKind::ScOr, Shape::List(len), _)
                    | (BinOpKind::ScAnd | BinOpKind::ScOr, _, Shape::List(len)) => Shape::List(len),
                    _ => Shape::Scalar,
                };
            }
            Expr::Compare(it) => {
                let operands = it.ops.iter().map(|operation| &operation.expr);
                let open = std::iter::once(&it.expr)
                    .chain(operands)
                    .fold(false, |open, it| (self.shape(it) == Shape::Open) | open);
                return if open { Shape::Open } else { Shape::Scalar };
            }
            Expr::Var(_) | Expr::List(_) | Expr::Tuple(_) => {}
            Expr::Slice(it) => {
                self.ignore(&it.expr);
                self.option(&it.start);
                self.option(&it.stop);
                self.option(&it.step);
            }
            Expr::IfExpr(it) => {
                self.ignore(&it.test_expr);
                self.ignore(&it.true_expr);
                self.option(&it.false_expr);
            }
            Expr::Filter(it) => {
                self.option(&it.expr);
                self.arguments(&it.args);
            }
            Expr::Test(it) => {
                self.ignore(&it.expr);
                self.arguments(&it.args);
            }
            Expr::GetAttr(it) => self.ignore(&it.expr),
            Expr::GetItem(it) => {
                self.ignore(&it.expr);
                self.ignore(&it.subscript_expr);
            }
            Expr::Call(it) => {
                self.ignore(&it.expr);
                self.arguments(&it.args);
            }
        }
        Shape::Open
    }

    /// A list of `len` items times `count`.
    fn repeated(&mut self, len: usize, count: &Expr, whole: &Expr) -> Shape {
        if self.line.is_some() {
            return Shape::List(len); // what was found may be in `count`, which is not to be computed then
        }
        let count = count.as_const().and_then(|count| i64::try_from(count).ok()).unwrap_or(0);
        self.list(len.saturating_mul(usize::try_from(count).unwrap_or(0)), whole)
    }

    fn list(&mut self, len: usize, whole: &Expr) -> Shape {
        if len > LEN_LIMIT && self.line.is_none() {
            self.line = Some(usize::from(whole.span().start_line));
        }
        Shape::List(len)
    }
}
