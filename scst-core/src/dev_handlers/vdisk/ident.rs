//! Who the device says it is: the strings and numbers of INQUIRY.
//!
//! C source: `vdev_create_node`, `vdisk_gen_dev_id_num` of `scst/src/dev_handlers/scst_vdisk.c`

use kshim::crypto::crc32c_append;

/// T10 vendor of file and null devices.
#[doc(alias = "SCST_FIO_VENDOR")]
pub const FIO_VENDOR: &str = "SCST_FIO";
/// T10 vendor of block devices.
#[doc(alias = "SCST_BIO_VENDOR")]
pub const BIO_VENDOR: &str = "SCST_BIO";
/// Product revision level.
#[doc(alias = "SCST_FIO_REV")]
pub const REVISION: &str = "3110";
/// Longest unit serial number.
pub(super) const MAX_USN_LEN: usize = 20;
/// Longest T10 device identifier.
pub(super) const MAX_T10_DEV_ID_LEN: usize = 25;
/// Bytes of the T10 device identifier that stand in for an EUI-64 when no identifier was given.
const DEFAULT_EUI64_LEN: usize = 8;
pub(super) const MAX_VEND_ID_LEN: usize = 8;
pub(super) const MAX_PROD_ID_LEN: usize = 16;
pub(super) const MAX_REV_LEN: usize = 4;
pub(super) const MAX_VEND_SPECIFIC_ID_LEN: usize = 128;
/// Longest SCSI name string.
pub(super) const MAX_SCSI_DEVICE_NAME_LEN: usize = 256;
/// Most vendor-specific bytes of INQUIRY: what is behind byte 96 of 256.
pub(super) const MAX_INQ_VEND_SPECIFIC_LEN: usize = 160;
/// Longest binary identifier (EUI-64 and NAA designators).
const MAX_BINARY_ID_LEN: usize = 16;

/// The identity of a virtual device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// T10 VENDOR IDENTIFICATION, at most 8 characters.
    pub t10_vend_id: String,
    /// Vendor-specific identifier of the T10 designator in VPD page 83h.
    pub vend_specific_id: String,
    /// PRODUCT IDENTIFICATION, at most 16 characters.
    pub prod_id: String,
    /// PRODUCT REVISION LEVEL, at most 4 characters.
    pub prod_rev_lvl: String,
    /// T10 device identifier, from which the default EUI-64 and reservations' file names are made.
    pub t10_dev_id: String,
    /// Unit serial number.
    pub usn: String,
    /// SCSI name string of the target device; empty for none.
    pub scsi_device_name: String,
    /// EUI-64 based designator; empty for the default.
    pub eui64_id: Vec<u8>,
    /// NAA designator; empty for none.
    pub naa_id: Vec<u8>,
    /// Vendor-specific bytes of standard INQUIRY data: bytes 36 on (up to 20), or bytes 96 on.
    pub inq_vend_specific: Vec<u8>,
}

/// SCST's number of a device: CRC-32C (no inversions, as the Linux kernel computes it) of the name with its
/// terminating zero, below the set-up's own number.
#[doc(alias = "vdisk_gen_dev_id_num")]
#[must_use]
pub fn dev_id_num(setup_id: u32, name: &str) -> u64 {
    let crc = !crc32c_append(crc32c_append(u32::MAX, name.as_bytes()), &[0]);
    u64::from(setup_id) << 32 | u64::from(crc)
}

/// At most `max` bytes of `s`, cut at a character boundary.
fn cut(s: &str, max: usize) -> String {
    let mut end = max.min(s.len());
    while !s.is_char_boundary(end) {
        end = end.saturating_sub(1);
    }
    s.get(..end).unwrap_or_default().to_owned()
}

impl Identity {
    /// SCST's defaults for a device of this name.
    #[must_use]
    pub fn new(vendor: &str, name: &str, setup_id: u32) -> Self {
        let num = dev_id_num(setup_id, name);
        let t10_dev_id = cut(&format!("{num:x}-{name}"), MAX_T10_DEV_ID_LEN);
        Self {
            t10_vend_id: cut(vendor, MAX_VEND_ID_LEN),
            vend_specific_id: t10_dev_id.clone(),
            prod_id: cut(name, MAX_PROD_ID_LEN),
            prod_rev_lvl: REVISION.to_owned(),
            t10_dev_id,
            usn: cut(&format!("{num:x}"), MAX_USN_LEN),
            scsi_device_name: String::new(),
            eui64_id: Vec::new(),
            naa_id: Vec::new(),
            inq_vend_specific: Vec::new(),
        }
    }

    /// Applies the texts that are given.
    pub fn apply(&mut self, o: &IdentityOverrides) {
        let set = |field: &mut String, v: &Option<String>, max| {
            if let Some(v) = v {
                *field = cut(v, max);
            }
        };
        set(&mut self.t10_vend_id, &o.t10_vend_id, MAX_VEND_ID_LEN);
        set(&mut self.prod_id, &o.prod_id, MAX_PROD_ID_LEN);
        set(&mut self.prod_rev_lvl, &o.prod_rev_lvl, MAX_REV_LEN);
        set(&mut self.t10_dev_id, &o.t10_dev_id, MAX_T10_DEV_ID_LEN);
        set(&mut self.usn, &o.usn, MAX_USN_LEN);
        if let Some(id) = &o.t10_dev_id {
            self.vend_specific_id = cut(id, MAX_VEND_SPECIFIC_ID_LEN);
        }
        set(
            &mut self.vend_specific_id,
            &o.vend_specific_id,
            MAX_VEND_SPECIFIC_ID_LEN,
        );
        if let Some(id) = &o.naa_id {
            self.naa_id = id.iter().copied().take(MAX_BINARY_ID_LEN).collect();
        }
        if let Some(id) = &o.eui64_id {
            self.eui64_id = id.iter().copied().take(MAX_BINARY_ID_LEN).collect();
        }
    }

    /// The EUI-64 designator's bytes: what was given; else, if there is no NAA either, the first eight of the T10
    /// device identifier.
    #[must_use]
    pub fn eui64(&self) -> Option<Vec<u8>> {
        if !self.eui64_id.is_empty() {
            Some(self.eui64_id.clone())
        } else if self.naa_id.is_empty() {
            let id = self.t10_dev_id.bytes().chain(std::iter::repeat(0));
            Some(id.take(DEFAULT_EUI64_LEN).collect())
        } else {
            None
        }
    }
}

/// Identity given by the user instead of SCST's defaults; `None` keeps the default. Longer values are cut.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdentityOverrides {
    /// T10 VENDOR IDENTIFICATION.
    pub t10_vend_id: Option<String>,
    /// PRODUCT IDENTIFICATION.
    pub prod_id: Option<String>,
    /// PRODUCT REVISION LEVEL.
    pub prod_rev_lvl: Option<String>,
    /// T10 device identifier; also replaces the vendor-specific identifier.
    pub t10_dev_id: Option<String>,
    /// Vendor-specific identifier.
    pub vend_specific_id: Option<String>,
    /// Unit serial number.
    pub usn: Option<String>,
    /// NAA designator of 8 or 16 bytes.
    pub naa_id: Option<Vec<u8>>,
    /// EUI-64 designator of 8, 12 or 16 bytes.
    pub eui64_id: Option<Vec<u8>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Serial numbers recorded from kernel SCST.
    #[test]
    fn serial_numbers_are_those_of_kernel_scst() {
        for (name, usn) in [
            ("disk0", "ab5f2545"),
            ("disk1", "b8fdbd32"),
            ("disk2", "8c1a15ab"),
            ("disk3", "9fb88ddc"),
            ("disk4", "e5d54499"),
            ("cd5", "bb38f6aa"),
        ] {
            let id = Identity::new(FIO_VENDOR, name, 0);
            assert_eq!(id.usn, usn);
            assert_eq!(id.t10_dev_id, format!("{usn}-{name}"));
            assert_eq!(id.eui64().as_deref(), Some(usn.as_bytes()));
        }
        assert_eq!(Identity::new(FIO_VENDOR, "disk0", 0x12).usn, "12ab5f2545");
    }

    #[test]
    fn long_values_are_cut() {
        let mut id = Identity::new("VENDOR-TOO-LONG", "a-name-that-is-longer-than-sixteen", 0);
        assert_eq!(id.t10_vend_id, "VENDOR-T");
        assert_eq!(id.prod_id, "a-name-that-is-l");
        assert!(id.t10_dev_id.len() <= MAX_T10_DEV_ID_LEN);
        id.apply(&IdentityOverrides {
            usn: Some("0123456789012345678901234".to_owned()),
            prod_id: Some("\u{e4}".repeat(9)),
            t10_dev_id: Some("short".to_owned()),
            naa_id: Some(vec![0x60; 20]),
            ..IdentityOverrides::default()
        });
        assert_eq!(id.usn.len(), MAX_USN_LEN);
        assert_eq!(id.prod_id.len(), 16);
        assert_eq!(id.vend_specific_id, "short");
        assert_eq!(id.naa_id.len(), 16);
        assert_eq!(id.eui64(), None);
    }
}
