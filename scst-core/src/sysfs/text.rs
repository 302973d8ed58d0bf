//! How values are written in the tree, and how commands for `mgmt` files are read.

use kshim::error::{Result, code};

/// Marks, as the last line of an attribute, that its value is not the default: `scstadmin` saves it.
#[doc(alias = "SCST_SYSFS_KEY_MARK")]
pub const KEY_MARK: &str = "[key]";

/// A value on a line, with the mark if `key`.
pub fn line(value: impl std::fmt::Display, key: bool) -> String {
    if key {
        format!("{value}\n{KEY_MARK}\n")
    } else {
        format!("{value}\n")
    }
}

/// A flag as 0 or 1.
pub fn flag(on: bool, key: bool) -> String {
    line(u8::from(on), key)
}

/// Digits of a number in the base that its prefix says: `0x`, `0`, or none.
fn digits(s: &str) -> Option<u64> {
    let lower = s.to_ascii_lowercase();
    let (radix, digits) = if let Some(hex) = lower.strip_prefix("0x") {
        (16, hex)
    } else if let Some(octal) = lower.strip_prefix('0').filter(|o| !o.is_empty()) {
        (8, octal)
    } else {
        (10, lower.as_str())
    };
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    u64::from_str_radix(digits, radix).ok()
}

/// A number without a sign, with at most a newline behind it. Errors: `EINVAL` (and, unlike in the kernel, for numbers out of range
/// too).
#[doc(alias = "kstrtoul")]
pub fn parse_u64(text: &str) -> Result<u64> {
    unsigned(text.strip_suffix('\n').unwrap_or(text))
}

fn unsigned(s: &str) -> Result<u64> {
    digits(s.strip_prefix('+').unwrap_or(s)).ok_or(code::EINVAL)
}

/// A number with or without a sign, as [`parse_u64`].
#[doc(alias = "kstrtol")]
pub fn parse_i64(text: &str) -> Result<i64> {
    let s = text.strip_suffix('\n').unwrap_or(text);
    match s.strip_prefix('-') {
        Some(d) => {
            let n = i64::try_from(digits(d).ok_or(code::EINVAL)?);
            n.map(|n| n.wrapping_neg()).map_err(|_| code::EINVAL)
        }
        None => i64::try_from(unsigned(s)?).map_err(|_| code::EINVAL),
    }
}

/// 0 or 1. Errors: `EINVAL` for other numbers too.
pub fn parse_flag(text: &str) -> Result<bool> {
    match parse_i64(text)? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(code::EINVAL),
    }
}

/// The first line of what was written.
pub fn first_line(text: &str) -> &str {
    text.split('\n').next().unwrap_or(text)
}

/// Words of a command for a `mgmt` file.
#[derive(Clone, Copy, Debug)]
pub struct Lexems<'a>(&'a str);

impl<'a> Lexems<'a> {
    /// Reads from the beginning of `text`.
    pub fn new(text: &'a str) -> Self {
        Self(text)
    }

    /// What is still to be read.
    pub fn rest(&self) -> &'a str {
        self.0
    }

    /// The next word, empty at the end. An equals sign is white space, as `name=value` is two words.
    #[doc(alias = "scst_get_next_lexem")]
    pub fn next_lexem(&mut self) -> &'a str {
        let is_end = |c: char| c.is_ascii_whitespace() || c == '=' || c == '\0';
        let s = self.0.trim_start_matches(is_end);
        let end = s.find(is_end).unwrap_or(s.len());
        let (word, rest) = s.split_at_checked(end).unwrap_or((s, ""));
        self.0 = rest;
        word
    }

    /// What stands up to the next semicolon or newline, `None` at the end. It may be empty.
    #[doc(alias = "scst_get_next_token_str")]
    pub fn next_token(&mut self) -> Option<&'a str> {
        let is_end = |c: char| c == '\n' || c == ';';
        let s = self
            .0
            .trim_start_matches(|c: char| c.is_ascii_whitespace() || c == ';');
        if s.is_empty() {
            self.0 = s;
            return None;
        }
        let end = s.find(is_end).unwrap_or(s.len());
        let (token, rest) = s.split_at_checked(end).unwrap_or((s, ""));
        self.0 = rest;
        Some(token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        for (text, n) in [
            ("10\n", Ok(10)),
            ("0x1F", Ok(31)),
            ("017", Ok(15)),
            ("0", Ok(0)),
            ("-1\n", Ok(-1)),
            ("+3", Ok(3)),
            ("", Err(code::EINVAL)),
            ("\n", Err(code::EINVAL)),
            ("x", Err(code::EINVAL)),
            ("1 ", Err(code::EINVAL)),
            ("1\n\n", Err(code::EINVAL)),
            ("--1", Err(code::EINVAL)),
            ("0x", Err(code::EINVAL)),
            ("9223372036854775808", Err(code::EINVAL)),
        ] {
            assert_eq!(parse_i64(text), n, "{text:?}");
        }
        assert_eq!(parse_u64("18446744073709551615"), Ok(u64::MAX));
        assert_eq!(parse_u64("-1"), Err(code::EINVAL));
        assert_eq!(parse_flag("2"), Err(code::EINVAL));
    }

    #[test]
    fn words_and_parameters() {
        let mut l = Lexems::new(" add_device  d0 filename=/x; read_only = 1;;b\n");
        assert_eq!((l.next_lexem(), l.next_lexem()), ("add_device", "d0"));
        let mut token = Lexems::new(l.next_token().expect("parameters"));
        assert_eq!((token.next_lexem(), token.next_lexem()), ("filename", "/x"));
        let mut token = Lexems::new(l.next_token().expect("parameters"));
        assert_eq!((token.next_lexem(), token.next_lexem()), ("read_only", "1"));
        assert_eq!(l.next_token(), Some("b"));
        assert_eq!((l.next_token(), l.next_lexem()), (None, ""));
    }
}
