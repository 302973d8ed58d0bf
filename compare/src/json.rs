//! JSON as far as transcripts need it: a value, its parser, its text; and hexadecimal strings.

use std::fmt;

/// How deep values may nest.
const MAX_DEPTH: usize = 64;

/// A JSON value. Members of an object keep their order.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "names of RFC 8259 3")]
pub enum Value {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    String(String),
    Array(Vec<Value>),
    Object(Vec<(String, Value)>),
}

/// Where a text is no JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyntaxError {
    /// Byte offset.
    pub at: usize,
    /// What was wanted there.
    pub wanted: &'static str,
}

impl fmt::Display for SyntaxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at byte {}: {} expected", self.at, self.wanted)
    }
}

impl std::error::Error for SyntaxError {}

impl Value {
    /// Parses one value; white space around it is allowed, nothing else.
    ///
    /// # Errors
    ///
    /// Where the text stops being JSON.
    pub fn parse(text: &str) -> Result<Self, SyntaxError> {
        let mut p = Parser { text, at: 0 };
        let value = p.value(0)?;
        p.space();
        if p.at < text.len() {
            return Err(p.wanted("end of text"));
        }
        Ok(value)
    }

    /// The member of an object.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.members()?
            .iter()
            .find(|(k, _)| k == key)
            .map(|(_, v)| v)
    }

    /// The members of an object.
    pub fn members(&self) -> Option<&[(String, Value)]> {
        match self {
            Self::Object(members) => Some(members),
            _ => None,
        }
    }

    /// The elements of an array.
    pub fn elements(&self) -> Option<&[Value]> {
        match self {
            Self::Array(elements) => Some(elements),
            _ => None,
        }
    }

    /// A string.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(s) => Some(s),
            _ => None,
        }
    }

    /// An integer.
    pub fn as_int(&self) -> Option<i64> {
        match self {
            Self::Int(n) => Some(*n),
            _ => None,
        }
    }

    /// A truth value.
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Self::Bool(b) => Some(*b),
            _ => None,
        }
    }

    /// A number with or without a fraction.
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            Self::Int(n) => Some(*n as f64),
            Self::Float(x) => Some(*x),
            _ => None,
        }
    }

    /// An object from its members.
    pub fn object<const N: usize>(members: [(&str, Value); N]) -> Self {
        Self::Object(
            members
                .into_iter()
                .map(|(k, v)| (k.to_owned(), v))
                .collect(),
        )
    }

    /// Pairs of strings, as text keys are written.
    pub fn pairs(pairs: &[(String, String)]) -> Self {
        let pair = |(k, v): &(String, String)| Self::Array(vec![k.into(), v.into()]);
        Self::Array(pairs.iter().map(pair).collect())
    }
}

impl From<bool> for Value {
    fn from(b: bool) -> Self {
        Self::Bool(b)
    }
}

impl From<u8> for Value {
    fn from(n: u8) -> Self {
        Self::Int(n.into())
    }
}

impl From<u32> for Value {
    fn from(n: u32) -> Self {
        Self::Int(n.into())
    }
}

impl From<&str> for Value {
    fn from(s: &str) -> Self {
        Self::String(s.to_owned())
    }
}

impl From<&String> for Value {
    fn from(s: &String) -> Self {
        Self::String(s.clone())
    }
}

impl From<String> for Value {
    fn from(s: String) -> Self {
        Self::String(s)
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Bool(b) => write!(f, "{b}"),
            Self::Int(n) => write!(f, "{n}"),
            Self::Float(x) => write!(f, "{x}"),
            Self::String(s) => write_string(f, s),
            Self::Array(elements) => {
                f.write_str("[")?;
                for (i, v) in elements.iter().enumerate() {
                    let comma = if i > 0 { ", " } else { "" };
                    write!(f, "{comma}{v}")?;
                }
                f.write_str("]")
            }
            Self::Object(members) => {
                f.write_str("{")?;
                for (i, (k, v)) in members.iter().enumerate() {
                    f.write_str(if i > 0 { ", " } else { "" })?;
                    write_string(f, k)?;
                    write!(f, ": {v}")?;
                }
                f.write_str("}")
            }
        }
    }
}

fn write_string(f: &mut fmt::Formatter<'_>, s: &str) -> fmt::Result {
    f.write_str("\"")?;
    for c in s.chars() {
        match c {
            '"' => f.write_str("\\\"")?,
            '\\' => f.write_str("\\\\")?,
            '\n' => f.write_str("\\n")?,
            '\t' => f.write_str("\\t")?,
            c if c < ' ' => write!(f, "\\u{:04x}", u32::from(c))?,
            c => write!(f, "{c}")?,
        }
    }
    f.write_str("\"")
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl Parser<'_> {
    fn wanted(&self, wanted: &'static str) -> SyntaxError {
        SyntaxError {
            at: self.at,
            wanted,
        }
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\r' | b'\n')) {
            self.at += 1;
        }
    }

    fn eat(&mut self, byte: u8) -> bool {
        self.space();
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    fn word(&mut self, word: &str, value: Value) -> Option<Value> {
        let found = self
            .text
            .get(self.at..)
            .is_some_and(|rest| rest.starts_with(word));
        if found {
            self.at += word.len();
        }
        found.then_some(value)
    }

    fn value(&mut self, depth: usize) -> Result<Value, SyntaxError> {
        if depth > MAX_DEPTH {
            return Err(self.wanted("less nesting"));
        }
        self.space();
        match self.peek() {
            Some(b'{') => self.object(depth),
            Some(b'[') => self.array(depth),
            Some(b'"') => Ok(Value::String(self.string()?)),
            Some(b'-' | b'0'..=b'9') => self.number(),
            _ => self
                .word("null", Value::Null)
                .or_else(|| self.word("true", Value::Bool(true)))
                .or_else(|| self.word("false", Value::Bool(false)))
                .ok_or_else(|| self.wanted("a value")),
        }
    }

    fn object(&mut self, depth: usize) -> Result<Value, SyntaxError> {
        let mut members = Vec::new();
        self.at += 1;
        if self.eat(b'}') {
            return Ok(Value::Object(members));
        }
        loop {
            self.space();
            let key = self.string()?;
            if !self.eat(b':') {
                return Err(self.wanted("a colon"));
            }
            members.push((key, self.value(depth + 1)?));
            if self.eat(b'}') {
                return Ok(Value::Object(members));
            }
            if !self.eat(b',') {
                return Err(self.wanted("a comma or }"));
            }
        }
    }

    fn array(&mut self, depth: usize) -> Result<Value, SyntaxError> {
        let mut elements = Vec::new();
        self.at += 1;
        if self.eat(b']') {
            return Ok(Value::Array(elements));
        }
        loop {
            elements.push(self.value(depth + 1)?);
            if self.eat(b']') {
                return Ok(Value::Array(elements));
            }
            if !self.eat(b',') {
                return Err(self.wanted("a comma or ]"));
            }
        }
    }

    fn number(&mut self) -> Result<Value, SyntaxError> {
        let rest = &self.text[self.at..];
        let len = rest
            .bytes()
            .take_while(|b| matches!(b, b'-' | b'+' | b'.' | b'e' | b'E' | b'0'..=b'9'))
            .count();
        let digits = &rest[..len];
        let value = match digits.parse::<i64>() {
            Ok(n) => Value::Int(n),
            Err(_) => Value::Float(digits.parse().map_err(|_| self.wanted("a number"))?),
        };
        self.at += len;
        Ok(value)
    }

    fn string(&mut self) -> Result<String, SyntaxError> {
        if self.peek() != Some(b'"') {
            return Err(self.wanted("a string"));
        }
        self.at += 1;
        let mut s = String::new();
        loop {
            let rest = &self.text[self.at..];
            let Some(c) = rest.chars().next() else {
                return Err(self.wanted("a closing quote"));
            };
            self.at += c.len_utf8();
            match c {
                '"' => return Ok(s),
                '\\' => s.push(self.escape()?),
                c => s.push(c),
            }
        }
    }

    fn escape(&mut self) -> Result<char, SyntaxError> {
        let c = self.peek().ok_or_else(|| self.wanted("an escape"))?;
        self.at += 1;
        Ok(match c {
            b'"' | b'\\' | b'/' => char::from(c),
            b'n' => '\n',
            b't' => '\t',
            b'r' => '\r',
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'u' => {
                let digits = self.text.get(self.at..self.at + 4);
                let code = digits.and_then(|d| u32::from_str_radix(d, 16).ok());
                // Transcripts have no characters outside the basic plane.
                let c = code.and_then(char::from_u32);
                let c = c.ok_or_else(|| self.wanted("four digits of a character"))?;
                self.at += 4;
                c
            }
            _ => return Err(self.wanted("a known escape")),
        })
    }
}

/// Bytes as hexadecimal digits.
pub fn to_hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    let mut s = String::with_capacity(bytes.len() * 2);
    for b in bytes {
        let _ = write!(s, "{b:02x}");
    }
    s
}

/// Hexadecimal digits as bytes; `None` if they are none, or not in pairs.
pub fn from_hex(digits: &str) -> Option<Vec<u8>> {
    if !digits.len().is_multiple_of(2) || !digits.is_ascii() {
        return None;
    }
    (0..digits.len())
        .step_by(2)
        .map(|i| u8::from_str_radix(&digits[i..i + 2], 16).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_survive_a_round_trip() {
        let text =
            r#"{"a": [1, -2, 0.5, true, false, null], "b": "x\"\\\n\u0001é", "c": {}, "d": []}"#;
        let value = Value::parse(text).expect("JSON");
        assert_eq!(value.to_string(), text);
        assert_eq!(
            value.get("a").and_then(|a| a.elements()).map(<[_]>::len),
            Some(6)
        );
    }

    #[test]
    fn broken_texts_are_refused() {
        for text in [
            "",
            "{",
            "[1,",
            "\"x",
            "{\"a\" 1}",
            "1 2",
            "\"\\q\"",
            "\"\\u12\"",
            "nul",
            "-",
            "[1}",
        ] {
            assert!(Value::parse(text).is_err(), "{text}");
        }
        let deep = "[".repeat(100_000);
        assert!(Value::parse(&deep).is_err());
    }

    #[test]
    fn hexadecimal() {
        assert_eq!(from_hex("00ffA0"), Some(vec![0, 255, 160]));
        assert_eq!(to_hex(&[0, 255, 160]), "00ffa0");
        assert_eq!(
            (from_hex("0"), from_hex("zz"), from_hex("é")),
            (None, None, None)
        );
    }
}
