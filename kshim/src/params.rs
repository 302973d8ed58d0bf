//! Parameters of a driver or disk, as text: `name=value` pairs.
//!
//! The kernel has them on the command lines of itself and of modules, separated by spaces; here they stand behind the path
//! of a disk as in a URL, `/dev/KIND/NAME?size=1G&blocking=1`, and in writes to attributes.
//!
//! C header: `include/linux/moduleparam.h`, `lib/cmdline.c`

use std::str::FromStr;

use crate::error::{Result, code};

/// Pairs that one text may have.
const MAX_PAIRS: usize = 64;

/// Parameters to be taken one by one; [`Params::finish`] makes sure that none is left.
///
/// ```
/// use kshim::params::Params;
///
/// let mut p = Params::parse("size=1M&name=a%26b&discard")?;
/// assert_eq!(p.size("size")?, Some(1 << 20));
/// assert_eq!(p.text("name").as_deref(), Some("a&b"));
/// assert_eq!(p.flag("discard")?, Some(true));
/// assert_eq!(p.number::<u32>("depth")?, None);
/// p.finish()?;
/// assert!(Params::parse("unknown=1")?.finish().is_err());
/// # Ok::<(), kshim::error::Error>(())
/// ```
#[doc(alias = "parse_args")]
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Params(Vec<(String, String)>);

impl Params {
    /// Takes a text apart at `&`, and each pair at its first `=` or `:` (for places where an equals sign ends a word); what
    /// has none is a flag that is set. `%XX` is the byte with that number.
    ///
    /// Context: any. Errors: `EINVAL`: no name, no such byte, not UTF-8. `E2BIG`: too many.
    pub fn parse(text: &str) -> Result<Params> {
        let mut pairs = Vec::new();
        for pair in text.trim().split('&').filter(|p| !p.is_empty()) {
            let (name, value) = pair.split_once(['=', ':']).unwrap_or((pair, "1"));
            if name.is_empty() {
                return Err(code::EINVAL);
            }
            if pairs.len() == MAX_PAIRS {
                return Err(code::E2BIG);
            }
            pairs.push((unescape(name)?, unescape(value)?));
        }
        Ok(Params(pairs))
    }

    /// Takes a path of a disk apart at its first `?`: the path, unescaped, and the parameters.
    ///
    /// Context: any. Errors: as [`Params::parse`].
    pub fn split_path(path: &str) -> Result<(String, Params)> {
        let (path, params) = path.split_once('?').unwrap_or((path, ""));
        Ok((unescape(path)?, Params::parse(params)?))
    }

    /// Takes the value of a name; the last if there are several.
    pub fn text(&mut self, name: &str) -> Option<String> {
        self.texts(name).pop()
    }

    /// Takes all values of a name.
    pub fn texts(&mut self, name: &str) -> Vec<String> {
        let all = std::mem::take(&mut self.0).into_iter();
        let (found, rest): (Vec<_>, Vec<_>) = all.partition(|(n, _)| n == name);
        self.0 = rest;
        found.into_iter().map(|(_, value)| value).collect()
    }

    fn typed<T>(&mut self, name: &str, parse: impl Fn(&str) -> Result<T>) -> Result<Option<T>> {
        let Some(value) = self.text(name) else {
            return Ok(None);
        };
        let parsed = parse(&value);
        if parsed.is_err() {
            crate::pr_err!("{name}={value}: not valid");
        }
        parsed.map(Some)
    }

    /// Takes a number. Errors: `EINVAL`.
    #[doc(alias = "kstrtoint")]
    #[doc(alias = "kstrtoul")]
    pub fn number<T: FromStr>(&mut self, name: &str) -> Result<Option<T>> {
        self.typed(name, |v| v.parse().map_err(|_| code::EINVAL))
    }

    /// Takes a number of bytes, as [`memparse`] has it. Errors: `EINVAL`.
    pub fn size(&mut self, name: &str) -> Result<Option<u64>> {
        self.typed(name, memparse)
    }

    /// Takes a truth value, as [`kstrtobool`] has it. Errors: `EINVAL`.
    pub fn flag(&mut self, name: &str) -> Result<Option<bool>> {
        self.typed(name, kstrtobool)
    }

    /// Checks that all were taken. Errors: `EINVAL`, with a message about one that nobody knows.
    pub fn finish(self) -> Result {
        match self.0.first() {
            None => Ok(()),
            Some((name, _)) => {
                crate::pr_err!("parameter {name:?} is not known");
                Err(code::EINVAL)
            }
        }
    }
}

/// A number of bytes: decimal, with K, M, G or T (either case) for powers of 1024.
///
/// Unlike the kernel's, which stops at what it does not know, it takes the whole text.
///
/// ```
/// use kshim::params::{kstrtobool, memparse};
///
/// assert_eq!((memparse("64K"), kstrtobool("on\n")), (Ok(65536), Ok(true)));
/// ```
///
/// Context: any. Errors: `EINVAL`.
pub fn memparse(text: &str) -> Result<u64> {
    let text = text.trim();
    let (digits, shift) = match text.as_bytes().last().map(u8::to_ascii_uppercase) {
        Some(b'K') => (text.get(..text.len() - 1), 10),
        Some(b'M') => (text.get(..text.len() - 1), 20),
        Some(b'G') => (text.get(..text.len() - 1), 30),
        Some(b'T') => (text.get(..text.len() - 1), 40),
        _ => (Some(text), 0),
    };
    let digits = digits.unwrap_or_default();
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(code::EINVAL);
    }
    let n: u64 = digits.parse().map_err(|_| code::EINVAL)?;
    n.checked_mul(1 << shift).ok_or(code::EINVAL)
}

/// A truth value: `1`, `y`, `on` or `0`, `n`, `off`, with the variations that the kernel takes.
///
/// Context: any. Errors: `EINVAL`.
pub fn kstrtobool(text: &str) -> Result<bool> {
    let text = text.trim().to_ascii_lowercase();
    match text.as_bytes() {
        [b'1' | b'y' | b't', ..] | [b'o', b'n', ..] => Ok(true),
        [b'0' | b'n' | b'f', ..] | [b'o', b'f', ..] => Ok(false),
        _ => Err(code::EINVAL),
    }
}

fn unescape(text: &str) -> Result<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&b, tail)) = rest.split_first() {
        if b != b'%' {
            bytes.push(b);
            rest = tail;
            continue;
        }
        let (hex, tail) = tail.split_at_checked(2).ok_or(code::EINVAL)?;
        let digit = |d: u8| char::from(d).to_digit(16).ok_or(code::EINVAL);
        let [high, low] = hex else {
            return Err(code::EINVAL);
        };
        bytes.push(u8::try_from(digit(*high)? << 4 | digit(*low)?)?);
        rest = tail;
    }
    if bytes.contains(&0) {
        return Err(code::EINVAL);
    }
    String::from_utf8(bytes).map_err(|_| code::EINVAL)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_and_truth_values() {
        assert_eq!(memparse("4096"), Ok(4096));
        assert_eq!(memparse(" 3g\n"), Ok(3 << 30));
        for bad in [
            "",
            "K",
            "1X",
            "-1",
            "+1",
            "1.5G",
            "99999999999T",
            "18446744073709551616",
        ] {
            assert_eq!(memparse(bad), Err(code::EINVAL), "{bad}");
        }
        for (text, value) in [
            ("1\n", true),
            ("Yes", true),
            ("on", true),
            ("0", false),
            ("OFF", false),
        ] {
            assert_eq!(kstrtobool(text), Ok(value));
        }
        assert!(kstrtobool("").is_err() && kstrtobool("o").is_err() && kstrtobool("2").is_err());
    }

    #[test]
    fn paths_and_escapes() {
        let (path, mut p) = Params::split_path("/dev/x/a%3Fb?leg:/dev/y%3Fs=1%26t&leg=b").unwrap();
        assert_eq!(path, "/dev/x/a?b");
        assert_eq!(p.texts("leg"), ["/dev/y?s=1&t", "b"]);
        assert_eq!(p.finish(), Ok(()));
        for bad in ["%", "%2", "%zz", "%ff", "a%00b", "=1"] {
            assert_eq!(Params::parse(bad), Err(code::EINVAL), "{bad}");
        }
        assert_eq!(Params::parse(&"a&".repeat(65)), Err(code::E2BIG));
        let mut p = Params::parse("n=x").unwrap();
        assert_eq!(p.number::<u8>("n"), Err(code::EINVAL));
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "\\PC*") {
            let _ = Params::split_path(&text);
            let _ = (memparse(&text), kstrtobool(&text));
        }
    }
}
