//! Taking the steps of a case on a live target.

use std::collections::BTreeMap;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::str::FromStr;
use std::thread::sleep;
use std::time::{Duration, Instant};

use scst_initiator::pdu::{BHS_LEN, FINAL, NO_TAG, op};
use scst_initiator::session::{Error, Login, Outcome, TRANSIT};
use scst_initiator::{
    Bhs, Command, LoginError, OpenOptions, Pdu, Reply, Residual, Session, WireError, scsi,
};

use serde_json::{Value, json};

use crate::chap;
use crate::manage::Manage;
use crate::transcript::{Access, Action, Case, Open, Scsi, Stage};

/// How often a unit attention is taken before a step goes on.
const DRAIN_MAX: usize = 8;
/// The registration key of `pr_clean`.
const CLEAN_KEY: u64 = 0xC1;
/// iSCSI's port.
const PORT: u16 = 3260;

/// Where a target is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Portal.
    pub addr: SocketAddr,
    /// TargetName.
    pub iqn: String,
}

impl FromStr for Target {
    type Err = String;

    /// `iscsi://HOST[:PORT]/IQN`, also without the first part.
    fn from_str(text: &str) -> Result<Self, String> {
        let rest = text.strip_prefix("iscsi://").unwrap_or(text);
        let (portal, iqn) = rest
            .split_once('/')
            .filter(|(_, iqn)| !iqn.is_empty())
            .ok_or("wanted: iscsi://HOST[:PORT]/IQN")?;
        let has_port = portal.rsplit_once(':').is_some_and(|(host, port)| {
            port.parse::<u16>().is_ok() && (!host.contains(':') || host.ends_with(']'))
        });
        let with_port = if has_port {
            portal.to_owned()
        } else {
            format!("{portal}:{PORT}")
        };
        let mut found = with_port
            .to_socket_addrs()
            .map_err(|e| format!("{portal}: {e}"))?;
        let addr = found
            .next()
            .ok_or_else(|| format!("{portal}: no address"))?;
        Ok(Self {
            addr,
            iqn: iqn.to_owned(),
        })
    }
}

/// How to run cases.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Longest wait for an answer.
    pub timeout: Duration,
    /// Longest wait for the answer to a raw PDU, which may have none.
    pub raw_timeout: Duration,
    /// Pause after the logouts that end a case: targets tear down after their reply.
    pub pause: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(10),
            raw_timeout: Duration::from_millis(1500),
            pause: Duration::from_millis(300),
        }
    }
}

/// What a target answered to the steps of a case, one object a step.
#[derive(Clone, Debug, PartialEq)]
pub enum Answers {
    /// The answers; fewer than there are steps if the target stopped answering.
    Ran(Vec<Value>),
    /// The case cannot be run, for this reason.
    NotRun(String),
}

/// The recorded answers of a case.
pub fn recorded(case: &Case) -> Answers {
    Answers::Ran(case.steps.iter().map(|s| s.got.clone()).collect())
}

/// Runs cases on one target.
pub struct Runner<'m> {
    target: Target,
    options: Options,
    manage: Option<&'m mut dyn Manage>,
    sessions: BTreeMap<String, Session>,
}

impl<'m> Runner<'m> {
    /// A runner without sessions. Cases that change the configuration need `manage`.
    pub fn new(target: Target, options: Options, manage: Option<&'m mut dyn Manage>) -> Self {
        Self {
            target,
            options,
            manage,
            sessions: BTreeMap::new(),
        }
    }

    /// Logs in and out, to see whether there is such a target.
    ///
    /// # Errors
    /// Why not.
    pub fn probe(&self) -> Result<(), String> {
        let options = self.options_of("A");
        let session = Session::open(self.target.addr, &options)
            .map_err(|e| format!("{}, {}: {e}", self.target.addr, self.target.iqn))?;
        // What the end of a session answers does not matter.
        let _ = session.close();
        sleep(self.options.pause);
        Ok(())
    }

    /// Runs a case and closes all sessions.
    pub fn run(&mut self, case: &Case) -> Answers {
        if let Some(why) = self.not_run(case) {
            return Answers::NotRun(why);
        }
        let mut answers = Vec::new();
        for step in &case.steps {
            let answer = self.step(&step.action);
            let silent = answer.get("timeout").is_some() && answer != step.got;
            answers.push(answer);
            if silent {
                // Whatever comes next on this target would only be late answers.
                break;
            }
        }
        self.close_all();
        Answers::Ran(answers)
    }

    /// Why a case cannot be run, if it cannot.
    fn not_run(&self, case: &Case) -> Option<String> {
        let mut accesses = case.steps.iter().flat_map(|step| match &step.action {
            Action::Sysfs { ops, .. } => ops.as_slice(),
            _ => &[],
        });
        match self.manage.as_deref() {
            None => accesses.next().map(|_| "needs management".into()),
            Some(manage) => {
                let missing = accesses.find(|access| !manage.can(access))?;
                Some(format!("needs management of {}", missing.path()))
            }
        }
    }

    fn close_all(&mut self) {
        while let Some((_, session)) = self.sessions.pop_first() {
            // What the end of a session answers is no part of the case.
            let _ = session.close();
        }
        sleep(self.options.pause);
    }

    fn step(&mut self, action: &Action) -> Value {
        let done = match action {
            Action::Open(open) => self.open(open),
            Action::Close { s } => self.close(s),
            Action::Kill { s } => {
                if let Some(session) = self.sessions.remove(s) {
                    session.kill();
                }
                Ok(json!({"ok": true}))
            }
            Action::Scsi(command) => self.scsi(command),
            Action::Tmf {
                s,
                function,
                lun,
                referenced,
            } => self.on(s, |session| {
                let code = session.tmf(*function, *lun, Some(*referenced))?;
                Ok(json!({"tmf": code}))
            }),
            Action::Nop { s, out, immediate } => self.on(s, |session| {
                let itt = session.submit_nop(out, *immediate)?;
                match session.wait(itt)? {
                    Outcome::Nop(pdu) => {
                        Ok(json!({"nop": hex::encode(&pdu.data), "flags": pdu.bhs.flags()}))
                    }
                    other => Err(wrong_kind(&other)),
                }
            }),
            Action::Text { s, keys } => self.on(s, |session| text(session, keys)),
            Action::Discover { keys } => self.discover(keys),
            Action::Login { stages, tsih } => Ok(self.login(stages, *tsih)),
            Action::Raw { s, bhs, out } => {
                let timeout = self.options.raw_timeout;
                self.on(s, |session| raw(session, bhs, out, timeout))
            }
            Action::Drain { luns } => self.drain(luns),
            Action::PrClean => self.pr_clean(),
            Action::Sleep(time) => {
                sleep(*time);
                Ok(json!({}))
            }
            Action::Sysfs { ops, settle } => {
                let answer = self.sysfs(ops);
                sleep(*settle);
                Ok(answer)
            }
            Action::NopIns { s, time } => self.on(s, |session| {
                let before = session.pings;
                session.listen(*time)?;
                Ok(json!({"pinged": session.pings > before}))
            }),
            Action::Async { s } => self.on(s, asyncs),
        };
        done.unwrap_or_else(|e| failure(&e))
    }

    /// Runs `f` on an open session.
    fn on(
        &mut self,
        s: &str,
        f: impl FnOnce(&mut Session) -> Result<Value, Error>,
    ) -> Result<Value, Error> {
        let session = self.sessions.get_mut(s);
        f(session.ok_or(Error::Wire(WireError::Closed))?)
    }

    fn options_of(&self, s: &str) -> OpenOptions {
        let letter = s.bytes().next().unwrap_or(b'A');
        OpenOptions {
            initiator: format!("iqn.2026-01.org.example:probe-{}", s.to_ascii_lowercase()),
            isid: [
                0x80,
                0,
                0,
                0,
                0,
                0x10u8.wrapping_add(letter.wrapping_sub(b'A')),
            ],
            timeout: self.options.timeout,
            ..OpenOptions::normal(&self.target.iqn)
        }
    }

    fn open(&mut self, open: &Open) -> Result<Value, Error> {
        let mut options = self.options_of(&open.s);
        if let Some(name) = &open.initiator {
            options.initiator.clone_from(name);
        }
        options.keys.clone_from(&open.keys);
        let (session, mutual) = match chap::open(self.target.addr, &options, open) {
            Ok(opened) => opened,
            Err(LoginError::Status(class, detail)) => {
                return Ok(json!({"login_error": [class, detail]}));
            }
            Err(LoginError::Wire(e)) => return Err(e.into()),
            Err(LoginError::Protocol(what)) => return Err(Error::Unexpected(what)),
        };
        // A session of that name ends here: reinstated, or replaced.
        self.sessions.insert(open.s.clone(), session);
        if open.clear_ua {
            for &lun in &open.luns {
                self.on(&open.s, |session| drain_lun(session, lun))?;
            }
        }
        Ok(match mutual {
            Some(right) => json!({"ok": true, "mutual": right}),
            None => json!({"ok": true}),
        })
    }

    fn close(&mut self, s: &str) -> Result<Value, Error> {
        let session = self.sessions.remove(s);
        let code = session.ok_or(Error::Wire(WireError::Closed))?.close()?;
        Ok(json!({"ok": true, "logout": code}))
    }

    fn scsi(&mut self, scsi: &Scsi) -> Result<Value, Error> {
        let mut command = Command::new(0, scsi.cdb.clone());
        command.lun = scsi.lun;
        command.out.clone_from(&scsi.out);
        command.in_len = scsi.in_len;
        command.attr = scsi.attr;
        self.on(&scsi.s, |session| Ok(reply(&session.scsi(&command)?)))
    }

    fn discover(&mut self, keys: &[(String, String)]) -> Result<Value, Error> {
        let options = OpenOptions {
            timeout: self.options.timeout,
            ..OpenOptions::discovery()
        };
        let mut session = match Session::open(self.target.addr, &options) {
            Ok(session) => session,
            Err(LoginError::Status(class, detail)) => {
                return Ok(json!({"login_error": [class, detail]}));
            }
            Err(LoginError::Wire(e)) => return Err(e.into()),
            Err(LoginError::Protocol(what)) => return Err(Error::Unexpected(what)),
        };
        let answer = text(&mut session, keys)?;
        session.close()?;
        Ok(answer)
    }

    /// A login one request at a time; the connection is closed after the last.
    fn login(&self, stages: &[Stage], tsih: u16) -> Value {
        let mut answers = Vec::new();
        let isid = [0x80, 0, 0, 0, 0, 0x20];
        let mut login = match Login::connect(self.target.addr, isid) {
            Ok(login) => login,
            Err(e) => return failure(&e.into()),
        };
        login.wire.timeout = self.options.timeout;
        login.tsih = tsih;
        for stage in stages {
            let substitute =
                |(k, v): &(String, String)| (k.clone(), v.replace("$IQN", &self.target.iqn));
            let keys: Vec<_> = stage.keys.iter().map(substitute).collect();
            let transit = if stage.transit { TRANSIT } else { 0 };
            let mut request = login.request(stage.csg, stage.nsg, transit, &keys);
            request.bhs.0[2] = stage.version_max;
            request.bhs.0[3] = stage.version_min;
            match login.exchange(&request) {
                Ok(reply) => answers.push(json!({"class": reply.class, "detail": reply.detail, "flags": reply.flags, "text": reply.text, "op": reply.opcode})),
                Err(e) => {
                    answers.push(failure(&e.into()));
                    break;
                }
            }
        }
        json!({"login": answers})
    }

    fn drain(&mut self, luns: &[u16]) -> Result<Value, Error> {
        for session in self.sessions.values_mut() {
            for &lun in luns {
                drain_lun(session, lun)?;
            }
        }
        Ok(json!({}))
    }

    /// Registers on session A whatever was registered, then clears all registrations of LUN 0.
    fn pr_clean(&mut self) -> Result<Value, Error> {
        self.drain(&[0])?;
        let out = |action: u8, key: u64, new_key: u64| {
            let mut list = vec![0; 24];
            list[..8].copy_from_slice(&key.to_be_bytes());
            list[8..16].copy_from_slice(&new_key.to_be_bytes());
            let cdb = vec![0x5f, action, 0, 0, 0, 0, 0, 0, 24, 0];
            Command::write(0, cdb, list)
        };
        // REGISTER AND IGNORE EXISTING KEY, CLEAR (SPC-4 6.16).
        for command in [out(0x06, 0, CLEAN_KEY), out(0x03, CLEAN_KEY, 0)] {
            self.on("A", |session| Ok(reply(&session.scsi(&command)?)))?;
        }
        self.drain(&[0])
    }

    fn sysfs(&mut self, ops: &[Access]) -> Value {
        let iqn = self.target.iqn.clone();
        let Some(manage) = self.manage.as_deref_mut() else {
            return json!({"not_run": true});
        };
        let data = manage.data_dir();
        let put = |s: &str| s.replace("$T", &iqn).replace("$DATA", &data);
        let mut answers = Vec::new();
        for op in ops {
            let result = match op {
                Access::Read(path) => manage.read(&put(path)),
                Access::List(path) => manage.list(&put(path)),
                Access::Write(path, value) => match manage.write(&put(path), &put(value)) {
                    0 => Ok(String::new()),
                    errno => Err(errno),
                },
            };
            let (errno, content) = match result {
                Ok(content) => (0, content.replace('\n', "\\n").replace('\t', "\\t")),
                Err(errno) => (errno, String::new()),
            };
            answers.push(json!([errno, content]));
        }
        json!({"sysfs": answers})
    }
}

/// What stands for an answer that did not come.
fn failure(e: &Error) -> Value {
    match e {
        Error::Wire(WireError::Closed) => json!({"closed": true}),
        Error::Wire(WireError::Timeout) => json!({"timeout": true}),
        Error::Rejected(reason) => json!({"reject": reason}),
        other => json!({"error": other.to_string()}),
    }
}

fn wrong_kind(outcome: &Outcome) -> Error {
    match outcome {
        Outcome::Rejected(reason) => Error::Rejected(*reason),
        other => Error::Unexpected(format!("{other:?}")),
    }
}

fn reply(reply: &Reply) -> Value {
    let (kind, count) = match reply.residual {
        Residual::None => ("none", 0),
        Residual::Underflow(n) => ("underflow", n),
        Residual::Overflow(n) => ("overflow", n),
    };
    json!({"response": reply.response, "status": reply.status, "sense": hex::encode(&reply.sense), "data_in": hex::encode(&reply.data_in), "residual": [kind, count]})
}

fn text(session: &mut Session, keys: &[(String, String)]) -> Result<Value, Error> {
    let keys: Vec<(&str, &str)> = keys.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    let pairs = session.text(&keys)?;
    Ok(json!({"text": pairs}))
}

/// TEST UNIT READY until it is no CHECK CONDITION.
fn drain_lun(session: &mut Session, lun: u16) -> Result<Value, Error> {
    for _ in 0..DRAIN_MAX {
        let reply = session.scsi(&Command::new(lun, scsi::test_unit_ready()))?;
        if reply.status != scsi::status::CHECK_CONDITION {
            break;
        }
    }
    Ok(json!({}))
}

/// The asynchronous messages since the last call.
fn asyncs(session: &mut Session) -> Result<Value, Error> {
    session.listen(Duration::from_millis(100))?;
    let message =
        |a: scst_initiator::session::Async| json!([a.event, a.vendor, hex::encode(&a.data),]);
    let list = std::mem::take(&mut session.asyncs);
    let list: Vec<Value> = list.into_iter().map(message).collect();
    Ok(json!({"async": list}))
}

/// Sends a PDU as it is but for its tag and numbers, and takes the first PDU that comes.
fn raw(session: &mut Session, bhs: &[u8], out: &[u8], timeout: Duration) -> Result<Value, Error> {
    let mut header = Bhs::new(0, FINAL);
    let len = bhs.len().min(BHS_LEN);
    header.0[..len].copy_from_slice(&bhs[..len]);
    let itt = session.new_itt();
    header.set_word(16, itt);
    header.set_word(24, session.cmd_sn);
    header.set_word(28, session.exp_stat_sn);
    let numbered = !matches!(header.opcode(), op::DATA_OUT | op::SNACK);
    if numbered && !header.is_immediate() {
        session.cmd_sn = session.cmd_sn.wrapping_add(1);
    }
    let pdu = Pdu::new(header, Vec::new(), out.to_vec());
    session.wire.send(&pdu)?;
    let got = session.wire.recv_until(Instant::now() + timeout)?;
    if got.bhs.itt() != NO_TAG || got.bhs.opcode() == op::REJECT {
        session.exp_stat_sn = got.bhs.stat_sn().wrapping_add(1);
    }
    Ok(
        json!({"op": got.bhs.opcode(), "flags": got.bhs.flags(), "b2": got.bhs.0[2], "b3": got.bhs.0[3]}),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_from_text() {
        let target: Target = "iscsi://127.0.0.1:3261/iqn.x:y".parse().expect("a target");
        assert_eq!(target.addr, "127.0.0.1:3261".parse().expect("an address"));
        assert_eq!(target.iqn, "iqn.x:y");
        let target: Target = "[::1]/iqn.x".parse().expect("a target");
        assert_eq!(target.addr, "[::1]:3260".parse().expect("an address"));
        let target: Target = "127.0.0.1/iqn.x".parse().expect("a target");
        assert_eq!(target.addr.port(), PORT);
        for wrong in ["", "127.0.0.1", "127.0.0.1/", "/iqn.x"] {
            assert!(wrong.parse::<Target>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn cases_that_need_management_are_not_run() {
        let line = r#"{"case": "m", "steps": [{"do": {"op": "sysfs", "ops": [["R", "version"]]}, "got": {}}]}"#;
        let case = Case::parse_all(line).expect("a case").remove(0);
        let target = "127.0.0.1:1/iqn.x".parse().expect("a target");
        let answers = Runner::new(target, Options::default(), None).run(&case);
        assert_eq!(answers, Answers::NotRun("needs management".into()));
    }
}
