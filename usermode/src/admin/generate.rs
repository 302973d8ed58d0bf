//! Help, manual page and shell completions, all made of the table of options.

use std::fmt::Write as _;

use super::options::{Arg, FAMILIES, Opt, all};

/// The column at which the help's explanations begin.
const HELP_COLUMN: usize = 32;

/// An option as it is typed.
fn usage(opt: &Opt) -> String {
    match opt.arg {
        Arg::No => format!("-{}", opt.name),
        Arg::May(value) => format!("-{} [{value}]", opt.name),
        Arg::Must(value) => format!("-{} {value}", opt.name),
    }
}

/// What `-help` prints.
pub(crate) fn help() -> String {
    let mut out = "Usage: scstadmin OPTION...\n\nManages a running SCST server.\n".to_owned();
    for family in FAMILIES {
        // Writing to a string does not fail, here and below.
        let _ = writeln!(out, "\n{}:", family.title);
        for opt in family.options {
            let left = format!("  {}", usage(opt));
            let with = match opt.with {
                "" => String::new(),
                with => format!(" (with {with})"),
            };
            let gap = if left.len() < HELP_COLUMN {
                " ".repeat(HELP_COLUMN - left.len())
            } else {
                format!("\n{}", " ".repeat(HELP_COLUMN))
            };
            let _ = writeln!(out, "{left}{gap}{}{with}", opt.help);
        }
    }
    out
}

/// The manual page, or the completions of a shell; `None`: there is no such thing.
pub(crate) fn text(kind: &str) -> Option<String> {
    match kind {
        "man" => Some(man()),
        "bash" => Some(bash()),
        "zsh" => Some(zsh()),
        "fish" => Some(fish()),
        _ => None,
    }
}

/// Text in a manual page.
fn roff(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-");
    let dotted = text.starts_with('.') || text.starts_with('\'');
    format!("{}{text}", if dotted { "\\&" } else { "" })
}

const MAN_END: &str = r#".SH EXIT STATUS
0: done. 1: an error, or a warning, which is printed; failures of \-add_target and \-rem_target have the numbers that they
have in SCST.
.SH ENVIRONMENT
SCST_CONTROL: the control socket of the server, if neither \-control nor \-sysfs says where it is.
.SH FILES
/etc/scst.conf: the configuration, if none is named. /run/scst/control.sock: the control socket of root's server.
/sys/kernel/scst_tgt: the tree, where there is no control socket.
.SH SEE ALSO
.BR scstd (1)
"#;

fn man() -> String {
    let version = env!("CARGO_PKG_VERSION");
    let mut out = format!(
        ".TH SCSTADMIN 1 \"\" \"SCST Usermode {version}\" \"SCST Usermode\"\n.SH NAME\nscstadmin \\- manage a running SCST server\n\
         .SH SYNOPSIS\n.B scstadmin\n.I OPTION...\n.SH DESCRIPTION\nOptions, output and exit codes are those of SCST's \
         scstadmin. Options may be abbreviated, in any case, with one dash or two; their values follow as the next word or \
         behind an equals sign. One command line makes one change, or any number of queries.\n"
    );
    for family in FAMILIES {
        let _ = writeln!(out, ".SH {}", family.title.to_uppercase());
        for opt in family.options {
            let _ = writeln!(out, ".TP\n.B {}\n{}", roff(&usage(opt)), roff(opt.help));
            if !opt.with.is_empty() {
                let _ = writeln!(out, "Needs {}.", roff(opt.with));
            }
        }
    }
    out + MAN_END
}

/// True when the value is a file.
fn takes_file(opt: &Opt) -> bool {
    matches!(
        opt.arg,
        Arg::May("FILE") | Arg::Must("FILE" | "SOCKET" | "DIR")
    )
}

fn bash() -> String {
    let names: Vec<String> = all().map(|o| format!("-{}", o.name)).collect();
    let files: Vec<String> = all()
        .filter(|o| takes_file(o))
        .map(|o| format!("-{}", o.name))
        .collect();
    format!(
        "_scstadmin() {{\n    local cur=${{COMP_WORDS[COMP_CWORD]}} prev=${{COMP_WORDS[COMP_CWORD-1]}}\n    case $prev in\n    \
         {}) COMPREPLY=($(compgen -f -- \"$cur\")); return ;;\n    -generate) COMPREPLY=($(compgen -W \"man bash zsh fish\" -- \
         \"$cur\")); return ;;\n    esac\n    COMPREPLY=($(compgen -W \"{}\" -- \"$cur\"))\n}}\ncomplete -F _scstadmin \
         scstadmin\n",
        files.join("|"),
        names.join(" ")
    )
}

/// Text in single quotes of a shell.
fn quoted(text: &str) -> String {
    text.replace('\'', "'\\''")
}

fn zsh() -> String {
    let mut out = "#compdef scstadmin\n_arguments \\\n".to_owned();
    for opt in all() {
        let help = quoted(opt.help)
            .replace('[', "\\[")
            .replace(']', "\\]")
            .replace(':', "\\:");
        let action = if takes_file(opt) { "_files" } else { "" };
        let value = match opt.arg {
            Arg::No => String::new(),
            Arg::May(v) => format!("::{v}:{action}"),
            Arg::Must(v) => format!(":{}:{action}", v.replace('|', " ")),
        };
        let _ = writeln!(out, "  '-{}[{help}]{value}' \\", opt.name);
    }
    out + "  && return 0\n"
}

fn fish() -> String {
    let mut out = String::new();
    for opt in all() {
        let value = match opt.arg {
            Arg::No => "",
            Arg::May(_) | Arg::Must(_) if takes_file(opt) => " -r -F",
            Arg::May(_) | Arg::Must(_) => " -r -f",
        };
        let help = quoted(opt.help);
        let _ = writeln!(
            out,
            "complete -c scstadmin -o {}{value} -d '{help}'",
            opt.name
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_option_is_in_everything_that_is_made() {
        let texts = ["man", "bash", "zsh", "fish"].map(|kind| text(kind).unwrap());
        for opt in all() {
            assert!(help().contains(&format!("-{}", opt.name)));
            for text in &texts {
                assert!(
                    text.contains(&roff(opt.name)) || text.contains(opt.name),
                    "{}",
                    opt.name
                );
            }
        }
        assert!(text("tcsh").is_none());
        assert!(man().starts_with(".TH SCSTADMIN 1"));
    }
}
