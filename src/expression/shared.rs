//! Programs without their constants, so that expressions which differ in constants only have one together: a hundred thousand
//! filters made from a few templates are a few programs, which stay in the processor's cache, and a hundred thousand short
//! lists. Each with a program of its own was 400 MiB, and met cold it cost several times what it costs otherwise.
//!
//! Owns what counts as a constant, and where an evaluation finds it: per thread, for an evaluation never leaves its thread.
//! Invariant: a program with its constants is the expression it was made of.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};

use cel::IdedExpr;
use cel::common::ast::operators;
use cel::common::ast::{CallExpr, Expr, LiteralValue};
use cel::common::value::CowVal;
use cel::context::VariableResolver;
use sha2::{Digest as _, Sha256};

/// What the name of a constant begins with; its number follows. No source can write it.
const CONSTANT: &str = "@@";

/// The constants of an expression, in the order in which its program reads them.
pub(super) type Constants = Arc<[LiteralValue]>;

type Programs = HashMap<[u8; 32], Weak<IdedExpr>>;

/// Those in use, by a hash of what they are.
static PROGRAMS: LazyLock<Mutex<Programs>> = LazyLock::new(Mutex::default);
/// Looked through for those no longer in use at every so many.
const LOOKED_THROUGH: usize = 1024;

/// The program that an expression shares with others of its form, and its own constants.
pub(super) fn split(mut program: IdedExpr) -> (Arc<IdedExpr>, Constants) {
    let mut constants = Vec::new();
    take(&mut program, &mut constants);
    // The text that the derived Debug makes names every part.
    let digest: [u8; 32] = Sha256::digest(format!("{program:?}")).into();
    let mut programs = PROGRAMS.lock().unwrap_or_else(PoisonError::into_inner);
    let known = programs.get(&digest).and_then(Weak::upgrade);
    let program = known.unwrap_or_else(|| {
        if programs.len() % LOOKED_THROUGH == LOOKED_THROUGH - 1 {
            programs.retain(|_, program| program.strong_count() > 0);
        }
        // Copied, so that its parts lie side by side: as they were made they lie among what the parser threw away.
        let program = Arc::new(program.clone());
        programs.insert(digest, Arc::downgrade(&program));
        program
    });
    (program, constants.into())
}

/// Puts names in place of constants. Loops are left as they are: the interpreter knows some of them by their form.
fn take(expr: &mut IdedExpr, constants: &mut Vec<LiteralValue>) {
    match &mut expr.expr {
        Expr::Literal(LiteralValue::Null | LiteralValue::Boolean(_)) => {}
        Expr::Literal(literal) => {
            let literal = std::mem::replace(literal, LiteralValue::Null);
            expr.expr = Expr::Ident(format!("{CONSTANT}{}", constants.len()));
            constants.push(literal);
        }
        Expr::Select(select) => take(&mut select.operand, constants),
        Expr::Call(call) => {
            if let Some(target) = &mut call.target {
                take(target, constants);
            }
            let all = call.args.len();
            let varying = if names_a_place(call) { 1 } else { all };
            call.args.iter_mut().take(varying).for_each(|arg| take(arg, constants));
        }
        Expr::List(list) => list.elements.iter_mut().for_each(|element| take(element, constants)),
        Expr::Ident(_) | Expr::Comprehension(_) | Expr::Map(_) | Expr::Struct(_) | Expr::Unspecified => {}
    }
}

/// Whether what follows its first argument is a field or a key: what an expression reads is of its form.
fn names_a_place(call: &CallExpr) -> bool {
    let name = call.func_name.as_str();
    matches!(name, operators::INDEX | operators::OPT_INDEX | operators::OPT_SELECT)
}

thread_local! {
    static READ: RefCell<Option<Constants>> = const { RefCell::new(None) };
}

/// While it lives, the thread's evaluation reads these.
pub(super) struct Reading;

pub(super) fn read(constants: &Constants) -> Reading {
    READ.set(Some(Arc::clone(constants)));
    Reading
}

impl Drop for Reading {
    fn drop(&mut self) {
        READ.set(None);
    }
}

/// Where the interpreter finds them.
pub(super) struct Found;

impl VariableResolver for Found {
    fn resolve<'b>(&'b self, variable: &str) -> Option<CowVal<'b, 'b>> {
        let number: usize = variable.strip_prefix(CONSTANT)?.parse().ok()?;
        READ.with_borrow(|constants| match constants.as_ref()?.get(number)? {
            LiteralValue::Bytes(value) => Some(CowVal::owned(value.clone())),
            LiteralValue::Double(value) => Some(CowVal::owned(*value)),
            LiteralValue::Int(value) => Some(CowVal::owned(*value)),
            LiteralValue::String(value) => Some(CowVal::owned(value.clone())),
            LiteralValue::UInt(value) => Some(CowVal::owned(*value)),
            LiteralValue::Boolean(_) | LiteralValue::Null => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use crate::expression::{Expression, Role};

    #[test]
    fn expressions_that_differ_in_constants_only_have_one_program_and_those_that_read_something_else_have_not() {
        let of = |source: &str| Expression::compile(Role::Filter, source).unwrap();
        let first = of("event.data.score > 80 && event.source in ['/a', '/b']");
        for (source, shares) in [
            ("event.data.score > 90 && event.source in ['/c', '/d']", true),
            ("event.data.score >= 80 && event.source in ['/a', '/b']", false),
            ("event.data.price > 80 && event.source in ['/a', '/b']", false),
            ("event.data.score > 80 && event.source in ['/a']", false),
            ("event.data['score'] > 80 && event.source in ['/a', '/b']", false),
        ] {
            let other = of(source);
            assert_eq!(
                std::sync::Arc::ptr_eq(&first.program, &other.program),
                shares,
                "{source}"
            );
            assert_ne!(first, other, "{source}");
        }
    }
}
