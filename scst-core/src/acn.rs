//! Patterns of initiator names.
//!
//! C source: `wildcmp` of `scst/src/scst_targ.c`

/// Whether `name` matches `pattern`: `*` any run, `?` any one character, ASCII case ignored, a leading `!` negates.
pub fn wildcmp(pattern: &str, name: &str) -> bool {
    let (negate, pattern) = match pattern.strip_prefix('!') {
        Some(rest) => (true, rest),
        None => (false, pattern),
    };
    matches(pattern.as_bytes(), name.as_bytes()) != negate
}

/// Greedy matching with one point to fall back to: time is bounded by the product of both lengths.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0usize, 0usize);
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        match (pattern.get(p), name.get(n)) {
            (Some(b'*'), _) => {
                star = Some((p, n));
                p = p.saturating_add(1);
            }
            (Some(b'?'), Some(_)) => (p, n) = (p.saturating_add(1), n.saturating_add(1)),
            (Some(a), Some(b)) if a.eq_ignore_ascii_case(b) => {
                (p, n) = (p.saturating_add(1), n.saturating_add(1));
            }
            _ => match &mut star {
                Some((at, taken)) => {
                    *taken = taken.saturating_add(1);
                    (p, n) = (at.saturating_add(1), *taken);
                }
                None => return false,
            },
        }
    }
    pattern.iter().skip(p).all(|b| *b == b'*')
}
