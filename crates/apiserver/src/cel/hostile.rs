//! Rules that are written to do harm.

use super::{Budget, ParseError, Program, Subject};
use proptest::prelude::*;
use serde_json::{Value, json};

fn says(text: &str, value: &Value) -> Result<Value, String> {
    Program::parse(text).unwrap_or_else(|error| panic!("{text}: {error}")).evaluate(value, None)
}

#[test]
fn a_rule_cannot_fill_the_memory() {
    let long = json!({"text": "x".repeat(100_000), "list": [1, 2, 3]});
    let doubled = format!("[self.text]{}.size() > 0", ".map(x, x + x)".repeat(30));
    let listed = format!("[self.list]{}.size() > 0", ".map(x, [x, x, x])".repeat(30));
    for rule in [
        doubled.as_str(),
        listed.as_str(),
        "self.text.replace('', self.text).size() > 0",
        "self.text.split('').join(self.text).size() > 0",
        "self.text.split('').map(x, self.text + x).size() > 0",
        "self.text.split('').all(x, x.matches('(' + x + '{1000}){1000}'))",
        "self.text.split('').all(x, self.text.replace('', self.text) == '' || true)",
    ] {
        assert!(says(rule, &long).is_err(), "{rule}");
    }
}

#[test]
fn an_error_that_is_not_heard_does_not_let_a_rule_go_on() {
    let value = json!({"l": (0..200).collect::<Vec<_>>()});
    let text = "true || self.l.all(a, self.l.all(b, self.l.all(c, a + b + c >= 0)))";
    assert_eq!(says(text, &value), Ok(json!(true)));
    let text = "self.l.all(a, self.l.all(b, self.l.all(c, a + b + c >= 0))) || true";
    assert_eq!(says(text, &value), Err("the rule takes too many steps".to_owned()));
}

#[test]
fn the_patterns_of_a_definition_have_a_bound_together() {
    use crate::schema::Schema;
    let large = |from: usize| -> Vec<String> {
        (from..from + 10).map(|at| format!(r"self.matches('{at}\\w{{8}}')")).collect()
    };
    assert!(Program::parse(&large(0)[..3].join(" || ")).is_ok());
    let rules = |count: usize| -> Vec<Value> {
        (0..count).map(|at| json!({"rule": large(10 * at).join(" || ")})).collect()
    };
    let schema = |rules: Vec<Value>| json!({"type": "object", "properties": {"a": {"type": "string", "x-kubernetes-validations": rules}}});
    let refused = Schema::compile(&schema(rules(10))).unwrap_err();
    assert!(refused[0].to_string().contains("too large together"), "{refused:?}");
    // The same ones are there once.
    assert!(Schema::compile(&schema(vec![rules(1)[0].clone(); 50])).is_ok());
    let of_fields = |count: usize| {
        let fields: serde_json::Map<_, _> = (0..count)
            .map(|at| (format!("f{at}"), json!({"type": "string", "pattern": format!(r"{at}\w{{8}}")})))
            .collect();
        Schema::compile(&json!({"type": "object", "properties": fields}))
    };
    assert!(of_fields(10).is_ok() && of_fields(200).is_err());
    let versions: Vec<Value> = (0..70)
        .map(|at| {
            let field = json!({"type": "string", "pattern": format!(r"{at}\w{{8}}")});
            json!({"name": format!("v{at}"), "served": true, "storage": at == 0, "schema":
                {"openAPIV3Schema": {"type": "object", "properties": {"f": field}}}})
        })
        .collect();
    let told = crate::custom::check(&json!({"spec": {"versions": versions}}));
    assert!(told.iter().any(|error| error.to_string().contains("too large together")), "{told:?}");
}

#[test]
fn only_numbers_are_summed() {
    // A list of lists would be copied as often as it is long.
    for value in [json!(vec![[1]; 2_000]), json!([["a"], ["b"]]), json!(["a", "b"]), json!([1, [1]])] {
        assert!(says("self.sum() == self.sum()", &value).is_err());
    }
    assert_eq!(
        says("self.sum() == 3 && [1.5, 2.0].sum() == 3.5 && [1u, 2u].sum() == 3u", &json!([1, 2])),
        Ok(json!(true))
    );
    assert_eq!(says("self.sum() == 0", &json!([])), Ok(json!(true)));
}

#[test]
fn what_a_rule_leaves_is_for_the_others() {
    let value = json!({"l": (0..200).collect::<Vec<_>>()});
    let slow = Program::parse("self.l.all(a, self.l.all(b, self.l.all(c, a + b + c >= 0)))").unwrap();
    let quick = Program::parse("self.l.all(a, a >= 0)").unwrap();
    let mut budget = Budget::default();
    let subject = Subject::new(&value, None, &mut budget);
    let mut judged = 0;
    while !budget.is_spent() {
        assert!(slow.judge(&subject, &mut budget).is_err());
        judged += 1;
    }
    assert_eq!(judged, 5);
    assert!(quick.judge(&subject, &mut budget).is_err());
    assert_eq!(quick.judge(&subject, &mut Budget::default()), Ok(json!(true)));
}

/// A rule of this shape, so many times inside itself.
fn shaped(shape: &str, times: usize) -> String {
    match shape {
        "brackets" => format!("{}true{}", "(".repeat(times), ")".repeat(times)),
        "sum" => format!("{}1 > 0", "1 + ".repeat(times)),
        "not" => format!("{}true || true", "!".repeat(times)),
        "index" => format!("{}1{}{} == 1", "[".repeat(times), "]".repeat(times), "[0]".repeat(times)),
        "choice" => format!("{}true", "false ? false : ".repeat(times)),
        "methods" => format!("'a'{} == 'a'", ".trim()".repeat(times)),
        "loops" => format!("{}true{}", "[1].all(x, ".repeat(times), ")".repeat(times)),
        "filters" => format!("{}[1]{}.size() >= 0", "[1].filter(x, 1 in ".repeat(times), ")".repeat(times)),
        "and, or" => format!("{}true", "true && false || ".repeat(times)),
        _ => format!("{}[]{} != []", "[1] + [".repeat(times), "]".repeat(times)),
    }
}

#[test]
fn the_deepest_rule_fits_on_a_small_stack() {
    for shape in
        ["brackets", "sum", "not", "index", "choice", "methods", "loops", "filters", "and, or", "lists"]
    {
        let judged = std::thread::Builder::new().stack_size(1 << 20).spawn(move || {
            let texts = (1..600).rev().map(|times| shaped(shape, times));
            let text = texts.into_iter().find(|text| Program::parse(text).is_ok()).unwrap();
            (text.len(), Program::parse(&text).unwrap().evaluate(&json!({}), None))
        });
        let (length, said) = judged.unwrap().join().unwrap();
        assert_eq!(said, Ok(json!(true)), "{shape}, {length} bytes");
    }
}

#[test]
fn what_is_deeper_is_refused_before_it_is_parsed() {
    for part in
        ["(", "[", "{1:", "!", "-", "1+", "a.", "f(", "a[", "1?", "x.all(y,", "[1].map(x,[", "'' in ", "1?1:"]
    {
        for times in [1_000, 10_000] {
            for before in ["", r"'\'' == r'\' || ", "'''(''' == \"\\\\\" && ", "br'\\' + Rb\"\\\" + "] {
                let text = before.to_owned() + &part.repeat(times);
                assert!(matches!(Program::parse(&text), Err(ParseError::Syntax(_))), "{before}{part}");
            }
        }
    }
    let long = format!("self == '{}'", "x".repeat(20_000));
    assert_eq!(Program::parse(&long).unwrap_err().to_string(), "Syntax error: longer than 16384 bytes");
    let deep = format!("{}1{}", "(".repeat(200), ")".repeat(200));
    let told = Program::parse(&deep).unwrap_err().to_string();
    assert_eq!(told, "Syntax error: more than 100 expressions inside each other");
}

#[test]
fn a_flat_rule_and_brackets_in_texts_are_not_deep() {
    let flat = "self.a == 'x' || ".repeat(200) + "self.b == 'y'";
    assert!(Program::parse(&flat).is_ok());
    assert!(Program::parse(&format!("self.a == '{}' // {}", "(".repeat(500), "[".repeat(500))).is_ok());
    let many = format!("self in [{}]", "'a.b', -1, ".repeat(500));
    assert!(Program::parse(&many).is_ok());
}

#[test]
fn letters_that_stand_in_texts_only_are_refused_elsewhere() {
    for text in ["é", "self.é", "'a' == ‘a’", "1é", "`a`", "self.`a`", "a\u{301}"] {
        assert!(matches!(Program::parse(text), Err(ParseError::Syntax(_))), "{text}");
    }
    assert_eq!(says("'é' + \"ü\" == 'éü' && self == '''ß''' // ö", &json!("ß")), Ok(json!(true)));
}

/// Texts made of what rules are made of: more of them are expressions than of texts of any letters.
fn pieces() -> impl Strategy<Value = String> {
    let piece = proptest::sample::select(vec![
        "self",
        "oldSelf",
        ".",
        "a",
        "x",
        "1",
        "0x1",
        "1u",
        "2.5",
        "1e9",
        "'t'",
        "\"",
        "'",
        "r'\\",
        "b'\\xff'",
        "'\\u00e9'",
        "'\\",
        "''",
        "'''",
        "(",
        ")",
        "[",
        "]",
        "{",
        "}",
        ",",
        ":",
        "?",
        "&&",
        "||",
        "!",
        "-",
        "+",
        "*",
        "/",
        "%",
        "==",
        "!=",
        "<",
        ">=",
        " in ",
        "has(",
        "size(",
        ".all(x,",
        ".map(x,",
        ".filter(x,",
        ".exists(",
        ".exists_one(x, ",
        ".matches('(')",
        ".split(",
        ".join(",
        ".sum()",
        ".max()",
        ".indexOf(",
        ".substring(",
        "self.l",
        "self.m",
        "self.t",
        "null",
        "true",
        "T{",
        "é",
        "\\",
        "`",
        "//",
        "\n",
        ".?",
        "[?",
        "-1",
        "int(",
        "double(",
        "9223372036854775807",
        "-9223372036854775808",
        "0",
        "string(",
        "bool(",
        "uint(",
    ]);
    proptest::collection::vec(piece, 1..24).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn no_text_stops_the_server(text in pieces()) {
        let value = json!({"l": [1, 2.5, "a", null], "m": {"k": {"a": true}}, "t": "é(x", "a": -1});
        if let Ok(program) = Program::parse(&text) {
            let _ = program.evaluate(&value, Some(&json!({})));
        }
    }

    #[test]
    fn no_letters_stop_the_parser(text in "[-'\"rRbBéa1(){}.,:?&|!+/ \\\\\\[\\]\n]{0,40}") {
        let _ = Program::parse(&text);
    }
}
