//! Which options need which others, in the words of SCST's scstadmin.

use super::getopt::Parsed;

/// Options, what each of them needs, and what is said when it is not there.
type Rule = (
    &'static [&'static str],
    &'static [&'static str],
    &'static str,
);

const RULES: &[Rule] = &[
    (&["clear_config"], &["force"], "-force with -clear_config"),
    (&["list_tgrp"], &["dev_group"], "-dev_group with -list_tgrp"),
    (
        &["list_tgt_attr"],
        &["driver"],
        "-driver with -list_tgt_attr",
    ),
    (
        &["list_grp_attr"],
        &["driver", "target"],
        "-driver, -target and group with -list_grp_attr",
    ),
    (
        &["list_lun_attr"],
        &["driver", "target"],
        "-driver and -target with -list_lun_attr",
    ),
    (
        &["list_init_attr"],
        &["driver", "target", "group"],
        "-driver, -target and -group with -list_init_attr",
    ),
    (
        &["list_tgrp_attr"],
        &["dev_group"],
        "-dev_group with -list_tgrp_attr",
    ),
    (
        &["list_ttgt_attr"],
        &["dev_group", "tgt_group"],
        "-dev_group and -tgt_group with -list_ttgt_attr",
    ),
    (
        &["set_scst_attr"],
        &["attributes"],
        "-attributes with -set_scst_attr",
    ),
    (
        &["set_hnd_attr"],
        &["attributes"],
        "-attributes with -set_hnd_attr",
    ),
    (
        &["set_dev_attr"],
        &["attributes"],
        "-attributes with -set_dev_attr",
    ),
    (
        &["set_dgrp_attr"],
        &["attributes"],
        "-attributes with -set_dgrp_attr",
    ),
    (
        &["set_tgrp_attr"],
        &["dev_group", "attributes"],
        "-dev_group and -attributes with -set_tgrp_attr",
    ),
    (
        &["set_ttgt_attr"],
        &["dev_group", "tgt_group", "attributes"],
        "-dev_group -tgt_group and -attributes with -set_ttgt_attr",
    ),
    (
        &["set_drv_attr"],
        &["attributes"],
        "-attributes with -set_drv_attr",
    ),
    (
        &["set_tgt_attr"],
        &["driver", "attributes"],
        "-driver and -attributes with -set_tgt_attr",
    ),
    (
        &["set_grp_attr"],
        &["driver", "target", "attributes"],
        "-driver -target and -attributes with -set_grp_attr",
    ),
    (
        &["set_lun_attr"],
        &["driver", "target", "attributes"],
        "-driver -target -group and -attributes with -set_lun_attr",
    ),
    (
        &["set_init_attr"],
        &["driver", "target", "group", "attributes"],
        "-driver -target -group and -attributes with -set_init_attr",
    ),
    (
        &["add_drv_attr"],
        &["attributes"],
        "-attributes with -add_drv_attr",
    ),
    (
        &["add_tgt_attr"],
        &["driver", "attributes"],
        "-driver and -attributes with -add_tgt_attr",
    ),
    (
        &["rem_drv_attr"],
        &["attributes"],
        "-attributes with -rem_drv_attr",
    ),
    (
        &["rem_tgt_attr"],
        &["driver", "attributes"],
        "-driver and -attributes with -rem_tgt_attr",
    ),
    (
        &["open_dev", "close_dev"],
        &["handler"],
        "-handler with -open_dev/-close_dev",
    ),
    (&["add_target"], &["driver"], "-driver with -add_target"),
    (&["rem_target"], &["driver"], "-driver with -rem_target"),
    (
        &["add_group", "rem_group"],
        &["driver", "target"],
        "-driver and -target with -add_group/-rem_group",
    ),
    (
        &["add_init", "rem_init", "clear_inits"],
        &["target", "driver", "group"],
        "-driver -target and -group with -add_init/-rem_init/-clear_inits",
    ),
    (
        &["move_init"],
        &["driver", "target", "group", "to"],
        "-driver -target -group and -to with -move_init",
    ),
    (
        &["add_lun", "replace_lun"],
        &["driver", "target", "device"],
        "-driver -target and -device with -add_lun/-replace_lun",
    ),
    (
        &["clear_luns", "rem_lun"],
        &["driver", "target"],
        "-driver and -target with -rem_lun/-clear_luns",
    ),
    (
        &["add_dgrp_dev", "rem_dgrp_dev"],
        &["dev_group"],
        "-dev_group with -add_dgrp_dev/-rem_dgrp_dev",
    ),
    (
        &["add_tgrp", "rem_tgrp"],
        &["dev_group"],
        "-dev_group with -add_tgrp/-rem_tgrp",
    ),
    (
        &["add_tgrp_tgt", "rem_tgrp_tgt"],
        &["dev_group", "tgt_group"],
        "-dev_group and -tgt_group with -add_tgrp_tgt/-rem_tgrp_tgt",
    ),
    (
        &["enable_target", "disable_target"],
        &["driver"],
        "-driver with -enable_target/-disable_target",
    ),
];

/// Operations of which one command line may have one. (Queries may be many, but count as one.)
const OPERATIONS: &[&str] = &[
    "clear_config",
    "write_config",
    "check_config",
    "open_dev",
    "close_dev",
    "add_dgrp",
    "rem_dgrp",
    "add_tgrp",
    "rem_tgrp",
    "add_tgrp_tgt",
    "rem_tgrp_tgt",
    "add_group",
    "rem_group",
    "add_dgrp_dev",
    "rem_dgrp_dev",
    "add_init",
    "rem_init",
    "clear_inits",
    "add_drv_attr",
    "add_tgt_attr",
    "rem_drv_attr",
    "rem_tgt_attr",
    "add_target",
    "rem_target",
    "add_lun",
    "rem_lun",
    "replace_lun",
    "clear_luns",
    "enable_target",
    "disable_target",
    "issue_lip",
];

/// What is wrong with a combination of options.
pub(crate) fn check(parsed: &Parsed) -> Result<(), String> {
    let names = || {
        super::options::all()
            .map(|o| o.name)
            .filter(|n| parsed.has(n))
    };
    let queries = usize::from(names().any(|n| n.starts_with("list_")));
    let sets = names().filter(|n| n.starts_with("set_")).count();
    let operations = names().filter(|n| OPERATIONS.contains(n)).count();
    if queries + sets + operations > 1 {
        return Err("Please specify only one non-query operation at a time.".to_owned());
    }
    for (options, needs, text) in RULES {
        let given = options.iter().any(|o| parsed.has(o));
        if given && !needs.iter().all(|n| parsed.has(n)) {
            return Err(format!("Please specify {text}."));
        }
    }
    Ok(())
}
