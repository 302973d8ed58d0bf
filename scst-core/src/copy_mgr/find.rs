//! Which device a CSCD descriptor means, and whether the initiator may use it.
//!
//! C source: `scst_cm_init_inq_finish`, `scst_cm_check_access` of `scst/src/scst_copy_mgr.c`

use super::params::Devices;
use crate::cdb::bytes::{be16_at, u8_at};
use crate::device::Device;
use crate::session::Session;
use crate::tgt::Tgt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

/// Length of the headers of VPD page 83h and of a designator.
const HEADER_LEN: usize = 4;

/// Looks devices up for an initiator.
pub(super) struct Finder<'a> {
    sess: &'a Session,
    /// Devices that take part, with their page 83h.
    pages: Vec<(Arc<Device>, Vec<u8>)>,
}

impl<'a> Finder<'a> {
    pub(super) fn new(sess: &'a Session) -> Self {
        let luns = sess.core.copy_mgr.tgt().default_acg().luns;
        let pages = luns.into_values().map(|d| {
            let page = d.dev.handler().device_identification();
            (d.dev, page)
        });
        Self {
            sess,
            pages: pages.collect(),
        }
    }

    /// Whether the initiator has a LUN of the device at any target, and then whether it may only read there.
    ///
    /// DIFFERS: in SCST a LUN of a target's default group is everybody's, also of initiators that other groups of the target
    /// take; and a LUN that may only be read is written to.
    fn connection(&self, dev: &Arc<Device>) -> Option<bool> {
        let core = &self.sess.core;
        let tgts: Vec<Arc<Tgt>> = {
            let list = core.tgt_list.lock();
            list.iter().filter_map(Weak::upgrade).collect()
        };
        let name = self.sess.initiator_name();
        let at = |tgt: &Arc<Tgt>| {
            let id = tgt.find_acg(name);
            let acgs = tgt.acgs.lock();
            let luns = acgs.iter().find(|acg| acg.id == id)?.luns.values();
            let of_dev = luns.filter(|d| Arc::ptr_eq(&d.dev, dev));
            of_dev.map(|d| d.read_only).min()
        };
        tgts.iter().filter_map(at).min()
    }
}

/// The designators of a page 83h: code set, type, value.
fn designators(page: &[u8]) -> impl Iterator<Item = (u8, u8, &[u8])> {
    let len = usize::from(be16_at(page, 2));
    let body = page.get(HEADER_LEN..).unwrap_or_default();
    let mut rest = body.get(..len).unwrap_or(body);
    std::iter::from_fn(move || {
        let len = usize::from(rest.get(3).copied()?);
        let value = rest.get(HEADER_LEN..HEADER_LEN.saturating_add(len))?;
        let (code_set, kind) = (u8_at(rest, 0), u8_at(rest, 1));
        rest = rest
            .get(HEADER_LEN.saturating_add(len)..)
            .unwrap_or_default();
        Some((code_set, kind, value))
    })
}

impl Devices for Finder<'_> {
    type Device = Arc<Device>;

    fn find(&self, code_set: u8, kind: u8, designator: &[u8]) -> Option<(Arc<Device>, u8)> {
        // Those of the logical unit alone, without a protocol.
        if code_set & 0xF0 != 0 || kind & 0xF0 != 0 {
            return None;
        }
        let is_it = |page: &[u8]| designators(page).any(|d| d == (code_set, kind, designator));
        let (dev, _) = self.pages.iter().find(|(_, page)| is_it(page))?;
        Some((Arc::clone(dev), dev.handler().block_shift()))
    }

    fn access(&self, dev: &Arc<Device>) -> Option<bool> {
        let free = &self.sess.core.copy_mgr.allow_not_connected_copy;
        let connection = self.connection(dev);
        if connection.is_none() && !free.load(Ordering::Relaxed) {
            kshim::pr_warn_ratelimited!(
                "Initiator {} not allowed to use device {} in EXTENDED COPY command",
                self.sess.initiator_name(),
                dev.name()
            );
            return None;
        }
        let read_only = connection.unwrap_or(false);
        Some(read_only || dev.handler().is_read_only() || dev.is_swp())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_that_lie_about_their_length() {
        let page = [0, 0x83, 0, 9, 1, 3, 0, 1, 7, 2, 1, 0, 0];
        let all = |p: &[u8]| {
            designators(p)
                .map(|(c, k, v)| (c, k, v.to_vec()))
                .collect::<Vec<_>>()
        };
        assert_eq!(all(&page), [(1, 3, vec![7]), (2, 1, vec![])]);
        assert_eq!(all(&page[..12]), [(1, 3, vec![7])]);
        assert_eq!(all(&[0, 0x83, 0xFF, 0xFF, 1, 3, 0, 200, 7]), []);
        assert_eq!(all(&[]), []);
    }
}
