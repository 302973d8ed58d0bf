//! Names of initiators, and the patterns by which access control groups choose them.
//!
//! A pattern matches a name as a whole, without regard to the case of ASCII letters. `*` stands for any characters (also
//! none), `?` for exactly one, and one `!` turns the result of *what follows it* around; usually it comes first, and the group is
//! for everybody but those. Further `!` are ordinary characters.
//!
//! DIFFERS: the kernel's `tolower` also folds Latin-1 letters, which in UTF-8 names would make different characters
//! equal; here only ASCII is folded.
//!
//! C source: `scst/src/scst_targ.c` (`wildcmp`), `struct scst_acn` of `scst/src/scst_priv.h`

use kshim::error::{Result, code};

/// Longest name or pattern: it is a file name in the management tree. (iSCSI names have at most 223 bytes.)
pub const MAX_ACN_LEN: usize = 255;

/// An initiator name or pattern in an access control group.
///
/// # Examples
///
/// ```
/// use scst_core::acn::Acn;
///
/// let acn = Acn::new("!iqn.2026-01.org.example:test-*")?;
/// assert!(acn.matches("iqn.2026-01.org.example:prod-1"));
/// assert!(!acn.matches("IQN.2026-01.org.example:Test-1"));
/// # Ok::<(), kshim::error::Error>(())
/// ```
#[doc(alias = "scst_acn")]
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Acn(String);

impl Acn {
    /// Checks a name or pattern for what the management tree can show: 1 to [`MAX_ACN_LEN`] bytes, no white space or
    /// control characters, no `/`, and neither `.` nor `..`.
    ///
    /// # Errors
    ///
    /// `EINVAL`.
    pub fn new(name: &str) -> Result<Self> {
        let bad = |c: char| c.is_whitespace() || c.is_control() || c == '/';
        if name.is_empty()
            || name.len() > MAX_ACN_LEN
            || matches!(name, "." | "..")
            || name.contains(bad)
        {
            return Err(code::EINVAL);
        }
        Ok(Self(name.to_owned()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the initiator `name` is meant.
    pub fn matches(&self, name: &str) -> bool {
        wildcmp(&self.0, name)
    }
}

impl std::fmt::Display for Acn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Whether `name` matches `pattern` (see the module).
///
/// Context: any; takes at most `pattern.len() * name.len()` steps and no memory.
pub fn wildcmp(pattern: &str, name: &str) -> bool {
    match walk(pattern.as_bytes(), name.as_bytes(), Bang::Negates) {
        Walk::Match => true,
        Walk::NoMatch => false,
        Walk::Negated { pattern, name } => walk(pattern, name, Bang::Plain) != Walk::Match,
    }
}

/// What `!` means.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Bang {
    Negates,
    Plain,
}

#[derive(PartialEq, Eq)]
enum Walk<'a> {
    Match,
    NoMatch,
    /// Came to a `!`; these are behind it.
    Negated {
        pattern: &'a [u8],
        name: &'a [u8],
    },
}

/// Matches greedily. On a mismatch only the last `*` has to take one more character: an earlier one need not, since the
/// later one can swallow whatever it would have swallowed.
fn walk<'a>(mut pattern: &'a [u8], mut name: &'a [u8], bang: Bang) -> Walk<'a> {
    // The pattern behind the last `*`, and the name from where it goes on if that takes one more.
    let mut last_star: Option<(&[u8], &[u8])> = None;
    while let Some((&c, rest)) = name.split_first() {
        match pattern.split_first() {
            Some((b'!', p)) if bang == Bang::Negates => {
                return Walk::Negated { pattern: p, name };
            }
            Some((b'*', p)) => {
                if p.is_empty() {
                    return Walk::Match;
                }
                last_star = Some((p, rest));
                pattern = p;
            }
            Some((&w, p)) if w == b'?' || w.eq_ignore_ascii_case(&c) => {
                pattern = p;
                name = rest;
            }
            _ => match last_star {
                None => return Walk::NoMatch,
                Some((p, n)) => {
                    pattern = p;
                    name = n;
                    last_star = n.split_first().map(|(_, after)| (p, after));
                }
            },
        }
    }
    if pattern.iter().all(|b| *b == b'*') {
        Walk::Match
    } else {
        Walk::NoMatch
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn examples() {
        for (pattern, name, want) in [
            ("bl?h.*", "blah.jpg", true),
            ("BL?H.*", "blah.jpg", true),
            ("bl?h.*", "blh.jpg", false),
            ("*", "", true),
            ("**", "x", true),
            ("", "", true),
            ("", "x", false),
            ("?", "", false),
            ("a*b*c", "aXXbYYc", true),
            ("a*b*c", "aXXbYY", false),
            ("*ab", "aab", true),
            ("*aab", "aaaab", true),
            ("!abc", "abc", false),
            ("!abc", "ABD", true),
            ("!*", "anything", false),
            ("!?", "ab", true),
            // What precedes the `!` has to match; what follows must not.
            ("bl!?h.*", "blah.jpg", false),
            ("bl!?h.*", "blaah.jpg", true),
            ("bl!?h.*", "xlaah.jpg", false),
            // Only one counts.
            ("!!x", "!x", false),
            ("!!x", "x", true),
            // There is no name left to compare what follows with.
            ("!x", "", false),
            ("a!", "a", false),
            (
                "iqn.1993-08.org.debian:*",
                "iqn.1993-08.org.debian:01:abcdef",
                true,
            ),
        ] {
            assert_eq!(wildcmp(pattern, name), want, "{pattern} against {name}");
        }
    }

    #[test]
    fn names_are_checked() {
        for bad in ["", "a b", "a\n", "a/b", ".", "..", &"x".repeat(256)] {
            assert_eq!(Acn::new(bad), Err(code::EINVAL), "{bad:?}");
        }
        assert_eq!(
            Acn::new("iqn.x:y#10.0.0.1").expect("fine").to_string(),
            "iqn.x:y#10.0.0.1"
        );
    }

    #[test]
    fn many_stars_do_not_explode() {
        let pattern = "*a".repeat(100) + "b";
        assert!(!wildcmp(&pattern, &"a".repeat(5000)));
    }

    /// The definition.
    fn slow(pattern: &[u8], name: &[u8]) -> bool {
        match (pattern.split_first(), name.split_first()) {
            (None, None) => true,
            (Some((b'*', p)), _) => {
                slow(p, name) || name.split_first().is_some_and(|(_, n)| slow(pattern, n))
            }
            (Some((b'?', p)), Some((_, n))) => slow(p, n),
            (Some((a, p)), Some((b, n))) => a.eq_ignore_ascii_case(b) && slow(p, n),
            _ => false,
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 5000, ..ProptestConfig::default() })]
        #[test]
        fn agrees_with_the_definition(pattern in "[aAb*?]{0,8}", name in "[abB]{0,10}") {
            let want = slow(pattern.as_bytes(), name.as_bytes());
            prop_assert_eq!(wildcmp(&pattern, &name), want);
            if !name.is_empty() {
                prop_assert_eq!(wildcmp(&format!("!{pattern}"), &name), !want);
            }
        }

        #[test]
        fn a_name_matches_itself_whatever_its_case(name in "[a-z0-9.:-]{1,40}") {
            prop_assert!(wildcmp(&name, &name.to_uppercase()));
            prop_assert!(Acn::new(&name).is_ok_and(|a| a.matches(&name)) || name.starts_with('.'));
        }
    }
}
