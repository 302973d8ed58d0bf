//! What the core asks of a transport driver, apart from what runs at a command's home ([`crate::cmd::TgtHost`]).
//!
//! C source: `struct scst_tgt_template` of `scst/include/scst.h`

use crate::mgmt::MgmtCmd;
use crate::session::Session;
use crate::tgt::Tgt;
use kshim::error::Result;
use kshim::kobject::{Attr, Kobject};
use std::sync::Arc;

/// A transport driver.
#[doc(alias = "scst_tgt_template")]
pub trait TgtTemplate: Send + Sync + 'static {
    /// The driver's name, as in `/sys/kernel/scst_tgt/targets` (`iscsi`, ...).
    fn name(&self) -> &'static str;

    /// Version descriptor of the transport protocol for INQUIRY (SPC-4 6.6.2), e.g. 0960h for iSCSI.
    #[doc(alias = "get_scsi_transport_version")]
    fn scsi_transport_version(&self) -> u16;

    /// Version descriptor of the physical transport; 0 for none.
    #[doc(alias = "get_phys_transport_version")]
    fn phys_transport_version(&self) -> u16 {
        0
    }

    /// Both version descriptors as a target tells them: transport protocol, physical transport.
    fn transport_versions(&self, _tgt: &Tgt) -> (u16, u16) {
        (self.scsi_transport_version(), self.phys_transport_version())
    }

    /// The TransportID of a session's initiator port (SPC-4 7.6.4). It must be the same whenever that port logs in.
    /// A logical unit of which some session has none does not do persistent reservations. Context: may sleep.
    #[doc(alias = "get_initiator_port_transport_id")]
    fn initiator_port_transport_id(&self, _sess: &Session) -> Option<Vec<u8>> {
        None
    }

    /// Protocol identifier of its TransportIDs (SPC-4 7.6.1), if it has any.
    fn transport_id_protocol(&self) -> Option<u8> {
        None
    }

    /// Attributes of a group of initiators besides those that every group has. Context: may sleep.
    #[doc(alias = "acg_attrs")]
    fn group_sysfs_attrs(&self) -> Vec<Attr> {
        Vec::new()
    }

    /// Whether targets are enabled and disabled by the administrator.
    #[doc(alias = "enable_target")]
    fn can_be_disabled(&self) -> bool {
        false
    }

    /// Shows in a session's directory what only this driver knows of it. Attributes hold the session weakly. Errors: those of
    /// the kobjects. Context: under the configuration lock.
    #[doc(alias = "sess_attrs")]
    fn show_session(&self, _sess: &Arc<Session>, _dir: &Arc<Kobject>) -> Result {
        Ok(())
    }

    /// A target was enabled or disabled. Context: may sleep.
    fn target_enabled(&self, _tgt: &Tgt, _on: bool) {}

    /// Commands concerned by the function are out of the devices. Context: TM thread.
    fn task_mgmt_affected_cmds_done(&self, _mcmd: &Arc<MgmtCmd>) {}

    /// The session is being torn down by management: the driver closes its connections. Context: may sleep.
    fn close_session(&self, sess: &Arc<Session>);
}
