//! Following what happens in a running server: `scstd events`, and for `scstadmin -events`.

use std::io::Write;
use std::path::Path;

use anyhow::{Context as _, Result, anyhow, bail};
use kshim::error::{Error, code};
use scst_core::event::{CORE_ISSUER, Client, Delivered, Filter, Heard, Kind};

/// Which events to follow: all, if none is named.
///
/// # Errors
///
/// A name that no event has.
pub fn filters(names: &[String]) -> Result<Vec<Filter>> {
    if names.is_empty() {
        return Ok(vec![Filter::look_on()]);
    }
    let filter = |name: &String| {
        let Some(code) = Kind::code_of(name) else {
            let known: Vec<&str> = Kind::NAMES.iter().map(|(_, name)| *name).collect();
            bail!("no such event: {name} (there are: {})", known.join(" "));
        };
        Ok(Filter {
            code,
            ..Filter::look_on()
        })
    };
    names.iter().map(filter).collect()
}

/// Connects to the server behind a control socket.
///
/// # Errors
///
/// There is none, or it is another user's, or it has no events.
pub fn connect(control: &Path, filters: &[Filter]) -> Result<Client> {
    let mut client = Client::connect(control).map_err(|e| no_server(control, e))?;
    for filter in filters {
        let allowed = client.allow(filter);
        // Named twice.
        if allowed != Err(code::EEXIST) {
            allowed.with_context(|| format!("{}: no events", control.display()))?;
        }
    }
    Ok(client)
}

/// Why nobody answers at a control socket.
#[must_use]
pub fn no_server(path: &Path, e: Error) -> anyhow::Error {
    let path = path.display();
    match e {
        code::ENOENT | code::ECONNREFUSED => {
            anyhow!("no server at {path} (scstd run; see --control)")
        }
        code::EACCES | code::EPERM => anyhow!("{path}: the server is another user's"),
        e => anyhow!("{path}: {e}"),
    }
}

/// Writes a line for each event as it happens, until the server ends. It looks on: nobody waits for what it makes of it.
/// `ready` is called when nothing can be missed any more.
///
/// # Errors
///
/// As [`connect`]; the output cannot be written; the connection broke.
pub fn follow_events(
    control: &Path,
    filters: &[Filter],
    out: &mut dyn Write,
    ready: impl FnOnce(),
) -> Result<()> {
    let mut client = connect(control, filters)?;
    ready();
    loop {
        let told = match client.wait_next() {
            Ok(Heard::Event(told)) => told,
            Ok(Heard::NotAsked) => continue,
            // The server has ended.
            Err(code::ENOTCONN) => return Ok(()),
            Err(e) => return Err(e).with_context(|| control.display().to_string()),
        };
        let written = out.write_all(text(&told).as_bytes());
        written.and_then(|()| out.flush()).context("output")?;
    }
}

/// The lines of an event: one that says how many were lost before, if any were, and its own.
#[must_use]
pub fn text(told: &Delivered) -> String {
    let mut text = String::new();
    if told.lost != 0 {
        text += &format!("LOST events={}\n", told.lost);
    }
    let e = &told.event;
    let known = (e.issuer == CORE_ISSUER).then(|| Kind::decode(e.code, &e.payload));
    match known.flatten() {
        Some(kind) => text += &format!("{kind}\n"),
        None => {
            let hex: String = e.payload.iter().map(|b| format!("{b:02x}")).collect();
            let issuer = &e.issuer;
            text += &format!("EVENT code={} issuer={issuer:?} payload={hex}\n", e.code);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use scst_core::event::Event;
    use std::sync::Arc;

    #[test]
    fn names_and_numbers_are_events() {
        let names = ["reg_virt_dev".to_owned(), "77".to_owned()];
        let codes: Vec<u32> = filters(&names).unwrap().iter().map(|f| f.code).collect();
        assert_eq!(codes, [6, 77]);
        assert_eq!(filters(&[]).unwrap(), [Filter::look_on()]);
        let e = filters(&["all".to_owned()]).unwrap_err().to_string();
        assert!(e.contains("TM_FN_RECEIVED"), "{e}");
    }

    #[test]
    fn unknown_events_are_shown_as_bytes() {
        let event = Event {
            code: 74565,
            issuer: "other".to_owned(),
            payload: vec![1, 0xfe],
        };
        let told = Delivered {
            event: Arc::new(event),
            id: 0,
            lost: 3,
        };
        let want = "LOST events=3\nEVENT code=74565 issuer=\"other\" payload=01fe\n";
        assert_eq!(text(&told), want);
    }
}
