//! Manual pages and shell completions, made of the command lines: `cargo xtask man [DIR]`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::CommandFactory as _;
use clap_complete::Shell;

use crate::sh;

/// The command line of scstd; only its definition is used here.
#[allow(dead_code, reason = "values are read by scstd")]
#[path = "../../usermode/src/cli.rs"]
mod cli;

/// Where they go if nobody says.
const DEFAULT_DIR: &str = "target/generated";

/// Folder below the given one, and the name of scstadmin's part in it.
const SHELLS: [(Shell, &str, &str); 3] = [
    (Shell::Bash, "bash-completion", "scstadmin"),
    (Shell::Zsh, "zsh", "_scstadmin"),
    (Shell::Fish, "fish", "scstadmin.fish"),
];

/// Makes them.
pub(crate) fn run(dir: Option<&str>) -> Result<()> {
    let dir = match dir {
        Some(dir) => PathBuf::from(dir),
        None => sh::top().join(DEFAULT_DIR),
    };
    let man = dir.join("man");
    fs::create_dir_all(&man).with_context(|| man.display().to_string())?;
    pages(cli::Cli::command(), &man)?;
    save(&man.join("scstadmin.1"), &scstadmin("man")?)?;
    for (shell, folder, file) in SHELLS {
        let folder = dir.join(folder);
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        clap_complete::generate_to(shell, &mut cli::Cli::command(), "scstd", &folder)?;
        save(&folder.join(file), &scstadmin(&shell.to_string())?)?;
    }
    // Found by its command's name.
    let bash = dir.join("bash-completion");
    fs::rename(bash.join("scstd.bash"), bash.join("scstd"))?;
    println!("{}", dir.display());
    Ok(())
}

/// The manual page of a command and those of its subcommands.
fn pages(cmd: clap::Command, dir: &Path) -> Result<()> {
    let mut cmd = cmd.disable_help_subcommand(true);
    cmd.build();
    let shown = cmd.get_subcommands().filter(|sub| !sub.is_hide_set());
    for one in shown.chain([&cmd]) {
        let page = clap_mangen::Man::new(one.clone());
        // Its own name would be the subcommand's.
        let page = page.source(concat!("scstd ", env!("CARGO_PKG_VERSION")));
        page.generate_to(dir)?;
    }
    Ok(())
}

fn save(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| path.display().to_string())
}

/// scstadmin has options of its own kind, and makes these itself.
fn scstadmin(kind: &str) -> Result<String> {
    let argv = [
        "cargo",
        "run",
        "-q",
        "--bin",
        "scstadmin",
        "--",
        "-generate",
        kind,
    ];
    sh::output(&argv)
}
