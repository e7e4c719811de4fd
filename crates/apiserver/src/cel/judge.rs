//! Judging a value: it is handed to the interpreter, and every step is taken from what is left.

use super::patterns::pattern;
use super::prepare::{CHARGE, CHARGE_TEXT, MATCHES, RANGE};
use super::{Program, functions};
use cel::common::types::{CelBool, CelBytes, CelDouble, CelInt, CelList, CelMap, CelNull, CelString};
use cel::common::value::{CowVal, Val};
use cel::{Context, ExecutionError, FunctionContext};
use regex::Regex;
use serde_json::Value;
use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Steps of one rule on one value, at most.
const MAX_STEPS: usize = 2_000_000;

/// Steps of all rules on one object, at most.
const MAX_STEPS_OF_OBJECT: usize = 10_000_000;

/// What compiling a pattern costs that is not written in the rule.
const PATTERN_STEPS: usize = 50_000;

/// Said of a rule that was stopped.
const TOO_MUCH: &str = "the rule takes too many steps";

/// What the rules of one object may still do, in steps: a node of a rule that is visited, an element or ten bytes of a text
/// that are looked at.
#[derive(Debug)]
pub struct Budget {
    left: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Self { left: MAX_STEPS_OF_OBJECT }
    }
}

impl Budget {
    /// Whether nothing more is judged.
    pub fn is_spent(&self) -> bool {
        self.left == 0
    }
}

/// What the functions of a run share.
struct Run {
    /// Steps that are left to the rule.
    left: AtomicUsize,
    /// The patterns of the rule.
    patterns: Mutex<Arc<[Option<Arc<Regex>>]>>,
}

impl Run {
    fn charge(&self, steps: usize) -> Result<(), ExecutionError> {
        let left = self.left.load(Ordering::Relaxed).saturating_sub(steps);
        self.left.store(left, Ordering::Relaxed);
        if left == 0 { Err(ExecutionError::function_error("", TOO_MUCH)) } else { Ok(()) }
    }
}

/// A value, and what it was before, for the rules that judge it.
pub struct Subject<'v> {
    context: Context<'v, 'v>,
    run: Arc<Run>,
}

impl fmt::Debug for Subject<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subject").finish_non_exhaustive()
    }
}

impl<'v> Subject<'v> {
    /// Takes a value in hand. That costs as much as the value is large.
    pub fn new(value: &'v Value, old: Option<&'v Value>, budget: &mut Budget) -> Self {
        let run = Arc::new(Run { left: AtomicUsize::new(0), patterns: Mutex::new(Arc::new([])) });
        let mut context = Context::with_env(functions::environment());
        for (name, value) in [("self", Some(value)), ("oldSelf", old)] {
            let Some(value) = value else { continue };
            let value = converted(value);
            budget.left = budget.left.saturating_sub(1 + cost(value.as_ref()));
            context.add_variable_as_val(name, value);
        }
        add(&mut context, RANGE, &run, |run, args| {
            let [range, weight] = two(args)?;
            let weight =
                weight.downcast_ref::<CelInt>().and_then(|weight| usize::try_from(*weight.inner()).ok());
            let length = range.as_sizer().and_then(|sized| usize::try_from(*sized.size().inner()).ok());
            let steps = length.unwrap_or(1).saturating_mul(1 + weight.unwrap_or(1));
            run.charge(steps.saturating_add(cost(range.as_ref())))?;
            Ok(range)
        });
        add(&mut context, CHARGE, &run, |run, args| {
            let value = one(args)?;
            run.charge(cost(value.as_ref()))?;
            Ok(value)
        });
        add(&mut context, CHARGE_TEXT, &run, |run, args| {
            let value = one(args)?;
            if value.downcast_ref::<CelString>().is_some() {
                run.charge(cost(value.as_ref()))?;
            }
            Ok(value)
        });
        add(&mut context, MATCHES, &run, |run, args| {
            let [text, at] = two(args)?;
            let patterns = Arc::clone(&run.patterns.lock().unwrap_or_else(PoisonError::into_inner));
            let at = at.downcast_ref::<CelInt>().and_then(|at| usize::try_from(*at.inner()).ok());
            let found = at.and_then(|at| patterns.get(at)).and_then(Option::as_deref);
            matched(text.as_ref(), found)
        });
        add(&mut context, "matches", &run, |run, args| {
            let [text, wanted] = two(args)?;
            run.charge(PATTERN_STEPS)?;
            let wanted = wanted.downcast_ref::<CelString>().ok_or_else(|| mismatch("matches"))?;
            matched(text.as_ref(), pattern(wanted.inner()).as_ref())
        });
        Self { context, run }
    }
}

/// What a rule says about a value.
pub(super) fn judge(program: &Program, subject: &Subject<'_>, budget: &mut Budget) -> Result<Value, String> {
    let Subject { context, run } = subject;
    let begun = budget.left.min(MAX_STEPS);
    run.left.store(begun, Ordering::Relaxed);
    *run.patterns.lock().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&program.patterns);
    let said = run.charge(program.weight).and_then(|()| cel::Value::resolve(&program.root, context));
    let left = run.left.load(Ordering::Relaxed);
    budget.left -= begun - left;
    if left == 0 {
        // Whatever it said: `||` and loops go on after an error.
        return Err(TOO_MUCH.to_owned());
    }
    let said = said.map_err(|error| told(&error))?;
    said.json().map_err(|_| "a result that is no JSON".to_owned())
}

type Args<'b, 'v> = Vec<CowVal<'b, 'v>>;
type Outcome<'b, 'v> = Result<CowVal<'b, 'v>, ExecutionError>;
type Function = Box<dyn for<'b, 'v> Fn(&mut FunctionContext<'b, 'v>) -> Outcome<'b, 'v> + Send + Sync>;

/// Adds a function that may charge; one that is called as a method is given its value first.
fn add(
    context: &mut Context<'_, '_>,
    name: &str,
    run: &Arc<Run>,
    of: for<'b, 'v> fn(&Run, Args<'b, 'v>) -> Outcome<'b, 'v>,
) {
    let run = Arc::clone(run);
    let function: Function = Box::new(move |call| {
        let mut args = std::mem::take(&mut call.args);
        args.splice(0..0, call.this.take());
        of(&run, args)
    });
    let added = context.add_function::<Function, Function>(name, function);
    debug_assert!(added.is_ok(), "{name} is no function of the environment");
}

fn one<'b, 'v>(args: Args<'b, 'v>) -> Outcome<'b, 'v> {
    let count = args.len();
    args.into_iter().next().ok_or_else(|| ExecutionError::invalid_argument_count(1, count))
}

fn two<'b, 'v>(args: Args<'b, 'v>) -> Result<[CowVal<'b, 'v>; 2], ExecutionError> {
    args.try_into().map_err(|args: Vec<_>| ExecutionError::invalid_argument_count(2, args.len()))
}

fn mismatch(name: &str) -> ExecutionError {
    ExecutionError::no_such_overload(name, Vec::new())
}

fn matched<'b, 'v>(text: &(dyn Val + 'v), pattern: Option<&Regex>) -> Outcome<'b, 'v> {
    let text = text.downcast_ref::<CelString>().ok_or_else(|| mismatch("matches"))?;
    let pattern = pattern.ok_or_else(|| ExecutionError::function_error("matches", "error parsing regexp"))?;
    Ok(CowVal::owned(CelBool::from(pattern.is_match(text.inner()))))
}

/// The value as the interpreter has it; texts are borrowed. Numbers that are whole are signed, as in Kubernetes.
fn converted(value: &Value) -> Box<dyn Val + '_> {
    match value {
        Value::Null => Box::new(CelNull),
        Value::Bool(value) => Box::new(CelBool::from(*value)),
        Value::Number(number) => match number.as_i64() {
            Some(whole) => Box::new(CelInt::from(whole)),
            None => Box::new(CelDouble::from(number.as_f64().unwrap_or(f64::NAN))),
        },
        Value::String(text) => Box::new(CelString::from(text.as_str())),
        Value::Array(list) => Box::new(CelList::from(list.iter().map(converted).collect::<Vec<_>>())),
        Value::Object(map) => {
            let map: HashMap<_, _> =
                map.iter().map(|(key, value)| (key.as_str().into(), converted(value))).collect();
            Box::new(CelMap::from(map))
        }
    }
}

/// What it costs to look at a value as a whole.
fn cost(value: &dyn Val) -> usize {
    if let Some(text) = value.downcast_ref::<CelString>() {
        text.inner().len() / 10
    } else if let Some(bytes) = value.downcast_ref::<CelBytes>() {
        bytes.inner().len() / 10
    } else if let Some(list) = value.downcast_ref::<CelList>() {
        list.inner().iter().map(|item| 1 + cost(item.as_ref())).sum()
    } else if let Some(map) = value.downcast_ref::<CelMap>() {
        map.inner().iter().map(|(key, item)| 2 + cost(key.inner()) + cost(item.as_ref())).sum()
    } else {
        0
    }
}

/// What went wrong, in the words of Kubernetes' evaluator and without the values, which can be large.
fn told(error: &ExecutionError) -> String {
    match error {
        ExecutionError::NoSuchKey(key) => format!("no such key: {key}"),
        ExecutionError::UndeclaredReference(name) => format!("undeclared reference to '{name}'"),
        ExecutionError::IndexOutOfBounds(cel::Value::Int(at)) => format!("index out of bounds: {at}"),
        ExecutionError::IndexOutOfBounds(_) => "index out of bounds".to_owned(),
        ExecutionError::DivisionByZero(_) => "division by zero".to_owned(),
        ExecutionError::RemainderByZero(_) => "modulus by zero".to_owned(),
        ExecutionError::Overflow(..) => "integer overflow".to_owned(),
        ExecutionError::DuplicateKey(_) => "a key that is there already".to_owned(),
        ExecutionError::FunctionError { message, .. } => message.clone(),
        ExecutionError::NoSuchOverload(overload) => format!("no such overload: {}", overload.function()),
        _ => "no such overload".to_owned(),
    }
}
