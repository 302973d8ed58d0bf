//! The text of a configuration file as statements: words, and blocks in braces.
//!
//! A statement is a line of words; a block belongs to the statement it follows on the same line. `#` starts a comment that
//! goes to the end of the line. Double quotes make one word of several, or an empty one. A backslash takes the meaning from
//! the character behind it. What the words mean is [`model`](super::model)'s business.

use std::fmt;
use std::iter::Peekable;
use std::str::Chars;

/// Blocks stand in each other at most this deep; the grammar needs four.
const DEPTH_MAX: usize = 16;

/// A place in a file. Two places are always equal, so that items compare by what they say and not by where they stand.
#[derive(Clone, Copy, Default)]
pub struct Pos {
    /// Line, from 1; 0 for what stands in no file.
    pub line: u32,
    /// Column in characters, from 1.
    pub col: u32,
}

impl PartialEq for Pos {
    fn eq(&self, _: &Pos) -> bool {
        true
    }
}

impl Eq for Pos {}

impl fmt::Debug for Pos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.col)
    }
}

/// Something wrong with a file, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where; `None` when it is about the file as a whole.
    pub pos: Option<Pos>,
    /// What, without a full stop.
    pub what: String,
}

impl Problem {
    /// A problem at a place.
    pub fn at(pos: Pos, what: impl Into<String>) -> Problem {
        Problem {
            pos: Some(pos),
            what: what.into(),
        }
    }

    /// `FILE:LINE:COLUMN: what`.
    pub fn in_file(&self, file: &str) -> String {
        match self.pos {
            Some(Pos { line, col }) => format!("{file}:{line}:{col}: {}", self.what),
            None => format!("{file}: {}", self.what),
        }
    }
}

/// One word of a statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Word {
    pub(crate) text: String,
    pub(crate) pos: Pos,
}

/// A line of words, with the block that it opens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Statement {
    /// Never empty.
    pub(crate) words: Vec<Word>,
    pub(crate) body: Option<Vec<Statement>>,
}

impl Statement {
    /// The first word and its place.
    pub(crate) fn head(&self) -> (&str, Pos) {
        self.words
            .first()
            .map_or(("", Pos::default()), |w| (w.text.as_str(), w.pos))
    }
}

/// Splits a file into statements.
///
/// # Errors
///
/// The first place that is wrong: a brace without its partner, a quote that does not end on its line.
pub(crate) fn parse(text: &str) -> Result<Vec<Statement>, Problem> {
    let mut lexer = Lexer {
        chars: text.chars().peekable(),
        pos: Pos { line: 1, col: 1 },
    };
    let mut open: Vec<(Vec<Word>, Vec<Statement>)> = Vec::new();
    let mut here: Vec<Statement> = Vec::new();
    let mut words: Vec<Word> = Vec::new();
    loop {
        let pos = lexer.skip_blanks();
        match lexer.token()? {
            Token::Word(text) => words.push(Word { text, pos }),
            Token::Newline => end_statement(&mut words, &mut here),
            Token::Open => {
                if words.is_empty() {
                    let what = "'{' must stand on the line of the section that it opens";
                    return Err(Problem::at(pos, what));
                }
                if open.len() >= DEPTH_MAX {
                    return Err(Problem::at(pos, "sections are nested too deeply"));
                }
                open.push((std::mem::take(&mut words), std::mem::take(&mut here)));
            }
            Token::Close => {
                end_statement(&mut words, &mut here);
                let Some((head, outer)) = open.pop() else {
                    return Err(Problem::at(pos, "'}' without a '{' before it"));
                };
                let body = Some(std::mem::replace(&mut here, outer));
                here.push(Statement { words: head, body });
            }
            Token::End => break,
        }
    }
    end_statement(&mut words, &mut here);
    if let Some((head, _)) = open.pop() {
        let name: Vec<&str> = head.iter().map(|w| w.text.as_str()).collect();
        let pos = head.first().map(|w| w.pos).unwrap_or_default();
        let what = format!(
            "section '{}' is not closed: '}}' is missing",
            name.join(" ")
        );
        return Err(Problem::at(pos, what));
    }
    Ok(here)
}

fn end_statement(words: &mut Vec<Word>, here: &mut Vec<Statement>) {
    if !words.is_empty() {
        here.push(Statement {
            words: std::mem::take(words),
            body: None,
        });
    }
}

/// Longest word in bytes: no attribute takes more.
const WORD_MAX: usize = 4096;

enum Token {
    Word(String),
    Open,
    Close,
    Newline,
    End,
}

struct Lexer<'a> {
    chars: Peekable<Chars<'a>>,
    pos: Pos,
}

impl Lexer<'_> {
    fn bump(&mut self) -> Option<char> {
        let c = self.chars.next()?;
        if c == '\n' {
            self.pos.line = self.pos.line.saturating_add(1);
            self.pos.col = 1;
        } else {
            self.pos.col = self.pos.col.saturating_add(1);
        }
        Some(c)
    }

    /// Skips blanks and comments; says where the next token begins.
    fn skip_blanks(&mut self) -> Pos {
        while let Some(&c) = self.chars.peek() {
            match c {
                '#' => self.skip_line(),
                '\n' => break,
                c if c.is_whitespace() => {
                    self.bump();
                }
                _ => break,
            }
        }
        self.pos
    }

    fn skip_line(&mut self) {
        while self.chars.peek().is_some_and(|&c| c != '\n') {
            self.bump();
        }
    }

    fn token(&mut self) -> Result<Token, Problem> {
        let single = match self.chars.peek() {
            None => return Ok(Token::End),
            Some('{') => Token::Open,
            Some('}') => Token::Close,
            Some('\n') => Token::Newline,
            Some(_) => {
                let start = self.pos;
                let text = self.word()?;
                return if text.len() > WORD_MAX {
                    Err(Problem::at(start, "the word is too long"))
                } else {
                    Ok(Token::Word(text))
                };
            }
        };
        self.bump();
        Ok(single)
    }

    fn word(&mut self) -> Result<String, Problem> {
        let mut text = String::new();
        while let Some(&c) = self.chars.peek() {
            match c {
                '"' => self.quoted(&mut text)?,
                '\\' => self.escaped(&mut text, false)?,
                '#' | '{' | '}' => break,
                c if c.is_whitespace() => break,
                '\0' => return Err(Problem::at(self.pos, "a NUL: this is no text")),
                c => {
                    text.push(c);
                    self.bump();
                }
            }
        }
        Ok(text)
    }

    fn quoted(&mut self, text: &mut String) -> Result<(), Problem> {
        let start = self.pos;
        self.bump();
        loop {
            match self.chars.peek() {
                None | Some('\n') => {
                    return Err(Problem::at(start, "the quote does not end on its line"));
                }
                Some('"') => break,
                Some('\\') => self.escaped(text, true)?,
                Some(&c) => {
                    text.push(c);
                    self.bump();
                }
            }
        }
        self.bump();
        Ok(())
    }

    /// A character behind a backslash; a line feed only inside quotes.
    fn escaped(&mut self, text: &mut String, is_quoted: bool) -> Result<(), Problem> {
        let start = self.pos;
        self.bump();
        match self.bump().filter(|c| is_quoted || *c != '\n') {
            None => Err(Problem::at(start, "a backslash ends the line")),
            Some(c) => {
                text.push(c);
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        let all = parse(text).unwrap();
        let [one] = all.as_slice() else {
            panic!("not one statement: {all:?}")
        };
        one.words.iter().map(|w| w.text.clone()).collect()
    }

    fn place(text: &str) -> (u32, u32, String) {
        let problem = parse(text).unwrap_err();
        let pos = problem.pos.unwrap();
        (pos.line, pos.col, problem.what)
    }

    #[test]
    fn words_quotes_and_escapes() {
        assert_eq!(words("a  b\tc # d"), ["a", "b", "c"]);
        assert_eq!(
            words("IncomingUser \"joe 12 # 3\""),
            ["IncomingUser", "joe 12 # 3"]
        );
        assert_eq!(words(r"f /a\#b\\c"), ["f", r"/a#b\c"]);
        assert_eq!(words("alias \"\""), ["alias", ""]);
        assert_eq!(words(r#"alias "{\"}""#), ["alias", "{\"}"]);
        assert_eq!(words("a b#c\n# whole line\n\r\n"), ["a", "b"]);
    }

    proptest::proptest! {
        #[test]
        fn what_is_quoted_comes_back(value in "[a-z\\\\#\"{}\n\r\t =']{1,12}", any in "[^\\x00]{1,40}") {
            for value in [value, any] {
                let line = format!("f {}\nnext x", super::super::writer::quote(&value));
                let all = parse(&line).expect("readable");
                proptest::prop_assert_eq!(all.len(), 2, "{:?}", line);
                let texts: Vec<&str> = all[0].words.iter().map(|w| w.text.as_str()).collect();
                proptest::prop_assert_eq!(texts, ["f", value.as_str()]);
            }
        }
    }

    #[test]
    fn blocks_nest_and_may_stand_on_one_line() {
        let all = parse("A b {\n\tC d { e f }\n\tg\n}\nh").unwrap();
        assert_eq!(all.len(), 2);
        let body = all[0].body.as_ref().unwrap();
        assert_eq!(body.len(), 2);
        assert_eq!(body[0].body.as_ref().unwrap()[0].words[1].text, "f");
        assert_eq!(all[1].head().0, "h");
    }

    #[test]
    fn errors_have_places() {
        assert_eq!(place("A {\n  b {\n}\n").0, 1);
        assert_eq!(
            place("A {\n}\n  }\n"),
            (3, 3, "'}' without a '{' before it".to_owned())
        );
        assert_eq!(place("A\n{\n}\n").0, 2);
        assert_eq!(place("a \"b\nc").1, 3);
        assert_eq!(place("a b\\\nc").1, 4);
        assert_eq!(place("a b\0c").0, 1);
        assert_eq!(place(&format!("a \"{}\"", "b".repeat(5000))).1, 3);
        let deep = "a {\n".repeat(100);
        assert!(place(&deep).2.contains("too deeply"));
    }
}
