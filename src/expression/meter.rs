//! What an evaluation may cost. The interpreter has no limit of its own, so the compiled expression is changed: whatever is
//! handed to an operator or function, put into a list or map, or looped over, is charged for first, by its size; so is each
//! step of a loop. What is left is per thread, for an evaluation never leaves its thread.
//!
//! Owns the walk over the compiled expression: it also refuses unknown names and too much nesting. Invariant: between two
//! charges nothing takes longer, or more memory, than a small multiple of what was charged before.

use std::cell::Cell;

use cel::common::ast::operators;
use cel::common::ast::{CallExpr, ComprehensionExpr, EntryExpr, Expr, LiteralValue, SelectExpr};
use cel::common::types::{CelBytes, CelList, CelMap, CelMapKey, CelOptional, CelString};
use cel::common::value::{CowVal, Val};
use cel::{ExecutionError, IdedExpr};

use super::CompileError;
use super::functions::{FUNCTIONS, NAMESPACES, Pattern, TYPES};

/// Charges for its argument and hands it on.
pub(super) const CHARGE: &str = "@charge";
/// `replace` and `join` make more than they are given: ours charge for the result before they make it.
pub(super) const REPLACE: &str = "@replace";
pub(super) const JOIN: &str = "@join";

/// Levels of nesting: an evaluation recurses once a level, on the stack of whoever asks.
pub(super) const DEPTH: usize = 64;
/// Loops within loops.
const LOOPS: usize = 3;
/// Patterns of an expression: compiling them all must fit its budget.
const PATTERNS: usize = 8;
/// What a value costs beside its bytes: about what a node takes in memory.
const NODE: u64 = 48;

thread_local! {
    static REMAINING: Cell<u64> = const { Cell::new(0) };
    static SPENT: Cell<bool> = const { Cell::new(false) };
}

/// While it lives, the thread may spend.
pub(super) struct Metered;

pub(super) fn start(budget: u64) -> Metered {
    REMAINING.set(budget);
    SPENT.set(false);
    Metered
}

impl Drop for Metered {
    fn drop(&mut self) {
        REMAINING.set(0);
    }
}

pub(super) fn remaining() -> u64 {
    REMAINING.get()
}

/// Whether more was asked for than there was: then the result does not count, whatever it is.
pub(super) fn is_spent() -> bool {
    SPENT.get()
}

/// Takes so much of the budget.
pub(super) fn spend(cost: u64) -> Result<(), ExecutionError> {
    match REMAINING.get().checked_sub(cost) {
        Some(left) => {
            REMAINING.set(left);
            Ok(())
        }
        None => {
            REMAINING.set(0);
            SPENT.set(true);
            Err(ExecutionError::function_error("cost", "spent"))
        }
    }
}

/// Charges for a value by its size.
pub(super) fn charge(value: &CowVal<'_, '_>) -> Result<(), ExecutionError> {
    let mut left = REMAINING.get();
    match size(value.as_ref(), &mut left) {
        Some(()) => {
            REMAINING.set(left);
            Ok(())
        }
        None => spend(u64::MAX),
    }
}

/// Takes the size of a value from `left`; none when it is larger. Values nest as deep as the input or the expression does.
fn size(value: &dyn Val, left: &mut u64) -> Option<()> {
    let mut take = |bytes: usize| {
        let cost = NODE.saturating_add(bytes as u64);
        left.checked_sub(cost).map(|rest| *left = rest)
    };
    if let Some(text) = value.downcast_ref::<CelString>() {
        take(text.inner().len())
    } else if let Some(bytes) = value.downcast_ref::<CelBytes>() {
        take(bytes.inner().len())
    } else if let Some(list) = value.downcast_ref::<CelList>() {
        take(0)?;
        list.inner().iter().try_for_each(|each| size(each.as_ref(), left))
    } else if let Some(map) = value.downcast_ref::<CelMap>() {
        take(0)?;
        map.inner().iter().try_for_each(|(key, each)| {
            let name = match key {
                CelMapKey::String(name) => name.inner().len(),
                _ => 0,
            };
            *left = left.checked_sub(NODE.saturating_add(name as u64))?;
            size(each.as_ref(), left)
        })
    } else if let Some(optional) = value.downcast_ref::<CelOptional>() {
        take(0)?;
        optional.option().map_or(Some(()), |each| size(each, left))
    } else {
        take(0)
    }
}

/// `@charge(value)`.
pub(super) fn charged<'b, 'v>(mut args: Vec<CowVal<'b, 'v>>) -> Result<CowVal<'b, 'v>, ExecutionError> {
    let value = args.pop().ok_or(ExecutionError::MissingArgumentOrTarget)?;
    charge(&value)?;
    Ok(value)
}

/// The expression with its charges, or why it is refused.
pub(super) fn metered(mut expr: IdedExpr, variables: &'static [&str]) -> Result<IdedExpr, CompileError> {
    let mut walk = Walk {
        bound: variables.iter().map(|name| (*name).to_owned()).collect(),
        loops: 0,
        depth: 0,
        patterns: 0,
        variables,
    };
    walk.visit(&mut expr)?;
    // The result is copied.
    charge_for(&mut expr);
    Ok(expr)
}

struct Walk {
    /// Names that stand for a value here.
    bound: Vec<String>,
    loops: usize,
    depth: usize,
    patterns: usize,
    variables: &'static [&'static str],
}

impl Walk {
    fn visit(&mut self, expr: &mut IdedExpr) -> Result<(), CompileError> {
        if self.depth == DEPTH {
            return refuse(format!(
                "it is nested too deep: at most {DEPTH} levels, of which each + of a chain is one; join many parts with \
                 ['a', 'b'].join('')"
            ));
        }
        self.depth += 1;
        match &mut expr.expr {
            Expr::Literal(_) => {}
            Expr::Unspecified => return refuse("it has a part that cannot be compiled".to_owned()),
            Expr::Ident(name) => self.name(name)?,
            Expr::Select(select) => {
                self.visit(&mut select.operand)?;
                if let Some(index) = self.index(select) {
                    expr.expr = index;
                }
            }
            Expr::Call(call) => self.call(call)?,
            Expr::List(list) => {
                for element in &mut list.elements {
                    self.visit(element)?;
                    charge_for(element);
                }
            }
            Expr::Map(map) => {
                for entry in &mut map.entries {
                    let EntryExpr::MapEntry(entry) = &mut entry.expr else {
                        return refuse("write a map as {'name': value}".to_owned());
                    };
                    for part in [&mut entry.key, &mut entry.value] {
                        self.visit(part)?;
                        charge_for(part);
                    }
                }
            }
            Expr::Struct(of) => {
                return refuse(format!(
                    "there is no type {}: write a map as {{'name': value}}",
                    of.type_name
                ));
            }
            Expr::Comprehension(comprehension) => self.comprehension(comprehension)?,
        }
        self.depth -= 1;
        Ok(())
    }

    fn name(&self, name: &str) -> Result<(), CompileError> {
        let bound = |name: &str| self.bound.iter().any(|bound| bound == name);
        if bound(name) || TYPES.contains(&name) || name.starts_with('@') {
            return Ok(());
        }
        let variables = self.variables.join(" and ");
        refuse(format!("there is no {name}: this expression sees {variables}"))
    }

    /// `event.data` as `event["data"]`. Of `event.data.lead` the interpreter would make a text at every evaluation, and look
    /// for a variable of that name, and of the name of each of its beginnings.
    fn index(&self, select: &mut SelectExpr) -> Option<Expr> {
        let is_variable = matches!(&select.operand.expr, Expr::Ident(name) if self.variables.contains(&name.as_str()));
        (is_variable && !select.test).then(|| {
            let field = std::mem::take(&mut select.field);
            let operand = std::mem::take(&mut *select.operand);
            let field = IdedExpr {
                id: operand.id,
                expr: Expr::Literal(LiteralValue::String(field.into())),
            };
            Expr::Call(CallExpr {
                func_name: operators::INDEX.to_owned(),
                target: None,
                args: vec![operand, field],
            })
        })
    }

    fn call(&mut self, call: &mut CallExpr) -> Result<(), CompileError> {
        let name = call.func_name.as_str();
        let is_operator = !name.starts_with(|c: char| c.is_ascii_alphabetic());
        if !is_operator && !FUNCTIONS.contains(&name) {
            return refuse(format!(
                "there is no function {name}: there are {}",
                FUNCTIONS.join(", ")
            ));
        }
        if name == "matches" {
            self.patterns += 1;
            if self.patterns > PATTERNS {
                return refuse(format!(
                    "at most {PATTERNS} patterns: write several as one, as in matches('a|b')"
                ));
            }
            self.pattern(call.args.last())?;
        }
        // `optional.of(x)`: what looks like a value is the function's first name.
        let is_qualified = call.target.as_ref().is_some_and(
            |target| matches!(&target.expr, Expr::Ident(first) if NAMESPACES.contains(&first.as_str()) && !self.bound.contains(first)),
        );
        if let Some(target) = call.target.as_mut().filter(|_| !is_qualified) {
            self.visit(target)?;
        }
        for arg in &mut call.args {
            self.visit(arg)?;
        }
        match call.func_name.as_str() {
            // They look at no more than a place in it, or at a boolean.
            operators::CONDITIONAL
            | operators::LOGICAL_AND
            | operators::LOGICAL_OR
            | operators::LOGICAL_NOT
            | operators::INDEX
            | operators::OPT_INDEX
            | operators::OPT_SELECT
            | operators::NOT_STRICTLY_FALSE => {}
            // As long as the literal, at most.
            operators::EQUALS
            | operators::NOT_EQUALS
            | operators::LESS
            | operators::LESS_EQUALS
            | operators::GREATER
            | operators::GREATER_EQUALS
                if call.args.iter().any(is_literal) => {}
            _ => {
                if let Some(target) = call.target.as_mut().filter(|_| !is_qualified) {
                    charge_for(target);
                }
                call.args.iter_mut().for_each(charge_for);
            }
        }
        match call.func_name.as_str() {
            "replace" => REPLACE.clone_into(&mut call.func_name),
            "join" => JOIN.clone_into(&mut call.func_name),
            _ => {}
        }
        Ok(())
    }

    fn pattern(&self, pattern: Option<&IdedExpr>) -> Result<(), CompileError> {
        let Some(Expr::Literal(LiteralValue::String(pattern))) = pattern.map(|pattern| &pattern.expr) else {
            return refuse("the pattern of matches() must be written out, as in matches('^a+$')".to_owned());
        };
        Pattern::compile(pattern.inner())
            .map(|_| ())
            .map_err(CompileError::Refused)
    }

    fn comprehension(&mut self, of: &mut ComprehensionExpr) -> Result<(), CompileError> {
        // An optional's map is no loop: its range is empty.
        let is_loop = !matches!(&of.iter_range.expr, Expr::List(list) if list.elements.is_empty());
        self.visit(&mut of.iter_range)?;
        self.visit(&mut of.accu_init)?;
        charge_for(&mut of.iter_range);
        let before = self.bound.len();
        self.bound.extend([of.accu_var.clone(), of.iter_var.clone()]);
        self.bound.extend(of.iter_var2.clone());
        self.loops += usize::from(is_loop);
        if self.loops > LOOPS {
            return refuse(format!(
                "at most {LOOPS} loops (map, filter, all, exists) may stand within each other"
            ));
        }
        let appends = of.loop_cond.expr == Expr::Literal(LiteralValue::Boolean(true.into()))
            && matches!(&of.result.expr, Expr::Ident(result) if *result == of.accu_var);
        match appends.then(|| appended(&mut of.loop_step, &of.accu_var)).flatten() {
            // The shape that the interpreter appends in place, without copying what it has: it is kept.
            Some((guard, list)) => {
                if let Some(guard) = guard {
                    self.visit(guard)?;
                    charge_for_any(guard);
                }
                for element in list {
                    self.visit(element)?;
                    charge_for(element);
                }
            }
            None => {
                self.visit(&mut of.loop_cond)?;
                self.visit(&mut of.loop_step)?;
                // Its error ends the loop; one in the step may be kept for later.
                charge_for_any(&mut of.loop_cond);
            }
        }
        self.visit(&mut of.result)?;
        self.loops -= usize::from(is_loop);
        self.bound.truncate(before);
        Ok(())
    }
}

/// The guard and the elements of `accu + [element]` or `guard ? accu + [element] : accu`.
fn appended<'a>(step: &'a mut IdedExpr, accu: &str) -> Option<(Option<&'a mut IdedExpr>, &'a mut Vec<IdedExpr>)> {
    fn list<'a>(step: &'a mut IdedExpr, accu: &str) -> Option<&'a mut Vec<IdedExpr>> {
        let Expr::Call(call) = &mut step.expr else { return None };
        match call.args.as_mut_slice() {
            [left, right] if call.func_name == operators::ADD && is_name(left, accu) => match &mut right.expr {
                Expr::List(list) if list.optional_indices.is_empty() => Some(&mut list.elements),
                _ => None,
            },
            _ => None,
        }
    }
    let guarded = matches!(&step.expr, Expr::Call(call) if call.func_name == operators::CONDITIONAL);
    if !guarded {
        return list(step, accu).map(|elements| (None, elements));
    }
    let Expr::Call(call) = &mut step.expr else { return None };
    match call.args.as_mut_slice() {
        [guard, step, otherwise] if is_name(otherwise, accu) => {
            list(step, accu).map(|elements| (Some(guard), elements))
        }
        _ => None,
    }
}

fn is_name(expr: &IdedExpr, name: &str) -> bool {
    matches!(&expr.expr, Expr::Ident(is) if is == name)
}

fn is_literal(expr: &IdedExpr) -> bool {
    matches!(expr.expr, Expr::Literal(_))
}

/// Literals are as long as the source, and what is true or false is one byte: they cost nothing.
fn charge_for(expr: &mut IdedExpr) {
    let is_boolean = match &expr.expr {
        Expr::Select(select) => select.test,
        Expr::Call(call) => BOOLEAN.contains(&call.func_name.as_str()),
        _ => false,
    };
    if !is_boolean && !is_literal(expr) {
        charge_for_any(expr);
    }
}

/// Operators whose results are true or false.
const BOOLEAN: [&str; 10] = [
    operators::LOGICAL_AND,
    operators::LOGICAL_OR,
    operators::LOGICAL_NOT,
    operators::EQUALS,
    operators::NOT_EQUALS,
    operators::LESS,
    operators::LESS_EQUALS,
    operators::GREATER,
    operators::GREATER_EQUALS,
    operators::IN,
];

fn charge_for_any(expr: &mut IdedExpr) {
    let inner = std::mem::take(expr);
    *expr = IdedExpr {
        id: inner.id,
        expr: Expr::Call(CallExpr {
            func_name: CHARGE.to_owned(),
            target: None,
            args: vec![inner],
        }),
    };
}

fn refuse<T>(why: String) -> Result<T, CompileError> {
    Err(CompileError::Refused(why))
}
