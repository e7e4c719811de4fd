//! From a text to an expression: tokens, then precedence.

use super::functions;
use super::{Expression, Operator, Over, ParseError};
use serde_json::Value;
use std::collections::BTreeSet;

/// Expressions inside each other, at most.
const MAX_DEPTH: usize = 100;

/// Longest text that is read, in bytes.
const MAX_LENGTH: usize = 16 << 10;

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Word(String),
    Literal(Value),
    /// One of the signs below.
    Sign(&'static str),
    End,
}

/// Longer ones first.
const SIGNS: [&str; 24] = [
    "||", "&&", "==", "!=", "<=", ">=", "<", ">", "+", "-", "*", "/", "%", "!", "?", ":", "(", ")", "[", "]",
    "{", "}", ",", ".",
];

fn syntax(what: impl Into<String>) -> ParseError {
    ParseError::Syntax(what.into())
}

fn tokens(text: &str) -> Result<Vec<Token>, ParseError> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        if let Some(comment) = rest.strip_prefix("//") {
            rest = comment.split_once('\n').map_or("", |(_, rest)| rest).trim_start();
            continue;
        }
        let is_raw = matches!(first, 'r' | 'R') && rest[1..].starts_with(['\'', '"']);
        let after = if matches!(first, '\'' | '"') || is_raw {
            let (literal, after) = string(if is_raw { &rest[1..] } else { rest }, is_raw)?;
            tokens.push(Token::Literal(literal.into()));
            after
        } else if first.is_ascii_digit() {
            let (number, after) = number(rest)?;
            tokens.push(Token::Literal(number));
            after
        } else if first.is_ascii_alphabetic() || first == '_' {
            let end = rest.find(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
            let (word, after) = rest.split_at(end.unwrap_or(rest.len()));
            tokens.push(match word {
                "true" => Token::Literal(true.into()),
                "false" => Token::Literal(false.into()),
                "null" => Token::Literal(Value::Null),
                word => Token::Word(word.to_owned()),
            });
            after
        } else {
            let sign = SIGNS.iter().find(|sign| rest.starts_with(**sign));
            let sign = sign.ok_or_else(|| syntax(format!("token recognition error at: '{first}'")))?;
            tokens.push(Token::Sign(sign));
            &rest[sign.len()..]
        };
        rest = after.trim_start();
    }
    tokens.push(Token::End);
    Ok(tokens)
}

fn number(text: &str) -> Result<(Value, &str), ParseError> {
    let bad = || syntax("a number that is none");
    if let Some(hex) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        let end = hex.find(|letter: char| !letter.is_ascii_hexdigit()).unwrap_or(hex.len());
        let value = i64::from_str_radix(&hex[..end], 16).map_err(|_| bad())?;
        return Ok((value.into(), hex[end..].trim_start_matches(['u', 'U'])));
    }
    let digits = |text: &str| text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    let mut end = digits(text);
    let mut is_double = false;
    if text[end..].starts_with('.') && text[end + 1..].starts_with(|letter: char| letter.is_ascii_digit()) {
        end += 1 + digits(&text[end + 1..]);
        is_double = true;
    }
    if text[end..].starts_with(['e', 'E']) {
        let sign = usize::from(text[end + 1..].starts_with(['+', '-']));
        let exponent = digits(&text[end + 1 + sign..]);
        if exponent > 0 {
            end += 1 + sign + exponent;
            is_double = true;
        }
    }
    let (number, after) = text.split_at(end);
    if is_double {
        let value: f64 = number.parse().map_err(|_| bad())?;
        return Ok((value.into(), after));
    }
    let value: i64 = number.parse().map_err(|_| bad())?;
    Ok((value.into(), after.strip_prefix(['u', 'U']).unwrap_or(after)))
}

fn string(text: &str, is_raw: bool) -> Result<(String, &str), ParseError> {
    let quote = ["'''", "\"\"\"", "'", "\""].into_iter().find(|quote| text.starts_with(quote)).unwrap_or("'");
    let mut rest = &text[quote.len()..];
    let mut value = String::new();
    loop {
        if let Some(after) = rest.strip_prefix(quote) {
            return Ok((value, after));
        }
        let Some(letter) = rest.chars().next() else { return Err(syntax("a text without an end")) };
        rest = &rest[letter.len_utf8()..];
        if letter != '\\' || is_raw {
            value.push(letter);
            continue;
        }
        let Some(escaped) = rest.chars().next() else { return Err(syntax("a text without an end")) };
        rest = &rest[escaped.len_utf8()..];
        let digits = match escaped {
            'n' => {
                value.push('\n');
                continue;
            }
            't' => {
                value.push('\t');
                continue;
            }
            'r' => {
                value.push('\r');
                continue;
            }
            '\\' | '\'' | '"' | '`' | '?' => {
                value.push(escaped);
                continue;
            }
            'x' => 2,
            'u' => 4,
            'U' => 8,
            other => return Err(syntax(format!("\\{other} is no escape"))),
        };
        let code =
            rest.get(..digits).and_then(|code| u32::from_str_radix(code, 16).ok()).and_then(char::from_u32);
        value.push(code.ok_or_else(|| syntax("an escape that is no letter"))?);
        rest = &rest[digits..];
    }
}

/// Reads an expression; returns it with the names that it uses and does not make.
pub(super) fn parse(text: &str) -> Result<(Expression, BTreeSet<String>), ParseError> {
    if text.len() > MAX_LENGTH {
        return Err(syntax(format!("longer than {MAX_LENGTH} bytes")));
    }
    let mut parser = Parser {
        tokens: tokens(text)?,
        at: 0,
        depth: 0,
        bound: Vec::new(),
        names: BTreeSet::new(),
        unknown: None,
    };
    let root = parser.choice()?;
    if *parser.peek() != Token::End {
        return Err(syntax(format!("{:?} after the end of the expression", parser.peek())));
    }
    match parser.unknown {
        Some(unknown) => Err(ParseError::Unknown(unknown)),
        None => Ok((root, parser.names)),
    }
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
    depth: usize,
    /// Names that macros around make.
    bound: Vec<String>,
    names: BTreeSet<String>,
    /// The first thing that is not served.
    unknown: Option<String>,
}

impl Parser {
    fn peek(&self) -> &Token {
        self.tokens.get(self.at).unwrap_or(&Token::End)
    }

    fn next(&mut self) -> Token {
        let token = self.peek().clone();
        self.at += 1;
        token
    }

    fn takes(&mut self, sign: &str) -> bool {
        let takes = matches!(self.peek(), Token::Sign(found) if *found == sign);
        self.at += usize::from(takes);
        takes
    }

    fn expect(&mut self, sign: &str) -> Result<(), ParseError> {
        if self.takes(sign) {
            Ok(())
        } else {
            Err(syntax(format!("found {:?}, expected {sign}", self.peek())))
        }
    }

    fn choice(&mut self) -> Result<Expression, ParseError> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(syntax("too many expressions inside each other"));
        }
        let condition = self.binary(0)?;
        let read = if self.takes("?") {
            let yes = self.binary(0)?;
            self.expect(":")?;
            let no = self.choice()?;
            Expression::Choice(condition.into(), yes.into(), no.into())
        } else {
            condition
        };
        self.depth -= 1;
        Ok(read)
    }

    fn operator(&self, level: usize) -> Option<Operator> {
        if level == 2 && *self.peek() == Token::Word("in".to_owned()) {
            return Some(Operator::In);
        }
        let Token::Sign(sign) = self.peek() else { return None };
        Some(match (level, *sign) {
            (0, "||") => Operator::Or,
            (1, "&&") => Operator::And,
            (2, "==") => Operator::Equal,
            (2, "!=") => Operator::Unequal,
            (2, "<") => Operator::Less,
            (2, "<=") => Operator::LessOrEqual,
            (2, ">") => Operator::Greater,
            (2, ">=") => Operator::GreaterOrEqual,
            (3, "+") => Operator::Add,
            (3, "-") => Operator::Subtract,
            (4, "*") => Operator::Multiply,
            (4, "/") => Operator::Divide,
            (4, "%") => Operator::Remainder,
            _ => return None,
        })
    }

    /// Operators of a level and those that bind stronger; all of them group from the left.
    fn binary(&mut self, level: usize) -> Result<Expression, ParseError> {
        if level > 4 {
            return self.unary();
        }
        let mut left = self.binary(level + 1)?;
        let mut count = 0;
        while let Some(operator) = self.operator(level) {
            self.at += 1;
            count += 1;
            if count > MAX_DEPTH {
                return Err(syntax("too many operators in a row"));
            }
            left = Expression::Binary(operator, left.into(), self.binary(level + 1)?.into());
        }
        Ok(left)
    }

    fn unary(&mut self) -> Result<Expression, ParseError> {
        for (sign, of) in
            [("!", Expression::Not as fn(Box<Expression>) -> Expression), ("-", Expression::Negative)]
        {
            if self.takes(sign) {
                self.depth += 1;
                if self.depth > MAX_DEPTH {
                    return Err(syntax("too many expressions inside each other"));
                }
                let inner = self.unary()?;
                self.depth -= 1;
                return Ok(of(inner.into()));
            }
        }
        self.member()
    }

    fn member(&mut self) -> Result<Expression, ParseError> {
        let mut value = self.primary()?;
        let mut count = 0;
        loop {
            count += 1;
            if count > MAX_DEPTH {
                return Err(syntax("too many fields in a row"));
            }
            if self.takes("[") {
                let index = self.choice()?;
                self.expect("]")?;
                value = Expression::Index(value.into(), index.into());
            } else if self.takes(".") {
                let Token::Word(name) = self.next() else {
                    return Err(syntax("a point without a name after it"));
                };
                value = if self.takes("(") {
                    self.method(value, name)?
                } else {
                    Expression::Field(value.into(), unescaped(&name))
                };
            } else {
                return Ok(value);
            }
        }
    }

    fn method(&mut self, on: Expression, name: String) -> Result<Expression, ParseError> {
        let over = match name.as_str() {
            "all" => Over::All,
            "exists" => Over::Exists,
            "exists_one" => Over::ExistsOne,
            "map" => Over::Map,
            "filter" => Over::Filter,
            _ => {
                let arguments = self.arguments(")")?;
                if !functions::is_method(&name, arguments.len()) {
                    self.unknown.get_or_insert_with(|| format!("the function {name}"));
                }
                return Ok(Expression::Call(name, Some(on.into()), arguments));
            }
        };
        let Token::Word(element) = self.next() else {
            return Err(syntax("a macro without a name for the element"));
        };
        self.expect(",")?;
        self.bound.push(element.clone());
        let body = self.choice()?;
        self.bound.pop();
        self.expect(")")?;
        Ok(Expression::Each(over, on.into(), element, body.into()))
    }

    fn arguments(&mut self, end: &str) -> Result<Vec<Expression>, ParseError> {
        let mut list = Vec::new();
        while !self.takes(end) {
            list.push(self.choice()?);
            if !self.takes(",") {
                self.expect(end)?;
                break;
            }
        }
        Ok(list)
    }

    fn primary(&mut self) -> Result<Expression, ParseError> {
        match self.next() {
            Token::Literal(value) => Ok(Expression::Literal(value)),
            Token::Sign("(") => {
                let inner = self.choice()?;
                self.expect(")")?;
                Ok(inner)
            }
            Token::Sign("[") => Ok(Expression::List(self.arguments("]")?)),
            Token::Sign("{") => {
                let mut entries = Vec::new();
                while !self.takes("}") {
                    let key = self.choice()?;
                    self.expect(":")?;
                    entries.push((key, self.choice()?));
                    if !self.takes(",") {
                        self.expect("}")?;
                        break;
                    }
                }
                Ok(Expression::Map(entries))
            }
            Token::Word(name) if self.takes("(") => {
                let mut arguments = self.arguments(")")?;
                if name == "has" {
                    return match (arguments.pop(), arguments.is_empty()) {
                        (Some(Expression::Field(of, field)), true) => Ok(Expression::Has(of, field)),
                        _ => Err(syntax("has() takes one field")),
                    };
                }
                if !functions::is_function(&name, arguments.len()) {
                    self.unknown.get_or_insert_with(|| format!("the function {name}"));
                }
                Ok(Expression::Call(name, None, arguments))
            }
            Token::Word(name) => {
                if !self.bound.contains(&name) {
                    if !matches!(name.as_str(), "self" | "oldSelf") {
                        self.unknown.get_or_insert_with(|| format!("the name {name}"));
                    }
                    self.names.insert(name.clone());
                }
                Ok(Expression::Name(name))
            }
            other => Err(syntax(format!("found {other:?}, expected a value"))),
        }
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
