//! T10 protection information: its parameters and attributes.
//!
//! There is no engine that checks it, so a device with protection information can be made and looked at, and no target takes it: as
//! in SCST, where no iSCSI target supports it.
//!
//! C source: `vdisk_init_block_integrity`, `vdev_parse_add_dev_params` of `scst/src/dev_handlers/scst_vdisk.c`,
//! `scst_dev_dif_mode_show` and neighbours of `scst/src/scst_sysfs.c`

use super::{ParamError, VdiskKind};
use crate::sysfs::text;
use std::path::{Path, PathBuf};

/// Who checks or keeps tags: name and bit.
#[doc(alias = "scst_dif_mode")]
const MODES: [(&str, u8); 4] = [
    ("tgt", 1),
    ("scst", 2),
    ("dev_check", 4),
    (DEV_STORE, DEV_STORE_BIT),
];
const DEV_STORE: &str = "dev_store";
const DEV_CHECK_BIT: u8 = 4;
const DEV_STORE_BIT: u8 = 8;
/// Protection types that there are.
const MAX_TYPE: u64 = 3;
/// Application tags are not checked.
#[doc(alias = "SCST_DIF_NO_CHECK_APP_TAG")]
const NO_CHECK_APP_TAG: u64 = u64::MAX;
/// Below the state directory: where tags are kept that have no other file.
const TAGS_DIR: &str = "dif_tags";

/// Protection information of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dif {
    mode: u8,
    ty: u8,
    app_tag: u64,
    /// Where tags are kept.
    pub(super) filename: Option<PathBuf>,
}

impl Default for Dif {
    fn default() -> Self {
        Self {
            mode: 0,
            ty: 0,
            app_tag: NO_CHECK_APP_TAG,
            filename: None,
        }
    }
}

impl Dif {
    /// Whether the device has protection information.
    pub(super) fn is_on(&self) -> bool {
        self.mode != 0
    }

    /// Sets a parameter of `add_device`. Answers what is wrong with its value.
    pub(super) fn set(&mut self, name: &str, value: &str) -> Result<(), &'static str> {
        match name {
            "dif_mode" => {
                for word in value.split('|').map(str::trim).filter(|w| !w.is_empty()) {
                    let is = |m: &&(&str, u8)| m.0.eq_ignore_ascii_case(word);
                    let found = MODES.iter().find(is);
                    self.mode |= found.ok_or("must be of tgt, scst, dev_check, dev_store")?.1;
                }
            }
            "dif_filename" => {
                if !value.starts_with('/') {
                    return Err("must be an absolute path");
                }
                self.filename = Some(PathBuf::from(value));
            }
            "dif_type" => {
                let n = text::parse_u64(value).ok().filter(|n| *n <= MAX_TYPE);
                let n = n.and_then(|n| u8::try_from(n).ok());
                self.ty = n.ok_or("must be from 0 to 3")?;
            }
            _ => {
                let tag = text::parse_u64(value).map_err(|_| "must be a number")?;
                self.app_tag = tag;
            }
        }
        Ok(())
    }

    /// Whether the parameters go together.
    pub(super) fn validate(&self, kind: VdiskKind) -> Result<(), ParamError> {
        let conflict = |why| Err(ParamError::Conflict(why));
        if self.ty == 0 && (self.mode != 0 || self.filename.is_some()) {
            return conflict("dif_mode and dif_filename need a dif_type");
        }
        if self.ty != 0 && self.mode == 0 {
            return conflict("dif_type needs a dif_mode");
        }
        if self.mode & DEV_CHECK_BIT != 0 {
            return conflict("dif_mode dev_check needs a block device that checks");
        }
        if self.mode & DEV_STORE_BIT != 0 && kind == VdiskKind::Nullio {
            return conflict("a null device stores no tags");
        }
        if self.ty == 2 && self.app_tag != NO_CHECK_APP_TAG {
            return conflict("dif_static_app_tag is not for type 2");
        }
        Ok(())
    }

    /// The file of the tags of the device `name`, if it stores them.
    pub(super) fn tags_file(&self, name: &str, state_dir: Option<&Path>) -> Option<PathBuf> {
        let stores = self.mode & DEV_STORE_BIT != 0;
        let default = || Some(state_dir?.join(TAGS_DIR).join(format!("{name}.dif")));
        let given = self.filename.clone();
        given.or_else(|| stores.then(default).flatten())
    }

    pub(super) fn show_mode(&self) -> String {
        let on = MODES.iter().filter(|(_, bit)| self.mode & bit != 0);
        let names: Vec<&str> = on.map(|(name, _)| *name).collect();
        text::line(names.join("|"), true)
    }

    pub(super) fn show_type(&self) -> String {
        text::line(self.ty, self.ty != 0)
    }

    pub(super) fn show_app_tag(&self) -> String {
        let checked = self.app_tag != NO_CHECK_APP_TAG;
        text::line(format_args!("0x{:x}", self.app_tag), checked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Any parameters are refused, or give a device that shows them and can be made again from what it shows.
        #[test]
        fn what_is_shown_can_be_set(
            kind in proptest::sample::select(vec![VdiskKind::Fileio, VdiskKind::Blockio, VdiskKind::Nullio]),
            mode in "(tgt|scst|dev_check|dev_store|DEV_STORE| |[|]|x){0,6}",
            ty in proptest::option::of(0u64..6), tag in proptest::option::of(any::<u64>()),
        ) {
            let mut dif = Dif::default();
            let mut set = dif.set("dif_mode", &mode).is_ok();
            if let Some(ty) = ty {
                let ok = dif.set("dif_type", &ty.to_string()).is_ok();
                prop_assert_eq!(ok, ty <= 3);
                set &= ok;
            }
            if let Some(tag) = tag {
                set &= dif.set("dif_static_app_tag", &format!("{tag:#x}")).is_ok();
            }
            let valid = set && dif.validate(kind).is_ok();
            let bits = MODES.iter().filter(|m| mode.to_ascii_lowercase().split('|').any(|w| w.trim() == m.0));
            let bits: u8 = bits.map(|m| m.1).sum();
            let words = mode.split('|').map(|w| w.trim().to_ascii_lowercase()).filter(|w| !w.is_empty());
            let known = words.into_iter().all(|w| MODES.iter().any(|m| m.0 == w));
            // The same, said at once.
            let ty = ty.unwrap_or(0);
            let together = ty <= 3 && (bits == 0) == (ty == 0) && bits & 4 == 0
                && (bits & 8 == 0 || kind != VdiskKind::Nullio)
                && (ty != 2 || tag.is_none_or(|t| t == u64::MAX));
            prop_assert_eq!(valid, known && together);
            if valid {
                let first = |s: String| s.lines().next().unwrap_or_default().to_owned();
                let mut again = Dif::default();
                again.set("dif_mode", &first(dif.show_mode())).expect("as shown");
                again.set("dif_type", &first(dif.show_type())).expect("as shown");
                again.set("dif_static_app_tag", &first(dif.show_app_tag())).expect("as shown");
                prop_assert_eq!(again, dif);
            }
        }
    }

    fn dif(params: &[(&str, &str)]) -> Result<Dif, String> {
        let mut dif = Dif::default();
        for (name, value) in params {
            dif.set(name, value).map_err(str::to_owned)?;
        }
        dif.validate(VdiskKind::Fileio).map_err(|e| e.to_string())?;
        Ok(dif)
    }

    #[test]
    fn parameters_that_go_together_and_that_do_not() {
        let on = dif(&[("dif_mode", "TGT|dev_store"), ("dif_type", "1")]).expect("valid");
        assert!(on.is_on());
        assert_eq!(on.show_mode(), "tgt|dev_store\n[key]\n");
        assert_eq!(on.show_type(), "1\n[key]\n");
        assert_eq!(on.show_app_tag(), "0xffffffffffffffff\n");
        let file = on.tags_file("m0", Some(Path::new("/state")));
        assert_eq!(file, Some(PathBuf::from("/state/dif_tags/m0.dif")));
        assert!(!Dif::default().is_on());
        assert_eq!(Dif::default().tags_file("m0", None), None);
        for bad in [
            &[("dif_mode", "tgt")][..],
            &[("dif_type", "1")],
            &[("dif_type", "4"), ("dif_mode", "tgt")],
            &[("dif_type", "1"), ("dif_mode", "dev_check")],
            &[("dif_type", "1"), ("dif_mode", "frob")],
            &[("dif_filename", "relative")],
            &[("dif_filename", "/f")],
            &[
                ("dif_type", "2"),
                ("dif_mode", "tgt"),
                ("dif_static_app_tag", "7"),
            ],
        ] {
            assert!(dif(bad).is_err(), "{bad:?}");
        }
    }
}
