//! The options of `scstadmin`: one table, from which the command line is read and help, manual page and shell completions
//! are made.

/// What follows an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arg {
    /// Nothing.
    No,
    /// Perhaps a value.
    May(&'static str),
    /// A value.
    Must(&'static str),
}

/// One option.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Opt {
    pub(crate) name: &'static str,
    pub(crate) arg: Arg,
    /// What else it needs, for the help.
    pub(crate) with: &'static str,
    pub(crate) help: &'static str,
    /// Ours, not SCST's: may not be abbreviated, so that abbreviations of SCST's stay what they are.
    pub(crate) ours: bool,
}

/// Options of one kind.
pub(crate) struct Family {
    pub(crate) title: &'static str,
    pub(crate) options: &'static [Opt],
}

const fn opt(name: &'static str, arg: Arg, with: &'static str, help: &'static str) -> Opt {
    Opt {
        name,
        arg,
        with,
        help,
        ours: false,
    }
}

const fn ours(name: &'static str, arg: Arg, help: &'static str) -> Opt {
    Opt {
        name,
        arg,
        with: "",
        help,
        ours: true,
    }
}

const TGT: &str = "-driver -target";
const TGT_GRP: &str = "-driver -target -group";
const TGT_MAY_GRP: &str = "-driver -target [-group]";

/// All options.
pub(crate) const FAMILIES: &[Family] = &[
    Family {
        title: "Configuration",
        options: &[
            opt(
                "config",
                Arg::May("FILE"),
                "",
                "Make the server what FILE says (/etc/scst.conf).",
            ),
            opt(
                "check_config",
                Arg::May("FILE"),
                "",
                "Check FILE against the server; change nothing.",
            ),
            opt(
                "write_config",
                Arg::Must("FILE"),
                "",
                "Save the running configuration to FILE.",
            ),
            opt(
                "clear_config",
                Arg::No,
                "-force",
                "Remove everything that is configured.",
            ),
        ],
    },
    Family {
        title: "Query",
        options: &[
            opt(
                "list_handler",
                Arg::May("HANDLER"),
                "",
                "List device handlers, or the devices of one.",
            ),
            opt(
                "list_device",
                Arg::May("DEVICE"),
                "",
                "List devices, or the attributes of one.",
            ),
            opt(
                "list_dgrp",
                Arg::May("DGROUP"),
                "",
                "List device groups, or the content of one.",
            ),
            opt(
                "list_tgrp",
                Arg::May("TGROUP"),
                "-dev_group",
                "List target groups, or the targets of one.",
            ),
            opt(
                "list_driver",
                Arg::May("DRIVER"),
                "",
                "List target drivers, or the targets of one.",
            ),
            opt(
                "list_target",
                Arg::May("TARGET"),
                "[-driver]",
                "List targets, or the content of one.",
            ),
            opt(
                "list_group",
                Arg::May("GROUP"),
                "[-driver] [-target]",
                "List LUNs and initiators by group.",
            ),
            opt(
                "list_sessions",
                Arg::No,
                "",
                "List the sessions of all initiators.",
            ),
        ],
    },
    Family {
        title: "Listing attributes",
        options: &[
            opt("list_scst_attr", Arg::No, "", "Of SCST."),
            opt(
                "list_hnd_attr",
                Arg::Must("HANDLER"),
                "",
                "Of a device handler.",
            ),
            opt("list_dev_attr", Arg::Must("DEVICE"), "", "Of a device."),
            opt(
                "list_dgrp_attr",
                Arg::Must("DGROUP"),
                "",
                "Of a device group.",
            ),
            opt(
                "list_tgrp_attr",
                Arg::Must("TGROUP"),
                "-dev_group",
                "Of a target group.",
            ),
            opt(
                "list_ttgt_attr",
                Arg::Must("TARGET"),
                "-dev_group -tgt_group",
                "Of a target in a target group.",
            ),
            opt(
                "list_drv_attr",
                Arg::Must("DRIVER"),
                "",
                "Of a target driver.",
            ),
            opt(
                "list_tgt_attr",
                Arg::Must("TARGET"),
                "-driver",
                "Of a target.",
            ),
            opt(
                "list_grp_attr",
                Arg::Must("GROUP"),
                TGT,
                "Of an initiator group.",
            ),
            opt("list_lun_attr", Arg::Must("LUN"), TGT_MAY_GRP, "Of a LUN."),
            opt(
                "list_init_attr",
                Arg::Must("INITIATOR"),
                TGT_GRP,
                "Of an initiator.",
            ),
        ],
    },
    Family {
        title: "Setting attributes",
        options: &[
            opt("set_scst_attr", Arg::No, "-attributes", "Of SCST."),
            opt(
                "set_hnd_attr",
                Arg::Must("HANDLER"),
                "-attributes",
                "Of a device handler.",
            ),
            opt(
                "set_dev_attr",
                Arg::Must("DEVICE"),
                "-attributes",
                "Of a device.",
            ),
            opt(
                "set_dgrp_attr",
                Arg::Must("DGROUP"),
                "-attributes",
                "Of a device group.",
            ),
            opt(
                "set_tgrp_attr",
                Arg::Must("TGROUP"),
                "-dev_group -attributes",
                "Of a target group.",
            ),
            opt(
                "set_ttgt_attr",
                Arg::Must("TARGET"),
                "-dev_group -tgt_group -attributes",
                "Of a target in a target group.",
            ),
            opt(
                "set_drv_attr",
                Arg::Must("DRIVER"),
                "-attributes",
                "Of a target driver.",
            ),
            opt(
                "set_tgt_attr",
                Arg::Must("TARGET"),
                "-driver -attributes",
                "Of a target.",
            ),
            opt(
                "set_grp_attr",
                Arg::Must("GROUP"),
                "-driver -target -attributes",
                "Of an initiator group.",
            ),
            opt(
                "set_lun_attr",
                Arg::Must("LUN"),
                "-driver -target [-group] -attributes",
                "Of a LUN.",
            ),
            opt(
                "set_init_attr",
                Arg::Must("INITIATOR"),
                "-driver -target -group -attributes",
                "Of an initiator.",
            ),
            opt(
                "add_drv_attr",
                Arg::Must("DRIVER"),
                "-attributes",
                "Add values to an attribute of a driver that can have several.",
            ),
            opt(
                "add_tgt_attr",
                Arg::Must("TARGET"),
                "-driver -attributes",
                "The same of a target.",
            ),
            opt(
                "rem_drv_attr",
                Arg::Must("DRIVER"),
                "-attributes",
                "Remove values from such an attribute of a driver.",
            ),
            opt(
                "rem_tgt_attr",
                Arg::Must("TARGET"),
                "-driver -attributes",
                "The same of a target.",
            ),
        ],
    },
    Family {
        title: "Devices",
        options: &[
            opt(
                "open_dev",
                Arg::Must("DEVICE"),
                "-handler -attributes",
                "Open a device.",
            ),
            opt(
                "close_dev",
                Arg::Must("DEVICE"),
                "-handler",
                "Close a device.",
            ),
            opt(
                "resync_dev",
                Arg::Must("DEVICE"),
                "",
                "Look at the size of a device again.",
            ),
        ],
    },
    Family {
        title: "Device groups",
        options: &[
            opt("add_dgrp", Arg::Must("DGROUP"), "", "Add a device group."),
            opt(
                "rem_dgrp",
                Arg::Must("DGROUP"),
                "",
                "Remove a device group.",
            ),
            opt(
                "add_dgrp_dev",
                Arg::Must("DEVICE"),
                "-dev_group",
                "Put a device in a device group.",
            ),
            opt(
                "rem_dgrp_dev",
                Arg::Must("DEVICE"),
                "-dev_group",
                "Take a device out of it.",
            ),
            opt(
                "add_tgrp",
                Arg::Must("TGROUP"),
                "-dev_group",
                "Add a target group.",
            ),
            opt(
                "rem_tgrp",
                Arg::Must("TGROUP"),
                "-dev_group",
                "Remove a target group.",
            ),
            opt(
                "add_tgrp_tgt",
                Arg::Must("TARGET"),
                "-dev_group -tgt_group",
                "Put a target in a target group.",
            ),
            opt(
                "rem_tgrp_tgt",
                Arg::Must("TARGET"),
                "-dev_group -tgt_group",
                "Take a target out of it.",
            ),
        ],
    },
    Family {
        title: "Targets",
        options: &[
            opt(
                "add_target",
                Arg::Must("TARGET"),
                "-driver",
                "Add a target.",
            ),
            opt(
                "rem_target",
                Arg::Must("TARGET"),
                "-driver",
                "Close its sessions and remove a target.",
            ),
            opt(
                "enable_target",
                Arg::Must("TARGET"),
                "-driver",
                "Let initiators in.",
            ),
            opt(
                "disable_target",
                Arg::Must("TARGET"),
                "-driver",
                "Let no initiator in.",
            ),
            opt(
                "issue_lip",
                Arg::May("TARGET"),
                "[-driver]",
                "Accepted for scripts; there is no Fibre Channel here.",
            ),
            opt("lip", Arg::No, "", "As -issue_lip, after a change."),
            opt("no_lip", Arg::No, "", "Without it."),
        ],
    },
    Family {
        title: "Groups, initiators, LUNs",
        options: &[
            opt(
                "add_group",
                Arg::Must("GROUP"),
                TGT,
                "Add an initiator group.",
            ),
            opt(
                "rem_group",
                Arg::Must("GROUP"),
                TGT,
                "Remove an initiator group.",
            ),
            opt(
                "add_init",
                Arg::Must("INITIATOR"),
                TGT_GRP,
                "Put an initiator in a group.",
            ),
            opt(
                "rem_init",
                Arg::Must("INITIATOR"),
                TGT_GRP,
                "Take an initiator out of a group.",
            ),
            opt(
                "move_init",
                Arg::Must("INITIATOR"),
                "-driver -target -group -to",
                "Move an initiator to another group.",
            ),
            opt(
                "clear_inits",
                Arg::No,
                TGT_GRP,
                "Take all initiators out of a group.",
            ),
            opt(
                "add_lun",
                Arg::Must("LUN"),
                "-driver -target [-group] -device -attributes",
                "Put a device behind a LUN.",
            ),
            opt("rem_lun", Arg::Must("LUN"), TGT_MAY_GRP, "Remove a LUN."),
            opt(
                "replace_lun",
                Arg::Must("LUN"),
                "-driver -target [-group] -device -attributes",
                "Put another device behind a LUN.",
            ),
            opt("clear_luns", Arg::No, TGT_MAY_GRP, "Remove all LUNs."),
        ],
    },
    Family {
        title: "What the others work on",
        options: &[
            opt("handler", Arg::Must("HANDLER"), "", "A device handler."),
            opt(
                "attributes",
                Arg::Must("NAME=VALUE,..."),
                "",
                "Attributes with values; 1 for one without.",
            ),
            opt("driver", Arg::Must("DRIVER"), "", "A target driver."),
            opt("target", Arg::Must("TARGET"), "", "A target."),
            opt("group", Arg::Must("GROUP"), "", "An initiator group."),
            opt("to", Arg::Must("GROUP"), "", "The group to move to."),
            opt("device", Arg::Must("DEVICE"), "", "A device."),
            opt("dev_group", Arg::Must("DGROUP"), "", "A device group."),
            opt("tgt_group", Arg::Must("TGROUP"), "", "A target group."),
        ],
    },
    Family {
        title: "How",
        options: &[
            opt("h", Arg::No, "", "This help."),
            opt("help", Arg::No, "", "This help."),
            opt(
                "nonkey",
                Arg::No,
                "",
                "Save or list values that are the default, too.",
            ),
            opt("noprompt", Arg::No, "", "Do not ask before a change."),
            opt("cont_on_err", Arg::No, "", "Go on after an error."),
            opt(
                "force",
                Arg::No,
                "",
                "Remove what is in use or not in the configuration, too.",
            ),
            opt(
                "dumpAttrs",
                Arg::No,
                "",
                "Tell all attributes of SCST and of devices.",
            ),
            opt(
                "debug",
                Arg::No,
                "",
                "Show what would be stored; change nothing.",
            ),
            ours(
                "dry-run",
                Arg::No,
                "With -config: show the plan; change nothing.",
            ),
            ours("json", Arg::No, "Answer queries and -config in JSON."),
            ours(
                "control",
                Arg::Must("SOCKET"),
                "The control socket of the server ($SCST_CONTROL).",
            ),
            ours(
                "sysfs",
                Arg::Must("DIR"),
                "The directory at which the tree of the server is mounted.",
            ),
            ours(
                "events",
                Arg::May("EVENT,..."),
                "Tell what happens in the server, a line for each event, until it ends.",
            ),
            ours(
                "generate",
                Arg::Must("man|bash|zsh|fish"),
                "Print the manual page or a shell's completions.",
            ),
        ],
    },
];

/// Every option.
pub(crate) fn all() -> impl Iterator<Item = &'static Opt> {
    FAMILIES.iter().flat_map(|f| f.options)
}
