//! The functions that Kubernetes adds to the language, for texts and lists.

use cel::common::types::{CelDouble, CelInt, CelList, CelString, CelUInt, LIST_TYPE, STRING_TYPE, Type};
use cel::common::value::{CowVal, Val};
use cel::{DeclarationError, Env, ExecutionError};
use std::cmp::Ordering;
use std::sync::{Arc, LazyLock};

/// Longest text that a function makes out of shorter ones, in bytes.
const MAX_TEXT: usize = 1 << 20;

static ENVIRONMENT: LazyLock<Arc<Env>> = LazyLock::new(|| {
    let mut env = Env::stdlib();
    let added = env.add_extension(extension);
    debug_assert!(added.is_ok(), "no function of the language has the name: {added:?}");
    Arc::new(env)
});

/// The language with these functions.
pub(super) fn environment() -> Arc<Env> {
    Arc::clone(&ENVIRONMENT)
}

/// Whether there is a function that is called with this many arguments, on a value or by itself.
pub(super) fn is_known(name: &str, is_method: bool, arguments: usize) -> bool {
    if !is_method {
        return matches!(
            (name, arguments),
            ("size" | "int" | "string" | "double" | "uint" | "bool" | "dyn", 1)
        );
    }
    matches!(
        (name, arguments),
        ("size" | "lowerAscii" | "upperAscii" | "trim" | "sum" | "min" | "max" | "isSorted" | "join", 0)
            | ("contains" | "startsWith" | "endsWith" | "matches", 1)
            | ("split" | "join" | "indexOf" | "lastIndexOf" | "substring" | "charAt", 1)
            | ("replace" | "substring", 2)
    )
}

fn extension(env: &mut Env) -> Result<(), DeclarationError> {
    cel::add_member_overload!(env, fn lower_ascii: (CelString) -> CelString)?;
    cel::add_member_overload!(env, fn upper_ascii: (CelString) -> CelString)?;
    cel::add_member_overload!(env, fn trim: (CelString) -> CelString)?;
    cel::add_member_overload!(env, fn split: (CelString, CelString) -> CelList)?;
    cel::add_member_overload!(env, fn replace: (CelString, CelString, CelString) -> Result<CelString>)?;
    cel::add_member_overload!(env, fn index_of: (CelString, CelString) -> CelInt)?;
    cel::add_member_overload!(env, fn last_index_of: (CelString, CelString) -> CelInt)?;
    cel::add_member_overload!(env, fn char_at: (CelString, CelInt) -> Result<CelString>)?;
    cel::add_member_overload!(env, fn substring: (CelString, CelInt) -> Result<CelString>)?;
    cel::add_member_overload!(env, fn substring_to: (CelString, CelInt, CelInt) -> Result<CelString>,
        name = "substring")?;
    let any = || cel::common::types::DYN_TYPE;
    let on_list: [(&str, &str, Vec<Type>, cel::common::functions::Function); 8] = [
        ("join", "list.join()", vec![], join),
        ("join", "list.join(string)", vec![STRING_TYPE], join),
        ("indexOf", "list.indexOf(dyn)", vec![any()], list_index),
        ("lastIndexOf", "list.lastIndexOf(dyn)", vec![any()], list_last_index),
        ("sum", "list.sum()", vec![], sum),
        ("min", "list.min()", vec![], |args| extreme(args, Ordering::Less)),
        ("max", "list.max()", vec![], |args| extreme(args, Ordering::Greater)),
        ("isSorted", "list.isSorted()", vec![], is_sorted),
    ];
    for (name, id, args, function) in on_list {
        env.add_member_overload(name, id, LIST_TYPE, args, function)?;
    }
    Ok(())
}

fn failed(message: impl ToString) -> ExecutionError {
    ExecutionError::function_error("", message)
}

fn none(name: &str) -> ExecutionError {
    ExecutionError::no_such_overload(name, Vec::new())
}

fn number(count: usize) -> CelInt {
    i64::try_from(count).unwrap_or(i64::MAX).into()
}

fn lower_ascii(text: &CelString<'_>) -> CelString<'static> {
    text.to_ascii_lowercase().into()
}

fn upper_ascii(text: &CelString<'_>) -> CelString<'static> {
    text.to_ascii_uppercase().into()
}

fn trim(text: &CelString<'_>) -> CelString<'static> {
    text.inner().trim().to_owned().into()
}

fn split(text: &CelString<'_>, by: &CelString<'_>) -> CelList<'static> {
    let boxed = |part: String| -> Box<dyn Val> { Box::new(CelString::from(part)) };
    let parts: Vec<Box<dyn Val>> = if by.inner().is_empty() {
        text.chars().map(|letter| boxed(letter.to_string())).collect()
    } else {
        text.inner().split(by.inner()).map(|part| boxed(part.to_owned())).collect()
    };
    parts.into()
}

fn replace(
    text: &CelString<'_>,
    from: &CelString<'_>,
    to: &CelString<'_>,
) -> Result<CelString<'static>, ExecutionError> {
    let places = text.inner().matches(from.inner()).count();
    if text.inner().len().saturating_add(places.saturating_mul(to.inner().len())) > MAX_TEXT {
        return Err(failed("the text that is made is too long"));
    }
    Ok(text.inner().replace(from.inner(), to.inner()).into())
}

/// The place of a byte, counted in letters; -1 for none.
fn position(text: &str, byte: Option<usize>) -> CelInt {
    byte.map_or_else(|| (-1).into(), |byte| number(text[..byte].chars().count()))
}

fn index_of(text: &CelString<'_>, part: &CelString<'_>) -> CelInt {
    position(text, text.find(part.inner()))
}

fn last_index_of(text: &CelString<'_>, part: &CelString<'_>) -> CelInt {
    position(text, text.rfind(part.inner()))
}

fn place(at: &CelInt) -> Result<usize, ExecutionError> {
    usize::try_from(*at.inner()).map_err(|_| failed(format!("index out of range: {}", at.inner())))
}

fn char_at(text: &CelString<'_>, at: &CelInt) -> Result<CelString<'static>, ExecutionError> {
    let wanted = place(at)?;
    let letter = text.chars().nth(wanted).map(String::from);
    // The place after the last letter is one, and nothing stands there.
    let letter = letter.or_else(|| (text.chars().count() == wanted).then(String::new));
    letter.map(CelString::from).ok_or_else(|| failed(format!("index out of range: {wanted}")))
}

fn substring(text: &CelString<'_>, from: &CelInt) -> Result<CelString<'static>, ExecutionError> {
    substring_to(text, from, &number(text.chars().count()))
}

fn substring_to(
    text: &CelString<'_>,
    from: &CelInt,
    to: &CelInt,
) -> Result<CelString<'static>, ExecutionError> {
    let letters: Vec<char> = text.chars().collect();
    let part = letters.get(place(from)?..place(to)?);
    let part = part.ok_or_else(|| failed(format!("index out of range: {}, {}", from.inner(), to.inner())))?;
    Ok(part.iter().collect::<String>().into())
}

type Args<'b, 'v> = Vec<CowVal<'b, 'v>>;
type Outcome<'b, 'v> = Result<CowVal<'b, 'v>, ExecutionError>;

fn list<'a, 'v>(args: &'a Args<'_, 'v>, name: &str) -> Result<&'a CelList<'v>, ExecutionError> {
    args.first().and_then(|list| list.as_ref().downcast_ref::<CelList>()).ok_or_else(|| none(name))
}

fn join<'b, 'v>(args: Args<'b, 'v>) -> Outcome<'b, 'v> {
    let parts: Option<Vec<&str>> = list(&args, "join")?
        .inner()
        .iter()
        .map(|part| part.downcast_ref::<CelString>().map(CelString::inner))
        .collect();
    let parts = parts.ok_or_else(|| none("join"))?;
    let by = args.get(1).and_then(|by| by.downcast_ref::<CelString>()).map_or("", CelString::inner);
    let length: usize = parts.iter().map(|part| part.len() + by.len()).sum();
    if length > MAX_TEXT {
        return Err(failed("the text that is made is too long"));
    }
    Ok(CowVal::owned(CelString::from(parts.join(by))))
}

fn list_index<'b, 'v>(args: Args<'b, 'v>) -> Outcome<'b, 'v> {
    let wanted = args.get(1).ok_or_else(|| none("indexOf"))?;
    let at = list(&args, "indexOf")?.inner().iter().position(|item| item.equals(wanted.as_ref()));
    Ok(CowVal::owned(at.map_or_else(|| CelInt::from(-1), number)))
}

fn list_last_index<'b, 'v>(args: Args<'b, 'v>) -> Outcome<'b, 'v> {
    let wanted = args.get(1).ok_or_else(|| none("lastIndexOf"))?;
    let at = list(&args, "lastIndexOf")?.inner().iter().rposition(|item| item.equals(wanted.as_ref()));
    Ok(CowVal::owned(at.map_or_else(|| CelInt::from(-1), number)))
}

fn sum<'b, 'v>(args: Args<'b, 'v>) -> Outcome<'b, 'v> {
    let mut items = list(&args, "sum")?.inner().iter();
    let Some(first) = items.next() else { return Ok(CowVal::owned(CelInt::from(0))) };
    // Texts and lists are added too, elsewhere: each addition copies what there is so far.
    let is_number = first.downcast_ref::<CelInt>().is_some()
        || first.downcast_ref::<CelUInt>().is_some()
        || first.downcast_ref::<CelDouble>().is_some();
    if !is_number {
        return Err(none("sum"));
    }
    let mut sum = first.clone();
    for item in items {
        sum = sum.as_adder().ok_or_else(|| none("sum"))?.add(item.as_ref())?.into_owned();
    }
    Ok(CowVal::Owned(sum))
}

fn compare(left: &dyn Val, right: &dyn Val) -> Result<Ordering, ExecutionError> {
    left.as_comparer().ok_or_else(|| none("<"))?.compare(right)
}

fn extreme<'b, 'v>(args: Args<'b, 'v>, wanted: Ordering) -> Outcome<'b, 'v> {
    let name = if wanted == Ordering::Less { "min" } else { "max" };
    let items = list(&args, name)?.inner();
    let mut best = items.first().ok_or_else(|| failed(format!("{name} called on empty list")))?;
    for item in &items[1..] {
        if compare(item.as_ref(), best.as_ref())? == wanted {
            best = item;
        }
    }
    Ok(CowVal::Owned(best.clone()))
}

fn is_sorted<'b, 'v>(args: Args<'b, 'v>) -> Outcome<'b, 'v> {
    for pair in list(&args, "isSorted")?.inner().windows(2) {
        if compare(pair[0].as_ref(), pair[1].as_ref())?.is_gt() {
            return Ok(CowVal::owned(cel::common::types::CelBool::from(false)));
        }
    }
    Ok(CowVal::owned(cel::common::types::CelBool::from(true)))
}
