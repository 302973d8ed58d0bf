//! Just enough of Rust's lexer to look at code without its comments, strings and characters.

/// `src` with comments and the contents of string and character literals replaced by blanks. Line
/// numbers stay what they were.
pub(crate) fn code_only(src: &str) -> String {
    let b: Vec<char> = src.chars().collect();
    let mut out = String::with_capacity(src.len());
    let mut i = 0;
    while i < b.len() {
        let end = match (b[i], b.get(i + 1)) {
            ('/', Some('/')) => line_end(&b, i),
            ('/', Some('*')) => block_comment_end(&b, i),
            ('"', _) => string_end(&b, i + 1),
            ('r' | 'b' | 'c', _) if !follows_ident(&b, i) => raw_string_end(&b, i).unwrap_or(i),
            ('\'', _) => char_end(&b, i).unwrap_or(i),
            _ => i,
        };
        if end == i {
            out.push(b[i]);
            i += 1;
            continue;
        }
        for &c in &b[i..end] {
            out.push(if c == '\n' { '\n' } else { ' ' });
        }
        i = end;
    }
    out
}

fn follows_ident(b: &[char], i: usize) -> bool {
    i > 0 && (b[i - 1].is_alphanumeric() || b[i - 1] == '_')
}

fn line_end(b: &[char], mut i: usize) -> usize {
    while i < b.len() && b[i] != '\n' {
        i += 1;
    }
    i
}

fn block_comment_end(b: &[char], mut i: usize) -> usize {
    let mut depth = 0usize;
    while i < b.len() {
        match (b[i], b.get(i + 1)) {
            ('/', Some('*')) => {
                depth += 1;
                i += 2;
            }
            ('*', Some('/')) => {
                depth -= 1;
                i += 2;
                if depth == 0 {
                    return i;
                }
            }
            _ => i += 1,
        }
    }
    b.len()
}

fn string_end(b: &[char], mut i: usize) -> usize {
    while i < b.len() {
        match b[i] {
            '\\' => i += 2,
            '"' => return i + 1,
            _ => i += 1,
        }
    }
    b.len()
}

/// The end of a raw string (`r"`, `br#"`, `cr"` ...) that starts at `i`, if one does.
fn raw_string_end(b: &[char], i: usize) -> Option<usize> {
    let mut j = i;
    while j < b.len() && matches!(b[j], 'r' | 'b' | 'c') && j < i + 2 {
        j += 1;
    }
    if !b[i..j].contains(&'r') {
        return None;
    }
    let hashes_at = j;
    while b.get(j) == Some(&'#') {
        j += 1;
    }
    let hashes = j - hashes_at;
    if b.get(j) != Some(&'"') {
        return None;
    }
    j += 1;
    while j < b.len() {
        if b[j] == '"' && b[j + 1..].iter().take_while(|&&c| c == '#').count() >= hashes {
            return Some(j + 1 + hashes);
        }
        j += 1;
    }
    Some(b.len())
}

/// The end of a character literal at `i`; `None` for a lifetime.
fn char_end(b: &[char], i: usize) -> Option<usize> {
    match b.get(i + 1)? {
        '\\' => {
            let mut j = i + 3;
            while j < b.len() && b[j] != '\'' {
                j += 1;
            }
            Some((j + 1).min(b.len()))
        }
        _ if b.get(i + 2) == Some(&'\'') => Some(i + 3),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_are_blanked() {
        let code = code_only("a /* unsafe /* x */ { */ b // unsafe {\n\"unsafe { \\\" \" c");
        assert!(!code.contains("unsafe"), "{code}");
        assert!(code.contains('a') && code.contains('b') && code.contains('c'));
        assert_eq!(code.matches('\n').count(), 1);
    }

    #[test]
    fn raw_strings_characters_and_lifetimes() {
        let code =
            code_only("r#\"unsafe \" {\"# b\"unsafe\" '\"' fn f<'a>(x: &'a str) {} '\\'' unsafe");
        assert_eq!(code.matches("unsafe").count(), 1, "{code}");
        assert!(code.contains("fn f<'a>(x: &'a str)"), "{code}");
    }
}
