//! iSCSI names (RFC 7143 4.2.7, RFC 3722, RFC 3980).

use anyhow::{Result, bail};

/// Longest name in bytes (RFC 7143 4.2.7.1).
const MAX_NAME_BYTES: usize = 223;
/// What the default name starts with.
const DEFAULT_PREFIX: &str = "iqn.2026-01.io.scst-usermode:";

/// Checks the form of a name: `iqn.YYYY-MM.DOMAIN[:ANYTHING]`, `eui.` and 16, or `naa.` and 16 or 32 hexadecimal digits.
///
/// # Errors
///
/// What is wrong with it.
pub(crate) fn check(name: &str) -> Result<()> {
    if name.len() > MAX_NAME_BYTES {
        bail!(
            "target name of {} bytes, longer than {MAX_NAME_BYTES}",
            name.len()
        );
    }
    if let Some(rest) = name.strip_prefix("iqn.") {
        return check_iqn(name, rest);
    }
    let hex = |digits: &str, lens: &[usize]| {
        lens.contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_hexdigit())
    };
    if let Some(rest) = name.strip_prefix("eui.") {
        if !hex(rest, &[16]) {
            bail!("target name {name:?}: \"eui.\" takes 16 hexadecimal digits");
        }
        return Ok(());
    }
    if let Some(rest) = name.strip_prefix("naa.") {
        if !hex(rest, &[16, 32]) {
            bail!("target name {name:?}: \"naa.\" takes 16 or 32 hexadecimal digits");
        }
        return Ok(());
    }
    bail!("target name {name:?} does not begin with \"iqn.\", \"eui.\" or \"naa.\"");
}

fn check_iqn(name: &str, rest: &str) -> Result<()> {
    // RFC 3722 maps capitals to small letters; initiators compare bytes, so a name is asked for in its mapped form.
    if let Some(c) = name
        .chars()
        .find(|&c| !matches!(c, 'a'..='z' | '0'..='9' | '-' | '.' | ':'))
    {
        bail!("target name {name:?}: character {c:?} (want a-z, 0-9, \"-\", \".\", \":\")");
    }
    let (date, domain) = rest.split_at_checked(7).unwrap_or((rest, ""));
    let date = date.as_bytes();
    let digits = |range: &[u8]| range.iter().all(u8::is_ascii_digit);
    let date_is_right = matches!(
        date,
        [_, _, _, _, b'-', b'0', b'1'..=b'9'] | [_, _, _, _, b'-', b'1', b'0'..=b'2']
    ) && digits(&date[..4]);
    let authority = domain.split(':').next().unwrap_or_default();
    let domain_is_right = authority.strip_prefix('.').is_some_and(|d| {
        d.split('.')
            .all(|label| !label.is_empty() && !label.starts_with('-') && !label.ends_with('-'))
    });
    if !date_is_right || !domain_is_right {
        bail!(
            "target name {name:?}: want iqn.YYYY-MM.DOMAIN[:ANYTHING], as iqn.2026-01.org.example:disk"
        );
    }
    Ok(())
}

/// The default name of this host's target.
pub(crate) fn default_name(hostname: &str) -> String {
    let host: String = hostname
        .to_ascii_lowercase()
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || c == '.' {
                c
            } else {
                '-'
            }
        })
        .take(MAX_NAME_BYTES - DEFAULT_PREFIX.len())
        .collect();
    let host = host.trim_matches(['-', '.']);
    format!(
        "{DEFAULT_PREFIX}{}",
        if host.is_empty() { "localhost" } else { host }
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn right_names() {
        for name in [
            "iqn.2026-01.org.example",
            "iqn.2026-01.org.example:disk.1-a:b",
            "iqn.1999-12.x:y",
            "eui.02004567A425678D",
            "naa.52004567BA64678D",
            "naa.62004567BA64678D0123456789ABCDEF",
        ] {
            check(name).unwrap();
        }
    }

    #[test]
    fn wrong_names() {
        for name in [
            "",
            "iqn",
            "iqn.",
            "disk",
            "iqn.2026-13.org.example",
            "iqn.2026-00.org.example",
            "iqn.2026-1.org.example",
            "iqn.2026-01",
            "iqn.2026-01.",
            "iqn.2026-01.:disk",
            "iqn.2026-01.org..example",
            "iqn.2026-01.org.Example",
            "iqn.2026-01.org.example:a b",
            "iqn.2026-01.org.example:a_b",
            "iqn.2026-01.org.exämple",
            "IQN.2026-01.org.example",
            "eui.0200",
            "eui.02004567A425678X",
            "naa.02004567A425678D0",
        ] {
            assert!(check(name).is_err(), "{name}");
        }
        assert!(check(&format!("iqn.2026-01.org.example:{}", "a".repeat(200))).is_err());
    }

    #[test]
    fn default_names_are_right_names() {
        for host in [
            "box",
            "Box_1.example.ORG",
            "",
            "---",
            &"x".repeat(300),
            "hörst",
        ] {
            let name = default_name(host);
            check(&name).unwrap_or_else(|e| panic!("{host}: {e}"));
        }
        assert_eq!(default_name("Box_1"), "iqn.2026-01.io.scst-usermode:box-1");
    }
}
