//! What an iSCSI session shows besides what every session does: its parameters, and its connection.
//!
//! C source: `iscsi-scst/kernel/session.c`, `iscsi-scst/kernel/conn.c`

use crate::target::{IscsiTarget, SessionInfo};
use kshim::error::{Result, code};
use kshim::kobject::{Attr, Kobject};
use scst_core::session::Session;
use scst_core::sysfs::text::line;
use std::sync::{Arc, Weak};

/// The session that attributes belong to, by its number at its target.
#[derive(Clone)]
struct Owner {
    target: Weak<IscsiTarget>,
    tsih: u64,
}

impl Owner {
    fn ro(&self, name: &str, show: fn(&SessionInfo) -> String) -> Attr {
        let me = self.clone();
        Attr::ro(name, move || {
            let target = me.target.upgrade().ok_or(code::ENODEV)?;
            let info = target.session(me.tsih).ok_or(code::ENODEV)?;
            Ok(show(&info))
        })
    }
}

fn yes_no(on: bool) -> String {
    line(if on { "Yes" } else { "No" }, false)
}

fn digest(on: bool) -> String {
    line(if on { "CRC32C" } else { "None" }, false)
}

/// SID as one number: TSIH above the ISID, whose bytes SCST takes for a little-endian number.
fn sid(info: &SessionInfo) -> u64 {
    let [a, b, c, d, e, f] = info.isid.0;
    let isid = u64::from_le_bytes([a, b, c, d, e, f, 0, 0]);
    isid | u64::from(info.tsih.0) << 48
}

/// Shows a session of `target` in its directory.
#[doc(alias = "iscsi_sess_attrs")]
#[doc(alias = "conn_sysfs_add")]
pub(crate) fn show_session(
    target: &Arc<IscsiTarget>,
    sess: &Session,
    dir: &Arc<Kobject>,
) -> Result {
    let o = Owner {
        target: Arc::downgrade(target),
        tsih: sess.tgt_priv,
    };
    dir.add_attrs([
        o.ro("InitialR2T", |i| yes_no(i.params.initial_r2t)),
        o.ro("ImmediateData", |i| yes_no(i.params.immediate_data)),
        o.ro("MaxRecvDataSegmentLength", |i| {
            line(i.params.max_recv_data_segment_length, false)
        }),
        o.ro("MaxXmitDataSegmentLength", |i| {
            line(i.params.max_xmit_data_segment_length, false)
        }),
        o.ro("MaxBurstLength", |i| line(i.params.max_burst_length, false)),
        o.ro("FirstBurstLength", |i| {
            line(i.params.first_burst_length, false)
        }),
        o.ro("MaxOutstandingR2T", |i| {
            line(i.params.max_outstanding_r2t, false)
        }),
        o.ro("HeaderDigest", |i| digest(i.params.header_digest)),
        o.ro("DataDigest", |i| digest(i.params.data_digest)),
        o.ro("sid", |i| line(format_args!("{:x}", sid(i)), false)),
        o.ro("thread_pid", |i| line(i.tid, false)),
        o.ro("reinstating", |i| line(u8::from(i.reinstating), false)),
    ])?;
    let info = target.session(sess.tgt_priv).ok_or(code::ENODEV)?;
    // Without newlines, as in the kernel.
    dir.add(&info.peer.ip().to_string())?.add_attrs([
        o.ro("cid", |i| i.cid.0.to_string()),
        o.ro("ip", |i| i.peer.ip().to_string()),
        o.ro("target_ip", |i| i.portal.ip().to_string()),
        o.ro("transport", |_| line("iSCSI-TCP", false)),
        o.ro("state", |i| {
            let state = if i.reinstating {
                "reinstating "
            } else {
                "established idle "
            };
            state.to_owned()
        }),
    ])
}
