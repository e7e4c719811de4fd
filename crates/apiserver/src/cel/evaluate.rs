//! What an expression says about a value.

use super::functions;
use super::{Expression, Operator, Over};
use serde_json::{Map, Number, Value};
use std::borrow::Cow;
use std::cmp::Ordering;

/// Steps of one evaluation, and bytes that it makes, at most.
const MAX_STEPS: usize = 2_000_000;

type Outcome<'a> = Result<Cow<'a, Value>, String>;

pub(super) fn evaluate(root: &Expression, value: &Value, old: Option<&Value>) -> Result<Value, String> {
    let mut run = Run { value, old, bound: Vec::new(), steps: 0 };
    run.value(root).map(Cow::into_owned)
}

struct Run<'a> {
    value: &'a Value,
    old: Option<&'a Value>,
    bound: Vec<(&'a str, Cow<'a, Value>)>,
    steps: usize,
}

fn owned<'a>(value: impl Into<Value>) -> Outcome<'a> {
    Ok(Cow::Owned(value.into()))
}

fn truth(value: &Value) -> Result<bool, String> {
    value.as_bool().ok_or_else(|| "no such overload: a condition is not true or false".to_owned())
}

impl<'a> Run<'a> {
    fn step(&mut self, cost: usize) -> Result<(), String> {
        self.steps = self.steps.saturating_add(cost);
        if self.steps > MAX_STEPS { Err("the rule takes too many steps".to_owned()) } else { Ok(()) }
    }

    fn value(&mut self, expression: &'a Expression) -> Outcome<'a> {
        self.step(1)?;
        match expression {
            Expression::Literal(value) => Ok(Cow::Borrowed(value)),
            Expression::Name(name) => match self.bound.iter().rev().find(|(bound, _)| bound == name) {
                Some((_, value)) => Ok(value.clone()),
                None if name == "self" => Ok(Cow::Borrowed(self.value)),
                None => {
                    self.old.map(Cow::Borrowed).ok_or_else(|| format!("undeclared reference to '{name}'"))
                }
            },
            Expression::Field(of, field) => {
                let missing = || format!("no such key: {field}");
                match self.value(of)? {
                    Cow::Borrowed(value) => value.get(field).map(Cow::Borrowed).ok_or_else(missing),
                    Cow::Owned(mut value) => {
                        value.get_mut(field).map(Value::take).map(Cow::Owned).ok_or_else(missing)
                    }
                }
            }
            Expression::Has(of, field) => {
                let of = self.value(of)?;
                if of.is_object() {
                    owned(of.get(field).is_some())
                } else {
                    Err("no such overload: has()".to_owned())
                }
            }
            Expression::Index(of, index) => {
                let (of, index) = (self.value(of)?, self.value(index)?);
                match (of.as_ref(), index.as_ref()) {
                    (Value::Array(list), Value::Number(number)) => {
                        let at = number.as_u64().and_then(|at| usize::try_from(at).ok());
                        let found = at.and_then(|at| list.get(at)).cloned();
                        found.map(Cow::Owned).ok_or_else(|| format!("index out of bounds: {number}"))
                    }
                    (Value::Object(map), Value::String(key)) => {
                        map.get(key).cloned().map(Cow::Owned).ok_or_else(|| format!("no such key: {key}"))
                    }
                    _ => Err("no such overload: []".to_owned()),
                }
            }
            Expression::List(items) => {
                let items: Result<Vec<Value>, String> =
                    items.iter().map(|item| self.value(item).map(Cow::into_owned)).collect();
                owned(items?)
            }
            Expression::Map(entries) => {
                let mut map = Map::new();
                for (key, value) in entries {
                    let key = self.value(key)?;
                    let key = key.as_str().ok_or("no such overload: a key that is no text")?.to_owned();
                    map.insert(key, self.value(value)?.into_owned());
                }
                owned(map)
            }
            Expression::Not(inner) => owned(!truth(&*self.value(inner)?)?),
            Expression::Negative(inner) => match self.value(inner)?.as_ref() {
                Value::Number(number) => match number.as_i64() {
                    Some(number) => owned(number.checked_neg().ok_or("integer overflow")?),
                    None => owned(-number.as_f64().unwrap_or_default()),
                },
                _ => Err("no such overload: -".to_owned()),
            },
            Expression::Choice(condition, yes, no) => {
                let chosen = if truth(&*self.value(condition)?)? { yes } else { no };
                self.value(chosen)
            }
            Expression::Binary(operator @ (Operator::And | Operator::Or), left, right) => {
                self.junction(*operator == Operator::Or, left, right)
            }
            Expression::Binary(operator, left, right) => {
                let (left, right) = (self.value(left)?, self.value(right)?);
                self.step(cost(&left) + cost(&right))?;
                binary(*operator, &left, &right).map(Cow::Owned)
            }
            Expression::Call(name, on, arguments) => {
                let mut values = Vec::with_capacity(arguments.len() + 1);
                for argument in on.as_deref().into_iter().chain(arguments) {
                    values.push(self.value(argument)?);
                }
                self.step(values.iter().map(|value| cost(value)).sum())?;
                let values: Vec<&Value> = values.iter().map(AsRef::as_ref).collect();
                functions::call(name, &values).map(Cow::Owned)
            }
            Expression::Each(over, of, element, body) => {
                let of = self.value(of)?.into_owned();
                let elements = match of {
                    Value::Array(list) => list,
                    Value::Object(map) => map.into_iter().map(|(key, _)| key.into()).collect(),
                    _ => return Err("no such overload: a macro over what is no list".to_owned()),
                };
                self.each(*over, elements, element, body)
            }
        }
    }

    /// `&&` and `||`: what one side decides, the other cannot spoil.
    fn junction(&mut self, decides: bool, left: &'a Expression, right: &'a Expression) -> Outcome<'a> {
        let mut said = |side| self.value(side).and_then(|value| truth(&value));
        match said(left) {
            Ok(left) if left == decides => owned(decides),
            Ok(_) => owned(said(right)?),
            Err(error) => match said(right) {
                Ok(right) if right == decides => owned(decides),
                _ => Err(error),
            },
        }
    }

    fn each(&mut self, over: Over, elements: Vec<Value>, name: &'a str, body: &'a Expression) -> Outcome<'a> {
        let (mut kept, mut count, mut failure) = (Vec::new(), 0, None);
        for element in elements {
            self.step(cost(&element))?;
            self.bound.push((name, Cow::Owned(element.clone())));
            let said = self.value(body).map(Cow::into_owned);
            self.bound.pop();
            let said =
                if over == Over::Map { said } else { said.and_then(|said| truth(&said).map(Value::from)) };
            match (over, said) {
                (Over::Map, said) => kept.push(said?),
                (Over::All, Ok(Value::Bool(false))) => return owned(false),
                (Over::Exists, Ok(Value::Bool(true))) => return owned(true),
                (Over::Filter, Ok(Value::Bool(true))) => kept.push(element),
                (Over::ExistsOne, Ok(Value::Bool(true))) => count += 1,
                (Over::All | Over::Exists, Err(error)) => failure = Some(error),
                (_, Err(error)) => return Err(error),
                _ => {}
            }
        }
        match (over, failure) {
            (_, Some(error)) => Err(error),
            (Over::All, None) => owned(true),
            (Over::Exists, None) => owned(false),
            (Over::ExistsOne, None) => owned(count == 1),
            (Over::Map | Over::Filter, None) => owned(kept),
        }
    }
}

/// What it costs to look at a value as a whole.
fn cost(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len() / 10,
        Value::Array(list) => list.iter().map(|item| 1 + cost(item)).sum(),
        Value::Object(map) => map.values().map(|item| 1 + cost(item)).sum(),
        _ => 0,
    }
}

/// Whether two values are the same; a whole number is the same as a double of its value.
pub(super) fn equal(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::Number(left), Value::Number(right)) => compare_numbers(left, right) == Some(Ordering::Equal),
        (Value::Array(left), Value::Array(right)) => {
            left.len() == right.len() && left.iter().zip(right).all(|(left, right)| equal(left, right))
        }
        (Value::Object(left), Value::Object(right)) => {
            left.len() == right.len()
                && left.iter().all(|(key, left)| right.get(key).is_some_and(|right| equal(left, right)))
        }
        _ => left == right,
    }
}

fn compare_numbers(left: &Number, right: &Number) -> Option<Ordering> {
    match (left.as_i64(), right.as_i64()) {
        (Some(left), Some(right)) => Some(left.cmp(&right)),
        _ => left.as_f64()?.partial_cmp(&right.as_f64()?),
    }
}

/// Which of two values comes first, if they have an order.
pub(super) fn compare(left: &Value, right: &Value) -> Option<Ordering> {
    match (left, right) {
        (Value::Number(left), Value::Number(right)) => compare_numbers(left, right),
        (Value::String(left), Value::String(right)) => Some(left.cmp(right)),
        (Value::Bool(left), Value::Bool(right)) => Some(left.cmp(right)),
        _ => None,
    }
}

pub(super) fn binary(operator: Operator, left: &Value, right: &Value) -> Result<Value, String> {
    let ordered = |wanted: fn(Ordering) -> bool| {
        compare(left, right).map(|order| wanted(order).into()).ok_or_else(|| "no such overload: <".to_owned())
    };
    match operator {
        Operator::Equal => Ok(equal(left, right).into()),
        Operator::Unequal => Ok((!equal(left, right)).into()),
        Operator::Less => ordered(Ordering::is_lt),
        Operator::LessOrEqual => ordered(Ordering::is_le),
        Operator::Greater => ordered(Ordering::is_gt),
        Operator::GreaterOrEqual => ordered(Ordering::is_ge),
        Operator::In => match (left, right) {
            (_, Value::Array(list)) => Ok(list.iter().any(|item| equal(item, left)).into()),
            (Value::String(key), Value::Object(map)) => Ok(map.contains_key(key).into()),
            _ => Err("no such overload: in".to_owned()),
        },
        _ => arithmetic(operator, left, right),
    }
}

fn arithmetic(operator: Operator, left: &Value, right: &Value) -> Result<Value, String> {
    match (operator, left, right) {
        (Operator::Add, Value::String(left), Value::String(right)) => Ok(format!("{left}{right}").into()),
        (Operator::Add, Value::Array(left), Value::Array(right)) => {
            Ok([&left[..], &right[..]].concat().into())
        }
        (_, Value::Number(left), Value::Number(right)) => {
            if let (Some(left), Some(right)) = (left.as_i64(), right.as_i64()) {
                let whole = match operator {
                    Operator::Add => left.checked_add(right),
                    Operator::Subtract => left.checked_sub(right),
                    Operator::Multiply => left.checked_mul(right),
                    _ if right == 0 => return Err("division by zero".to_owned()),
                    Operator::Divide => left.checked_div(right),
                    _ => left.checked_rem(right),
                };
                return whole.map(Value::from).ok_or_else(|| "integer overflow".to_owned());
            }
            let (left, right) = (left.as_f64().unwrap_or_default(), right.as_f64().unwrap_or_default());
            match operator {
                Operator::Add => Ok((left + right).into()),
                Operator::Subtract => Ok((left - right).into()),
                Operator::Multiply => Ok((left * right).into()),
                Operator::Divide => Ok((left / right).into()),
                _ => Err("no such overload: %".to_owned()),
            }
        }
        _ => Err("no such overload: an operator between values of other types".to_owned()),
    }
}
