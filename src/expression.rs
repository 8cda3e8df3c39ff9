//! CEL (<https://github.com/google/cel-spec>) over events and answers: compiled once, bounded in cost. Pure.
//!
//! Owns which variables and functions an expression sees, and what it may cost; knows nothing of resources, stores or
//! requests. Expressions come from tenants and what they read comes from producers and receivers, so neither is trusted: the
//! source is bounded and its nesting too, each evaluation has a budget ([`meter`]), and no error repeats what it read.
//! Invariant: no expression and no input makes it panic, run longer than its budget or take memory beyond it.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, LazyLock};

use cel::{Env, ExecutionError, IdedExpr, Value};
use serde_json::Value as Json;

use crate::blocking::beside_the_worker;

mod functions;
mod meter;
mod scope;
mod shared;
#[cfg(test)]
mod tests;

pub use functions::url_encoded;
pub use scope::{Scope, TOGETHER};

/// What an expression is for: which variables it sees, how long it may be and what one evaluation may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Whether a subscription takes an event; a boolean over `event`.
    Filter,
    /// The key within which messages keep their order; a string or a number over `event`.
    Key,
    /// Whether an answer is a success; a boolean over `response`.
    Success,
    /// A path or a header's value; a string over `event` and `secrets`.
    Text,
    /// A request's body; any JSON over `event` and `secrets`.
    Body,
    /// A dead letter's body; any JSON over `event` and `message`.
    DeadLetter,
}

impl Role {
    /// The variables it sees.
    fn variables(self) -> &'static [&'static str] {
        match self {
            Role::Filter | Role::Key => &["event"],
            Role::Success => &["response"],
            Role::Text | Role::Body => &["event", "secrets"],
            Role::DeadLetter => &["event", "message"],
        }
    }

    /// The longest source, in bytes.
    pub const fn longest(self) -> usize {
        match self {
            Role::Filter | Role::Key | Role::Success => 1024,
            Role::Text | Role::Body | Role::DeadLetter => 8192,
        }
    }

    /// What one evaluation may cost, in the units of [`meter`]: about a byte copied or looked at.
    fn budget(self) -> u64 {
        match self {
            // A thousand of them may look at one event.
            Role::Filter => 256 << 10,
            // As many as there are endpoints with an order.
            Role::Key => 64 << 10,
            Role::Success | Role::Text => 1 << 20,
            Role::Body | Role::DeadLetter => 4 << 20,
        }
    }
}

/// A compiled expression; cheap to clone.
#[derive(Clone)]
pub struct Expression {
    role: Role,
    source: Arc<str>,
    program: Arc<IdedExpr>,
    constants: shared::Constants,
}

/// Why a source is no expression. Its text says what to write instead, and may repeat parts of the source.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    #[error("an expression must not be empty")]
    Empty,
    #[error("an expression must have at most {longest} bytes, this one has {bytes}")]
    TooLong { bytes: usize, longest: usize },
    #[error("line {line}, column {column}: {message}")]
    Syntax {
        line: usize,
        column: usize,
        message: String,
    },
    #[error("{0}")]
    Refused(String),
}

/// Why an expression has no value for what it was given. Holds nothing of what it read: only the expression's own names,
/// and types.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EvaluationError {
    /// It reads a field or key that is not there.
    #[error("there is no {0}: ask has() first, or read it with .?{0}")]
    Missing(String),
    #[error("a field or key that it reads is not there: ask has() first, or read it with .?")]
    MissingSomewhere,
    /// An operator or function met types that it is not defined for.
    #[error("{operation} is not defined for {types}")]
    Types { operation: String, types: String },
    /// It has another type than it must have.
    #[error("it must be {wanted}, and is {found}")]
    Result { wanted: &'static str, found: String },
    /// An index, a division, a number too large, a conversion.
    #[error("{0}")]
    Failed(String),
    /// The budget is spent.
    #[error("it costs too much for this input: look at less of it, or cut it with truncate()")]
    Cost,
    /// The data cannot be read as a value.
    #[error("the data is JSON that cannot be read: nested deeper than 127 levels, or with a number out of range")]
    Unreadable,
}

/// From here on an evaluation may take long enough, about a millisecond, that others must not wait for it.
const HEAVY: u64 = 512 << 10;

/// Stack to compile on: the parser recurses, and a worker's stack is shared with what called it.
const COMPILE_STACK: usize = 16 << 20;

static ENVIRONMENT: LazyLock<Arc<Env>> = LazyLock::new(|| Arc::new(functions::environment()));

impl Expression {
    /// Compiles a source for a role. Takes a thread of its own and about a millisecond: compile once.
    pub fn compile(role: Role, source: &str) -> Result<Expression, CompileError> {
        if source.trim().is_empty() {
            return Err(CompileError::Empty);
        }
        let (bytes, longest) = (source.len(), role.longest());
        if bytes > longest {
            return Err(CompileError::TooLong { bytes, longest });
        }
        let broken = || CompileError::Refused("the expression cannot be compiled: write a simpler one".to_owned());
        let program = std::thread::scope(|scope| {
            let compile = || parse(source).and_then(|parsed| meter::metered(parsed, role.variables()));
            let thread = std::thread::Builder::new()
                .name("compile".to_owned())
                .stack_size(COMPILE_STACK)
                .spawn_scoped(scope, compile);
            let compiled = thread.map_err(|_| broken())?.join();
            compiled.unwrap_or_else(|_| Err(broken()))
        })?;
        let (program, constants) = shared::split(program);
        Ok(Expression {
            role,
            source: source.into(),
            program,
            constants,
        })
    }

    /// As it was written.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// A boolean.
    pub fn test(&self, scope: &Scope<'_>) -> Result<bool, EvaluationError> {
        match self.evaluate(scope)? {
            Value::Bool(is) => Ok(is),
            other => Err(wanted("a boolean", &other)),
        }
    }

    /// A string, or a whole number's digits.
    pub fn text(&self, scope: &Scope<'_>) -> Result<String, EvaluationError> {
        match self.evaluate(scope)? {
            Value::String(text) => Ok(Arc::unwrap_or_clone(text)),
            Value::Int(number) => Ok(number.to_string()),
            Value::UInt(number) => Ok(number.to_string()),
            other => Err(wanted("a string or a whole number", &other)),
        }
    }

    /// Any JSON; timestamps and durations as strings, bytes as base64, an empty optional as null.
    pub fn json(&self, scope: &Scope<'_>) -> Result<Json, EvaluationError> {
        scope::json(&self.evaluate(scope)?)
    }

    fn evaluate(&self, scope: &Scope<'_>) -> Result<Value, EvaluationError> {
        if scope.is_unreadable() {
            return Err(EvaluationError::Unreadable);
        }
        // What filters leave must not decide by which key a message is ordered.
        let is_shared = self.role != Role::Key;
        let budget = match is_shared {
            true => scope.remaining().min(self.role.budget()),
            false => self.role.budget(),
        };
        let _metered = meter::start(budget);
        let _reading = shared::read(&self.constants);
        // The interpreter is not ours and its input is nobody's friend: a defect in it ends one evaluation.
        let evaluate = || catch_unwind(AssertUnwindSafe(|| scope.context().resolve(&self.program)));
        let result = match budget > HEAVY || scope.spent() > HEAVY {
            true => beside_the_worker(evaluate),
            false => evaluate(),
        };
        if is_shared {
            scope.spend(budget - meter::remaining());
        }
        if meter::is_spent() {
            return Err(EvaluationError::Cost);
        }
        let result = result.map_err(|_| EvaluationError::Failed("it cannot be evaluated".to_owned()))?;
        result.map_err(|error| self.told(error))
    }

    /// What went wrong, without anything that was read: a name only where the source has it.
    fn told(&self, error: ExecutionError) -> EvaluationError {
        let types = |operation: &str, all: &[&Value]| EvaluationError::Types {
            operation: operation.to_owned(),
            types: all
                .iter()
                .map(|value| value.type_of().to_string())
                .collect::<Vec<_>>()
                .join(" and "),
        };
        match error {
            ExecutionError::NoSuchKey(name) if self.names(&name) => EvaluationError::Missing(name.to_string()),
            ExecutionError::NoSuchKey(_) => EvaluationError::MissingSomewhere,
            ExecutionError::NoSuchOverload(error) => EvaluationError::Types {
                operation: operator(error.function()).to_owned(),
                types: error.argument_types().join(" and "),
            },
            ExecutionError::UnexpectedType { got, want } => {
                EvaluationError::Failed(format!("{got} where {want} is needed"))
            }
            ExecutionError::ValuesNotComparable(left, right) => types("comparison", &[&left, &right]),
            ExecutionError::UnsupportedBinaryOperator(name, left, right) => types(operator(name), &[&left, &right]),
            ExecutionError::IndexOutOfBounds(_) => EvaluationError::Failed("an index is out of range".to_owned()),
            ExecutionError::DivisionByZero(_) | ExecutionError::RemainderByZero(_) => {
                EvaluationError::Failed("a division by zero".to_owned())
            }
            ExecutionError::Overflow(..) => EvaluationError::Failed("a number is out of range".to_owned()),
            ExecutionError::DuplicateKey(_) => EvaluationError::Failed("a map has the same key twice".to_owned()),
            ExecutionError::FunctionError { function, .. } if self.names(&function) => {
                EvaluationError::Failed(format!("{function}() does not take what it was given"))
            }
            _ => EvaluationError::Failed("it cannot be evaluated for this input".to_owned()),
        }
    }

    fn names(&self, name: &str) -> bool {
        !name.is_empty() && self.source.contains(name)
    }
}

fn wanted(wanted: &'static str, found: &Value) -> EvaluationError {
    EvaluationError::Result {
        wanted,
        found: found.type_of().to_string(),
    }
}

/// How people write an operator.
fn operator(name: &str) -> &str {
    match name {
        "add" => "+",
        "sub" => "-",
        "mul" => "*",
        "div" => "/",
        "rem" => "%",
        "@in" => "in",
        meter::REPLACE => "replace",
        meter::JOIN => "join",
        other => other.trim_matches('_'),
    }
}

fn parse(source: &str) -> Result<IdedExpr, CompileError> {
    ENVIRONMENT.parser().parse(source).map_err(|errors| {
        let Some(first) = errors.errors.first() else {
            return CompileError::Refused("the expression cannot be parsed".to_owned());
        };
        let message = match first.msg.contains("Recursion limit") {
            true => "it is nested too deep".to_owned(),
            false => first
                .msg
                .trim_start_matches("Syntax error: ")
                .chars()
                .take(SAID_LONGEST)
                .collect(),
        };
        let (line, column) = first.pos;
        CompileError::Syntax {
            line: usize::try_from(line).unwrap_or(0),
            column: usize::try_from(column).unwrap_or(0),
            message,
        }
    })
}

/// The parser lists every token it would take.
const SAID_LONGEST: usize = 160;

impl PartialEq for Expression {
    fn eq(&self, other: &Expression) -> bool {
        self.role == other.role && self.source == other.source
    }
}

impl Eq for Expression {}

impl fmt::Debug for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}({:?})", self.role, self.source)
    }
}
