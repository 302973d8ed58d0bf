//! `scstd stpgd`: carries out SET TARGET PORT GROUPS by a program, as SCST's stpgd does.
//!
//! The program is started once for each target port group that is to change, all at the same time. Its exit status says
//! whether that worked; it has to set the state of the group itself.
//!
//! C source: `usr/stpgd/stpgd_main.c`

use std::ffi::OsString;
use std::io::Write as _;
use std::path::Path;

use crate::events;
use anyhow::{Context as _, Result, bail};
use kshim::error::code;
use kshim::time::Delta;
use kshim::umh::{self, End, Helper};
use kshim::{fs, host};
use scst_core::alua::StpgGroup;
use scst_core::event::{Filter, Heard, Kind};

use crate::cli::StpgdArgs;

/// Code of the event.
#[doc(alias = "SCST_EVENT_STPG_USER_INVOKE")]
const STPG_USER_INVOKE: u32 = 5;
/// `PATH` of the program.
const PATH: &str = "/bin:/usr/bin:/sbin:/usr/sbin";
/// How long a program may take to end when it is asked to, and to be killed.
const END_LIMIT: Delta = Delta::from_secs(1);

/// Serves one server, until it ends.
///
/// # Errors
///
/// Why it cannot.
pub(crate) fn run(args: &StpgdArgs) -> Result<()> {
    let program = check_program(&args.path)?;
    let control = args.control.clone().unwrap_or_else(crate::control_path);
    let mut client = events::connect(&control, &[Filter::code(STPG_USER_INVOKE)])?;
    let invoker = Invoker {
        program,
        control: fs::canonicalize(&control)?.into_os_string(),
        limit: Delta::from_secs(i64::from(args.timeout)),
    };
    tell_ready();
    loop {
        let told = match client.wait_next() {
            Ok(Heard::Event(told)) => told,
            Ok(Heard::NotAsked) => {
                log::warn!("the answer came too late: the command has failed");
                continue;
            }
            Err(code::ENOTCONN) => bail!("{}: the server has ended", control.display()),
            Err(e) => return Err(e).with_context(|| control.display().to_string()),
        };
        let kind = Kind::decode(told.event.code, &told.event.payload);
        let status = match kind {
            Some(Kind::StpgUserInvoke { device, groups, .. }) => invoker.invoke(&device, &groups),
            _ => code::EPROTO.errno(),
        };
        log::info!("SET TARGET PORT GROUPS: status {status}");
        match told.done(status) {
            // Another one carries it out.
            Ok(()) | Err(code::EINVAL) => {}
            Err(e) => log::warn!("the server cannot be told: {e}"),
        }
    }
}

fn tell_ready() {
    let mut stdout = std::io::stdout();
    let told = stdout.write_all(b"ready\n");
    if let Err(e) = told.and_then(|()| stdout.flush()) {
        log::warn!("cannot tell on stdout that it is ready: {e}");
    }
    if let Err(e) = host::notify_service_manager("READY=1") {
        log::warn!("cannot tell the service manager READY=1: {e}");
    }
}

fn check_program(path: &Path) -> Result<OsString> {
    umh::may_run(path).with_context(|| format!("--path {}: no program", path.display()))?;
    Ok(fs::canonicalize(path)?.into_os_string())
}

/// How programs are started.
struct Invoker {
    program: OsString,
    control: OsString,
    limit: Delta,
}

impl Invoker {
    /// What the event is answered with: 0, the first exit status that is not 0, or an errno.
    #[doc(alias = "handle_stpg_received")]
    fn invoke(&self, device: &str, groups: &[StpgGroup]) -> i32 {
        let mut status = 0;
        let mut helpers = Vec::new();
        for group in groups {
            match self.start(device, group) {
                Ok(helper) => helpers.push(helper),
                Err(e) => {
                    log::error!("{}: cannot be run: {e}", self.program.display());
                    status = e.errno();
                    break;
                }
            }
        }
        for mut helper in helpers {
            let ended = self.wait(&mut helper);
            if status == 0 {
                status = ended;
            }
        }
        status
    }

    #[doc(alias = "invoke_stpg")]
    fn start(&self, device: &str, group: &StpgGroup) -> kshim::error::Result<Helper> {
        let (prev, new) = (group.prev_state.name(), group.new_state.name());
        let values = [
            ("SCST_DEVICE_NAME", device),
            ("SCST_PREV_ALUA_STATE", prev),
            ("SCST_ALUA_STATE", new),
            ("SCST_DEVICE_GROUP", &group.dg),
            ("SCST_TARGET_GROUP", &group.tg),
        ];
        let mut argv = vec![self.program.clone()];
        argv.extend(values.iter().map(|(_, value)| value.into()));
        let mut env: Vec<(&str, OsString)> = vec![
            ("PATH", PATH.into()),
            // Where the tools look for the server.
            ("SCST_CONTROL", self.control.clone()),
        ];
        env.extend(values.iter().map(|(key, value)| (*key, value.into())));
        log::info!("running {argv:?}");
        Helper::start(&argv, &env)
    }

    #[doc(alias = "wait_until_finished")]
    fn wait(&self, helper: &mut Helper) -> i32 {
        if let Ok(status) = helper.wait(self.limit) {
            return status;
        }
        log::warn!("process {} did not end in time: ending it", helper.pid());
        helper.end(End::Ask);
        if helper.wait(END_LIMIT).is_err() {
            // When it is dropped.
            log::warn!("process {} does not end: killing it", helper.pid());
        }
        code::ETIMEDOUT.errno()
    }
}
