//! `/dev/nbd/HOST[:PORT]/[EXPORT][?PARAMETER=VALUE&...]`

use crate::PREFIX;
use crate::handshake::MAX_NAME;
use kshim::params::Params;
use kshim::prelude::*;
use kshim::time::Delta;

/// The port that IANA has given to NBD.
pub const DEFAULT_PORT: u16 = 10809;
/// Most connections to one export.
pub const MAX_CONNECTIONS: usize = 16;
/// Longest time that can be asked for, in seconds.
const MAX_SECS: i64 = 24 * 3600;

/// What a path says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Spec {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) export: String,
    pub(crate) connections: usize,
    pub(crate) timeout: Delta,
    pub(crate) reconnect: Delta,
    pub(crate) writethrough: bool,
}

impl Spec {
    /// Takes a path apart. Errors: `EINVAL`.
    pub(crate) fn parse(path: &str) -> Result<Spec> {
        let (path, mut p) = Params::split_path(path)?;
        let rest = path.strip_prefix(PREFIX).ok_or(EINVAL)?;
        let (server, export) = rest.split_once('/').unwrap_or((rest, ""));
        let (host, port) = match server.strip_prefix('[') {
            // An IPv6 address has colons of its own.
            Some(v6) => {
                let (host, port) = v6.split_once(']').ok_or(EINVAL)?;
                (
                    host,
                    port.strip_prefix(':').or(port.is_empty().then_some("")),
                )
            }
            None => match server.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (server, Some("")),
            },
        };
        let port = match port.ok_or(EINVAL)? {
            "" if !server.ends_with(':') => DEFAULT_PORT,
            port => port.parse().map_err(|_| EINVAL)?,
        };
        let secs = |value: Option<i64>, default, least| match value {
            None => Ok(Delta::from_secs(default)),
            Some(n) if (least..=MAX_SECS).contains(&n) => Ok(Delta::from_secs(n)),
            Some(_) => Err(EINVAL),
        };
        let spec = Spec {
            host: host.to_owned(),
            port,
            export: export.to_owned(),
            connections: p.number("connections")?.unwrap_or(1),
            timeout: secs(p.number("timeout")?, 30, 1)?,
            reconnect: secs(p.number("reconnect")?, 60, 0)?,
            writethrough: match p.text("cache").as_deref() {
                None | Some("writeback") => false,
                Some("writethrough") => true,
                Some(_) => return Err(EINVAL),
            },
        };
        p.finish()?;
        let connections = (1..=MAX_CONNECTIONS).contains(&spec.connections);
        if host.is_empty() || port == 0 || !connections || export.len() > MAX_NAME {
            return Err(EINVAL);
        }
        Ok(spec)
    }

    /// `HOST:PORT`
    pub(crate) fn server(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_taken_apart() {
        let s = Spec::parse(
            "/dev/nbd/localhost:1234/a/b%3Fc?connections=4&timeout=5&cache=writethrough",
        )
        .unwrap();
        assert_eq!(
            (s.server().as_str(), s.export.as_str()),
            ("localhost:1234", "a/b?c")
        );
        assert_eq!(
            (s.connections, s.timeout, s.writethrough),
            (4, Delta::from_secs(5), true)
        );
        assert_eq!(s.reconnect, Delta::from_secs(60));
        let s = Spec::parse("/dev/nbd/[::1]/").unwrap();
        assert_eq!(
            (s.server().as_str(), s.export.as_str()),
            ("[::1]:10809", "")
        );
        assert_eq!(Spec::parse("/dev/nbd/[fe80::1]:99/x").unwrap().port, 99);
        assert_eq!(Spec::parse("/dev/nbd/h").unwrap().port, DEFAULT_PORT);
        for bad in [
            "/dev/nbd/",
            "/dev/nbd//x",
            "/dev/nbd/h:/x",
            "/dev/nbd/h:0/x",
            "/dev/nbd/h:65536/x",
            "/dev/nbd/[::1/x",
            "/dev/nbd/[::1]x/x",
            "/dev/nbd/h/x?connections=0",
            "/dev/nbd/h/x?connections=17",
            "/dev/nbd/h/x?timeout=0",
            "/dev/nbd/h/x?cache=none",
            "/dev/nbd/h/x?y=1",
            "/dev/nbd/h/%ff",
        ] {
            assert_eq!(Spec::parse(bad), Err(EINVAL), "{bad}");
        }
    }
}
