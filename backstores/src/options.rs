//! Options behind a path: `/dev/KIND/WHAT?size=1G&timeout=5`.

/// What a path names, and its options. A question mark may be part of a file's name: options look like options.
pub(crate) fn split_options(path: &str) -> (&str, impl Iterator<Item = (&str, &str)>) {
    let (what, options) = match path.rsplit_once('?') {
        Some((what, options)) if options.contains('=') => (what, options),
        _ => (path, ""),
    };
    let pairs = options.split('&').filter(|o| !o.is_empty());
    (what, pairs.map(|o| o.split_once('=').unwrap_or((o, ""))))
}

/// Bytes, with K, M, G or T for powers of 1024; not 0.
pub(crate) fn parse_size(text: &str) -> Option<u64> {
    let (digits, shift) = match text.as_bytes().last()?.to_ascii_uppercase() {
        b'K' => (&text[..text.len() - 1], 10),
        b'M' => (&text[..text.len() - 1], 20),
        b'G' => (&text[..text.len() - 1], 30),
        b'T' => (&text[..text.len() - 1], 40),
        _ => (text, 0),
    };
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let n = digits.parse::<u64>().ok()?;
    n.checked_mul(1 << shift).filter(|n| *n > 0)
}
