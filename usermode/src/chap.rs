//! `--chap USER:@FILE`: an account whose secret never is on a command line.

use std::io::Read as _;

use anyhow::{Context as _, Result, bail};
use iscsi_scst::accounts::{Accounts, SECRET_MAX, Secret};
use kshim::fs;

/// The accounts of one such argument.
///
/// # Errors
///
/// An argument of another form (which is not repeated: it may be a secret), a file that cannot be read, a bad name or secret.
pub(crate) fn accounts(argument: &str) -> Result<Accounts> {
    let Some((user, file)) = argument
        .split_once(":@")
        .filter(|(u, f)| !u.is_empty() && !f.is_empty())
    else {
        bail!("--chap: want USER:@FILE, with the secret in FILE (\"-\": standard input)");
    };
    let text = if file == "-" {
        from_stdin()
    } else {
        fs::read_head(file, READ_MAX).map_err(Into::into)
    };
    let text = text.with_context(|| format!("--chap: {file}: cannot be read"))?;
    let secret = Secret::new(first_line(&text)).with_context(|| format!("--chap: {file}"))?;
    let mut accounts = Accounts::default();
    accounts.add_incoming(user, secret).context("--chap")?;
    Ok(accounts)
}

/// More than a secret can have: enough to see that it is too long.
const READ_MAX: usize = SECRET_MAX + 3;

fn from_stdin() -> Result<Vec<u8>> {
    let mut text = Vec::new();
    let limit = u64::try_from(READ_MAX)?;
    std::io::stdin().take(limit).read_to_end(&mut text)?;
    Ok(text)
}

fn first_line(text: &[u8]) -> &[u8] {
    let line = text.split(|b| *b == b'\n').next().unwrap_or_default();
    line.strip_suffix(b"\r").unwrap_or(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_the_first_line() {
        assert_eq!(first_line(b"secret\r\nmore\n"), b"secret");
        assert_eq!(first_line(b"secret"), b"secret");
        assert_eq!(first_line(b""), b"");
    }

    #[test]
    fn arguments_of_another_form_are_refused_and_not_repeated() {
        for bad in ["user:topsecret123", "user", ":@file", "user:@", "@file", ""] {
            let error = format!("{:#}", accounts(bad).expect_err("must be refused"));
            assert!(
                error.contains("want USER:@FILE") && !error.contains("topsecret"),
                "{error}"
            );
        }
        let error = format!(
            "{:#}",
            accounts("user:@/no/such/file").expect_err("no file")
        );
        assert!(
            error.contains("/no/such/file") && error.contains("cannot be read"),
            "{error}"
        );
        // A file with no line at all.
        let error = format!("{:#}", accounts("user:@/dev/null").expect_err("no secret"));
        assert!(error.contains("at least 12"), "{error}");
    }
}
