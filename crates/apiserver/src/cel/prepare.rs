//! What is done to a parsed rule once: names are looked up, patterns are compiled, and the work that it makes is charged.
//!
//! The interpreter counts nothing. So the tree is rewritten: what a loop goes over passes through [`RANGE`] with the size of
//! the loop's body, and what is copied, compared or handed to a function passes through [`CHARGE`]. Both take from what is
//! left to the rule before anything is done.

use super::{ParseError, PatternError, Patterns, functions, syntax};
use cel::IdedExpr;
use cel::common::ast::{CallExpr, ComprehensionExpr, EntryExpr, Expr, LiteralValue, operators};
use regex::Regex;
use std::sync::Arc;

/// Charges a loop: what it goes over, and the size of its body.
pub(super) const RANGE: &str = "@range";
/// Charges a value by its size.
pub(super) const CHARGE: &str = "@charge";
/// Charges a text by its length, and other values nothing.
pub(super) const CHARGE_TEXT: &str = "@charge_text";
/// Matches a text with one of the patterns that were compiled here, by its place.
pub(super) const MATCHES: &str = "@matches";

const MACROS: [&str; 7] = ["has", "all", "exists", "exists_one", "existsOne", "map", "filter"];

/// What was found out about a rule.
#[derive(Default)]
pub(super) struct Prepared {
    /// Whether it compares with the value before.
    pub(super) uses_old: bool,
    /// The patterns that stand in it; none for one that is no pattern.
    pub(super) patterns: Vec<Option<Arc<Regex>>>,
    /// Their texts.
    written: Vec<String>,
    /// Nodes that are visited when nothing is repeated.
    pub(super) weight: usize,
    /// The first thing that is not served.
    unknown: Option<String>,
    /// Names that loops around make.
    bound: Vec<String>,
}

pub(super) fn prepare(root: &mut IdedExpr, patterns: &mut Patterns) -> Result<Prepared, ParseError> {
    let mut prepared = Prepared::default();
    prepared.weight = prepared.expression(root)?;
    if let Some(unknown) = prepared.unknown.take() {
        return Err(ParseError::Unknown(unknown));
    }
    for text in &prepared.written {
        prepared.patterns.push(match patterns.compile(text) {
            Ok(pattern) => Some(pattern),
            Err(PatternError::Invalid(_)) => None,
            Err(error @ PatternError::TooMany) => return Err(syntax(error.to_string())),
        });
    }
    Ok(prepared)
}

fn call(name: &str, args: Vec<IdedExpr>) -> IdedExpr {
    IdedExpr { id: 0, expr: Expr::Call(CallExpr { func_name: name.to_owned(), target: None, args }) }
}

fn number(of: usize) -> IdedExpr {
    let of = i64::try_from(of).unwrap_or(i64::MAX);
    IdedExpr { id: 0, expr: Expr::Literal(LiteralValue::Int(of.into())) }
}

/// Whether what an expression gives is never large, or was charged in its parts.
fn is_free(expression: &Expr) -> bool {
    match expression {
        Expr::Literal(_) | Expr::List(_) | Expr::Map(_) => true,
        Expr::Ident(name) => name.starts_with('@'),
        Expr::Select(select) => select.test,
        Expr::Call(call) => matches!(
            call.func_name.as_str(),
            operators::EQUALS
                | operators::NOT_EQUALS
                | operators::LESS
                | operators::LESS_EQUALS
                | operators::GREATER
                | operators::GREATER_EQUALS
                | operators::IN
                | operators::LOGICAL_AND
                | operators::LOGICAL_OR
                | operators::LOGICAL_NOT
                | "size"
        ),
        _ => false,
    }
}

fn charge(by: &str, expression: &mut IdedExpr) {
    if !is_free(&expression.expr) {
        let charged = std::mem::take(expression);
        *expression = call(by, vec![charged]);
    }
}

impl Prepared {
    fn miss(&mut self, what: String) {
        self.unknown.get_or_insert(what);
    }

    /// Rewrites an expression, and says how many nodes are visited when it is judged, loops aside.
    fn expression(&mut self, expression: &mut IdedExpr) -> Result<usize, ParseError> {
        Ok(1 + match &mut expression.expr {
            Expr::Unspecified => return Err(syntax("an expression is missing")),
            Expr::Literal(_) => 0,
            Expr::Ident(name) => {
                self.name(name);
                0
            }
            Expr::Select(select) => {
                select.field = unescaped(&select.field);
                self.expression(&mut select.operand)?
            }
            Expr::Call(call) => {
                let weight = self.call(call)?;
                self.matches(call);
                weight
            }
            Expr::List(list) => self.charged(CHARGE, &mut list.elements)?,
            Expr::Map(map) => {
                let mut weight = 0;
                for entry in &mut map.entries {
                    let EntryExpr::MapEntry(entry) = &mut entry.expr else {
                        return Err(syntax("a field where a key and a value belong"));
                    };
                    for part in [&mut entry.key, &mut entry.value] {
                        weight += self.expression(part)?;
                        charge(CHARGE, part);
                    }
                }
                weight
            }
            Expr::Comprehension(comprehension) => self.comprehension(comprehension)?,
            Expr::Struct(made) => {
                self.miss(format!("the type {}", made.type_name));
                0
            }
        })
    }

    fn name(&mut self, name: &str) {
        let is_bound = name.starts_with('@') || self.bound.iter().any(|bound| bound == name);
        match name {
            _ if is_bound => {}
            "self" => {}
            "oldSelf" => self.uses_old = true,
            _ => self.miss(format!("the name {name}")),
        }
    }

    fn charged(&mut self, by: &str, expressions: &mut [IdedExpr]) -> Result<usize, ParseError> {
        let mut weight = 0;
        for expression in expressions {
            weight += self.expression(expression)?;
            charge(by, expression);
        }
        Ok(weight)
    }

    fn call(&mut self, call: &mut CallExpr) -> Result<usize, ParseError> {
        let name = call.func_name.as_str();
        if name.starts_with(|letter: char| letter.is_ascii_alphabetic()) {
            let arguments = call.args.len();
            let is_method = call.target.is_some();
            if !functions::is_known(name, is_method, arguments) {
                if MACROS.contains(&name) {
                    return Err(syntax(format!("{name}() with {arguments} arguments")));
                }
                self.miss(format!("the function {name}"));
            }
            let by = if name == "size" { CHARGE_TEXT } else { CHARGE };
            let mut weight = self.charged(by, &mut call.args)?;
            if let Some(target) = &mut call.target {
                weight += self.expression(target)?;
                charge(by, target);
            }
            return Ok(weight);
        }
        match name {
            // These copy and compare nothing.
            operators::CONDITIONAL
            | operators::LOGICAL_AND
            | operators::LOGICAL_OR
            | operators::LOGICAL_NOT
            | operators::NOT_STRICTLY_FALSE
            | operators::INDEX => {
                let mut weight = 0;
                for argument in &mut call.args {
                    weight += self.expression(argument)?;
                }
                Ok(weight)
            }
            _ => self.charged(CHARGE, &mut call.args),
        }
    }

    /// A pattern that is written down is compiled once.
    fn matches(&mut self, call: &mut CallExpr) {
        if call.func_name != "matches" {
            return;
        }
        let [IdedExpr { expr: Expr::Literal(LiteralValue::String(text)), .. }] = call.args.as_slice() else {
            return;
        };
        let at = number(self.written.len());
        self.written.push(text.inner().to_owned());
        let Some(target) = call.target.take() else { return };
        *call = CallExpr { func_name: MATCHES.to_owned(), target: None, args: vec![*target, at] };
    }

    fn comprehension(&mut self, made: &mut ComprehensionExpr) -> Result<usize, ParseError> {
        let weight = self.expression(&mut made.iter_range)? + self.expression(&mut made.accu_init)?;
        let names = self.bound.len();
        self.bound.push(made.iter_var.clone());
        self.bound.extend(made.iter_var2.clone());
        let body = self.expression(&mut made.loop_cond)? + self.expression(&mut made.loop_step)?;
        self.bound.truncate(names);
        let weight = weight + self.expression(&mut made.result)?;
        let range = std::mem::take(&mut made.iter_range);
        made.iter_range = call(RANGE, vec![range, number(body)]);
        Ok(weight)
    }
}

/// The field that a name in an expression stands for: some names cannot be written as they are.
fn unescaped(name: &str) -> String {
    let reserved = name.strip_prefix("__").and_then(|rest| rest.strip_suffix("__"));
    if let Some(word) = reserved.filter(|word| !word.contains("__")) {
        return word.to_owned();
    }
    [("__underscores__", "__"), ("__dot__", "."), ("__dash__", "-"), ("__slash__", "/")]
        .iter()
        .fold(name.to_owned(), |name, (from, to)| name.replace(from, to))
}
