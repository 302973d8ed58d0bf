//! Attributes that objects have once they exist: so that an unknown one in a file is found before anything is changed.

use iscsi_scst::param::{SESSION_KEYS, TARGET_KEYS};

/// Of devices, beyond those that can be given when one is opened.
const DEVICE: &[&str] = &[
    "active",
    "async",
    "bind_alua_state",
    "block",
    "blocksize",
    "cluster_mode",
    "cpu_mask",
    "dif_filename",
    "dif_mode",
    "dif_static_app_tag",
    "dif_type",
    "dummy",
    "dump_prs",
    "eui64_id",
    "expl_alua",
    "filename",
    "gen_tp_soft_threshold_reached_UA",
    "inq_vend_specific",
    "lb_per_pb_exp",
    "max_tgt_dev_commands",
    "naa_id",
    "numa_node_id",
    "nv_cache",
    "o_direct",
    "opt_trans_len",
    "pr_file_name",
    "pr_state",
    "prod_id",
    "prod_rev_lvl",
    "read_only",
    "read_zero",
    "removable",
    "resync_size",
    "rotational",
    "scsi_device_name",
    "size",
    "size_mb",
    "sync",
    "t10_dev_id",
    "t10_vend_id",
    "thin_provisioned",
    "threads_num",
    "threads_pool_type",
    "tst",
    "type",
    "usn",
    "vend_specific_id",
    "write_through",
    "zero_copy",
];

/// Of targets of every driver.
const TARGET: &[&str] = &[
    "HW_TARGET",
    "addr_method",
    "aen_disabled",
    "black_hole",
    "comment",
    "cpu_mask",
    "dif_capabilities",
    "dif_checks_failed",
    "enabled",
    "forward_dst",
    "forward_src",
    "forwarding",
    "hw_target",
    "io_grouping_type",
    "per_sess_dedicated_tgt_threads",
    "rel_tgt_id",
    "sg_tablesize",
];

/// Of iSCSI targets, beyond their keys and parameters.
const ISCSI_TARGET: &[&str] = &["alias", "per_portal_acl", "redirect", "tid"];

/// Of initiator groups.
const GROUP: &[&str] = &[
    "addr_method",
    "black_hole",
    "cpu_mask",
    "io_grouping_type",
    "per_sess_dedicated_tgt_threads",
];

/// What kind of thing an attribute is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind<'a> {
    /// A device.
    Device,
    /// A target of the driver.
    Target(&'a str),
    /// An initiator group.
    Group,
    /// A target group.
    TargetGroup,
    /// A target in a target group.
    TargetGroupTarget,
}

/// True for a key or parameter of iSCSI targets that is an attribute.
fn is_iscsi_key(name: &str) -> bool {
    let shown = SESSION_KEYS.iter().filter(|key| key.show_in_sysfs);
    let mut all = shown
        .map(|key| key.name)
        .chain(TARGET_KEYS.iter().map(|key| key.name));
    all.any(|key| key == name)
}

/// True when a thing of this kind has, or may have, the attribute.
pub(crate) fn is_known(kind: Kind<'_>, name: &str) -> bool {
    match kind {
        Kind::Device => DEVICE.contains(&name),
        Kind::Target("iscsi") => {
            TARGET.contains(&name) || ISCSI_TARGET.contains(&name) || is_iscsi_key(name)
        }
        Kind::Target("scst_local" | "copy_manager") => {
            TARGET.contains(&name)
                || matches!(name, "phys_transport_version" | "scsi_transport_version")
        }
        // Of drivers that are not ours nothing is known.
        Kind::Target(_) => true,
        Kind::Group => GROUP.contains(&name),
        Kind::TargetGroup => matches!(name, "group_id" | "preferred" | "state"),
        Kind::TargetGroupTarget => name == "rel_tgt_id",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TREE: &str = include_str!("../../../tests/sysfs/tree.txt");

    /// The recorded attributes right below any `.../X/` of this shape.
    fn recorded(start: &str, depth: usize) -> Vec<&'static str> {
        let lines = TREE.lines().filter_map(|l| l.split_once('\t'));
        lines
            .filter(|(_, rest)| rest.starts_with("file"))
            .filter_map(|(path, _)| {
                path.strip_prefix("/sys/kernel/scst_tgt/")?
                    .strip_prefix(start)
            })
            .filter(|p| p.split('/').count() == depth)
            .filter_map(|p| p.rsplit('/').next())
            .filter(|n| *n != "mgmt" && !n.contains("_count"))
            .collect()
    }

    #[test]
    fn all_recorded_attributes_are_known() {
        for name in recorded("devices/", 2) {
            assert!(is_known(Kind::Device, name), "{name}");
        }
        for driver in ["iscsi", "scst_local", "copy_manager"] {
            for name in recorded(&format!("targets/{driver}/"), 2) {
                let dynamic = matches!(name, "allowed_portal" | "IncomingUser" | "OutgoingUser");
                assert!(
                    dynamic || is_known(Kind::Target(driver), name),
                    "{driver} {name}"
                );
            }
        }
        for name in recorded("targets/iscsi/iqn.2026-01.org.example:scst/ini_groups/", 2) {
            assert!(is_known(Kind::Group, name), "{name}");
        }
    }
}
