//! Tables of attributes, column by column as SCST's scstadmin prints them: tools read them.

use std::fmt::Write as _;

use crate::conf::attr::{Attr, Attributes, Shape};

/// The width of the column of names at least.
const NAME_MIN: usize = 9;

/// The width of the column of values at least.
const VALUE_MIN: usize = 5;

/// How wide a value that is no text counts.
fn shape_width(shape: Shape) -> usize {
    match shape {
        Shape::Text => 0,
        Shape::Exports => "HASH(0x5581d2a3b4c8)".len(),
        Shape::Devices => "ARRAY(0x5581d2a3b4c8)".len(),
    }
}

fn width(text: &str) -> usize {
    text.len()
}

/// A line of dashes behind a tab.
pub(crate) fn rule(len: usize) -> String {
    format!("\t{}\n", "-".repeat(len))
}

/// Names below each other under a title.
pub(crate) fn column(title: &str, min: usize, names: &[String]) -> String {
    let longest = names.iter().map(|n| width(n)).max().unwrap_or(0).max(min);
    let mut out = format!("\t{title}\n{}", rule(longest));
    for name in names {
        // Writing to a string does not fail, here and below.
        let _ = writeln!(out, "\t{name}");
    }
    out
}

/// `value` padded to `width` bytes.
pub(crate) fn pad(value: &str, width: usize) -> String {
    let missing = width.saturating_sub(value.len());
    format!("{value}{}", " ".repeat(missing))
}

fn levels(attr: &Attr) -> Option<Vec<&str>> {
    let value = attr
        .value
        .as_deref()
        .filter(|v| !v.is_empty() && *v != "0")?;
    Some(value.split('|').map(str::trim).collect())
}

/// Whether values that are the default are wanted too.
pub(crate) use crate::conf::NonKey;

/// The attributes as a table.
pub(crate) fn attributes(all: &Attributes, nonkey: NonKey) -> String {
    let nonkey = nonkey == NonKey::Include;
    let (names, values) = widths(all, nonkey);
    let mut out = String::new();
    let mut row = |cols: [&str; 4]| {
        let [name, value, writable, key] = cols;
        let _ = writeln!(
            out,
            "\t{}     {}     {}     {}",
            pad(name, names),
            pad(value, values),
            pad(writable, 9),
            pad(key, 3)
        );
    };
    row(["Attribute", "Value", "Writable", "KEY"]);
    let mut rows: Vec<[String; 4]> = Vec::new();
    for (name, attr) in &all.map {
        rows.extend(attr_rows(name, attr, nonkey));
    }
    let head = std::mem::take(&mut out);
    let mut text = head + &rule(names + values + 27);
    for [name, value, writable, key] in &rows {
        let _ = writeln!(
            text,
            "\t{}     {}     {}     {}",
            pad(name, names),
            pad(value, values),
            pad(writable, 9),
            pad(key, 3)
        );
    }
    if rows.is_empty() {
        text.push_str("\t(none)\n");
    }
    if let Some(attr) = all.map.get("trace_level").filter(|_| nonkey) {
        text.push_str(&trace_levels(attr));
    }
    text
}

fn widths(all: &Attributes, nonkey: bool) -> (usize, usize) {
    let (mut names, mut values) = (NAME_MIN, VALUE_MIN);
    for (name, attr) in &all.map {
        if attr.is_key() {
            names = names.max(width(name));
            values = attr
                .keys
                .values()
                .map(|v| width(v))
                .fold(values, usize::max);
        } else if nonkey {
            names = names.max(width(name));
            let levels = if name == "trace_level" {
                levels(attr)
            } else {
                None
            };
            values = match levels {
                Some(levels) => levels.into_iter().map(width).fold(values, usize::max),
                None => values
                    .max(attr.value.as_deref().map_or(0, width))
                    .max(shape_width(attr.shape)),
            };
        }
    }
    (names, values)
}

fn attr_rows(name: &str, attr: &Attr, nonkey: bool) -> Vec<[String; 4]> {
    let writable = if attr.fixed { "No" } else { "Yes" };
    let row = |i: usize, value: &str, key: &str| {
        let name = if i == 0 { name } else { "" };
        let value = if value.is_empty() { "<not set>" } else { value };
        [name, value, writable, key].map(str::to_owned)
    };
    if attr.is_key() {
        let values = attr.keys.values().enumerate();
        return values.map(|(i, v)| row(i, v, "Yes")).collect();
    }
    if !nonkey || attr.shape != Shape::Text {
        return Vec::new();
    }
    if let Some(levels) = levels(attr).filter(|_| name == "trace_level") {
        let rows = levels.into_iter().enumerate();
        return rows
            .map(|(i, level)| {
                let name = if i == 0 { name } else { "" };
                [name, level, writable, "No"].map(str::to_owned)
            })
            .collect();
    }
    vec![row(0, attr.value.as_deref().unwrap_or("<n/a>"), "No")]
}

fn trace_levels(attr: &Attr) -> String {
    let mut out = "\n\tPossible trace levels:\n\t  (use trace_level=\"add <level>\", none, all or default to \
                   set):\n"
        .to_owned();
    for (i, level) in attr.choices.iter().flatten().enumerate() {
        let start = if i % 5 == 0 { "\t\t" } else { "" };
        let end = if i % 5 == 4 { "\n" } else { "" };
        let _ = write!(out, "{start}{level}, {end}");
    }
    out.push('\n');
    out
}
