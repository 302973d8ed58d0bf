//! Command lines as Perl's Getopt::Long reads them: `-name`, `--name` or `+name`, any case, any abbreviation that means one
//! option, a value as the next word or behind `=`, options and other words mixed, `--` as the end.

use std::collections::BTreeMap;

use super::options::{self, Arg, Opt};

/// The options of a command line with their values, by the name in the table. The last of several counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Parsed {
    values: BTreeMap<&'static str, String>,
}

impl Parsed {
    /// The value; `Some("")` for an option without.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str)
    }

    /// True when the option was given.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.values.contains_key(name)
    }
}

/// Reads a command line without the program's name.
///
/// # Errors
///
/// One line for each thing that is wrong.
pub(crate) fn parse(args: &[String]) -> Result<Parsed, Vec<String>> {
    let mut parsed = Parsed::default();
    let mut wrong = Vec::new();
    let mut rest = args.iter().map(String::as_str).peekable();
    while let Some(word) = rest.next() {
        if word == "--" {
            break;
        }
        let Some(body) = option_body(word) else {
            continue;
        };
        let (name, given) = match body.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (body, None),
        };
        let opt = match find(name) {
            Ok(opt) => opt,
            Err(line) => {
                wrong.push(line);
                continue;
            }
        };
        let value = match (opt.arg, given) {
            (Arg::No, None) => Ok(String::new()),
            (Arg::No, Some(_)) => Err(format!("Option {name} does not take an argument")),
            (Arg::Must(_), None) => rest
                .next()
                .map(str::to_owned)
                .ok_or_else(|| format!("Option {name} requires an argument")),
            (Arg::Must(_), Some("")) => Err(format!("Option {name} requires an argument")),
            (Arg::Must(_) | Arg::May(_), Some(value)) => Ok(value.to_owned()),
            (Arg::May(_), None) => {
                let value = rest.next_if(|next| option_body(next).is_none() && *next != "--");
                Ok(value.unwrap_or_default().to_owned())
            }
        };
        match value {
            Ok(value) => {
                parsed.values.insert(opt.name, value);
            }
            Err(line) => wrong.push(line),
        }
    }
    if wrong.is_empty() {
        Ok(parsed)
    } else {
        Err(wrong)
    }
}

/// What follows the dashes; a lone dash is a word.
fn option_body(word: &str) -> Option<&str> {
    let body = word
        .strip_prefix("--")
        .or_else(|| word.strip_prefix('-'))
        .or_else(|| word.strip_prefix('+'))?;
    (!body.is_empty()).then_some(body)
}

fn find(name: &str) -> Result<&'static Opt, String> {
    let lower = name.to_ascii_lowercase();
    if let Some(opt) = options::all().find(|o| o.name.to_ascii_lowercase() == lower) {
        return Ok(opt);
    }
    let mut hits: Vec<&Opt> = options::all()
        .filter(|o| !o.ours && o.name.to_ascii_lowercase().starts_with(&lower))
        .collect();
    hits.sort_by_key(|o| o.name.to_ascii_lowercase());
    match hits.as_slice() {
        [] => Err(format!("Unknown option: {lower}")),
        [one] => Ok(one),
        many => {
            let names: Vec<String> = many.iter().map(|o| o.name.to_ascii_lowercase()).collect();
            Err(format!(
                "Option {lower} is ambiguous ({})",
                names.join(", ")
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn dashes_cases_abbreviations_and_values() {
        let p = parse(&words(
            "-LIST_DRI --driver=iscsi x +nopr -attr a=1,b -- -force",
        ))
        .unwrap();
        assert_eq!(p.get("list_driver"), Some(""));
        assert_eq!(p.get("driver"), Some("iscsi"));
        assert_eq!(p.get("attributes"), Some("a=1,b"));
        assert!(p.has("noprompt") && !p.has("force"));
    }

    #[test]
    fn optional_values_stop_at_options_and_needed_ones_do_not() {
        let p = parse(&words("-config -force")).unwrap();
        assert_eq!((p.get("config"), p.has("force")), (Some(""), true));
        let p = parse(&words("-open_dev -handler h -set_scst_attr")).unwrap();
        assert_eq!(p.get("open_dev"), Some("-handler"));
        assert!(p.has("set_scst_attr"));
        assert_eq!(parse(&words("-config -")).unwrap().get("config"), Some("-"));
    }

    #[test]
    fn what_is_wrong_is_told_in_its_words() {
        assert_eq!(parse(&words("-foo")).unwrap_err(), ["Unknown option: foo"]);
        assert_eq!(
            parse(&words("-open_dev")).unwrap_err(),
            ["Option open_dev requires an argument"]
        );
        assert_eq!(
            parse(&words("-force=1")).unwrap_err(),
            ["Option force does not take an argument"]
        );
        assert_eq!(
            parse(&words("-list_dr")).unwrap_err(),
            ["Option list_dr is ambiguous (list_driver, list_drv_attr)"]
        );
        // Ours do not make SCST's abbreviations ambiguous.
        assert_eq!(parse(&words("-cont")).unwrap().get("cont_on_err"), Some(""));
        assert_eq!(
            parse(&words("-dr iscsi")).unwrap().get("driver"),
            Some("iscsi")
        );
    }

    #[test]
    fn names_are_unique() {
        let mut names: Vec<String> = options::all()
            .map(|o| o.name.to_ascii_lowercase())
            .collect();
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
