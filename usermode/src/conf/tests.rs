//! Files applied to a server that is made of a recorded tree.

use std::io::Write as _;

use super::fake::Fake;
use super::*;

const SCST_CONF: &str = include_str!("../../../tests/sysfs/scst.conf");

fn file(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().write_all(text.as_bytes()).unwrap();
    file
}

fn apply_text(tree: &Fake, text: &str, options: Options) -> (Result<Report, ConfError>, String) {
    let file = file(text);
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let result = apply_file_telling(tree, file.path(), &options, &mut out, &mut err);
    out.extend(err);
    (result, String::from_utf8(out).unwrap())
}

fn force() -> Options {
    Options {
        removals: Removals::Remove,
        ..Options::default()
    }
}

/// The recorded extra file, less what needs hardware.
fn extra() -> String {
    include_str!("../../../tests/sysfs/scst-extra.conf")
        .replace("HANDLER dev_disk {\n\tDEVICE 1:0:0:0\n}\n\n", "")
        .replace("\n\n\t\tLUN 0 1:0:0:0", "")
}

#[test]
fn a_file_applied_and_written_back_is_the_same_and_then_there_is_nothing_to_do() {
    for (text, state) in [(SCST_CONF.to_owned(), 'A'), (extra(), 'A'), (extra(), 'B')] {
        let tree = Fake::recorded(state);
        let (result, out) = apply_text(&tree, &text, Options::default());
        let report = result.unwrap();
        assert!(report.is_complete(), "{report:#?}\n{out}");
        assert_eq!(write_config(&tree, NonKey::Omit).unwrap(), text);
        for options in [Options::default(), force()] {
            let (again, out) = apply_text(&tree, &text, options);
            let again = again.unwrap();
            assert!(
                again.applied.is_empty() && again.remarks.is_empty(),
                "{again:#?}\n{out}"
            );
        }
    }
}

#[test]
fn force_takes_away_what_the_file_does_not_have() {
    let tree = Fake::recorded('A');
    apply_text(&tree, &extra(), Options::default()).0.unwrap();
    let (result, out) = apply_text(&tree, SCST_CONF, Options::default());
    let report = result.unwrap();
    assert!(report.applied.is_empty(), "{report:#?}");
    for remark in [
        "\t-> Group 'grp1' is not in configuration. Use -force to remove.\n",
        "\t-> Virtual target 'loc1' for driver 'scst_local' is not in configuration. Use -force to remove it.\n",
        "\t-> Driver dynamic attribute 'IncomingUser' with value 'disc 12charsecret' is not in configuration. \
         Use -force to remove it.\n",
        "\t-> Device Group 'dg1' is not in configuration. Use -force to remove.\n",
    ] {
        assert!(out.contains(remark), "{remark}\n{out}");
    }
    let (result, _) = apply_text(&tree, SCST_CONF, force());
    assert!(result.unwrap().is_complete());
    assert_eq!(write_config(&tree, NonKey::Omit).unwrap(), SCST_CONF);
}

#[test]
fn a_device_configured_differently_is_opened_again_with_its_luns() {
    let tree = Fake::recorded('B');
    let text = SCST_CONF.replace("\t\tblocksize 4096\n", "\t\tblocksize 512\n");
    let (result, out) = apply_text(&tree, &text, Options::default());
    assert!(result.unwrap().applied.is_empty());
    assert!(
        out.contains(
            "\t-> Device 'disk4' is configured differently.\n\t  -> Use -force to re-open"
        ),
        "{out}"
    );
    let (result, out) = apply_text(&tree, &text, force());
    let report = result.unwrap();
    assert!(report.is_complete(), "{report:#?}");
    assert!(
        out.contains("\t-> Closing device 'disk4' using handler 'vdisk_fileio': done.\n"),
        "{out}"
    );
    assert!(
        out.contains("\t-> Adding device 'disk4' at LUN 4 to driver/target 'iscsi/"),
        "{out}"
    );
}

#[test]
fn a_bad_file_changes_nothing_and_is_told_with_its_place() {
    let lun = "\t\tLUN 1 disk1\n";
    let cases = [
        (
            SCST_CONF.replacen(
                "\t\tfilename /data/cd.iso\n\t}\n",
                "\t\tfilename /data/cd.iso\n",
                1,
            ),
            "'}' is missing",
        ),
        (
            SCST_CONF.replacen("blocksize 4096", "blocksise 4096", 1),
            ":30:3: device 'disk4' has no attribute 'blocksise'",
        ),
        (
            SCST_CONF.replacen(lun, "\t\tLUN 0 disk1\n", 2),
            "LUN 0 is defined twice",
        ),
        (
            SCST_CONF.replacen("TARGET_DRIVER iscsi", "TARGET_DRIVER nosuch", 1),
            "is not loaded or available.",
        ),
        (
            SCST_CONF.replacen("rel_tgt_id 1", "rel_tgt_idd 1", 1),
            "has no attribute 'rel_tgt_idd'",
        ),
        (
            format!("max_task 1\n{SCST_CONF}"),
            ":1:1: SCST has no attribute 'max_task'",
        ),
        (
            SCST_CONF.replacen("TARGET copy_manager_tgt", "TARGET other", 1),
            "",
        ),
    ];
    for (text, message) in cases {
        let tree = Fake::recorded('A');
        let before = tree.dump();
        let (result, _) = apply_text(&tree, &text, Options::default());
        let e = result.unwrap_err();
        assert!(e.to_string().contains(message), "{e}\nwanted: {message}");
        assert_eq!(tree.dump(), before);
        assert!(tree.log.lock().is_empty());
    }
    let tree = Fake::recorded('A');
    let e = apply_file(&tree, Path::new("/no/such/file"), &Options::default()).unwrap_err();
    let text = "Unable to open configuration file '/no/such/file': No such file or directory";
    assert_eq!(e.to_string(), text);
}

#[test]
fn cont_on_err_applies_the_rest() {
    let tree = Fake::recorded('A');
    let text = SCST_CONF.replacen("blocksize 4096", "blocksise 4096", 1);
    let options = Options {
        cont_on_err: true,
        ..Options::default()
    };
    let (result, out) = apply_text(&tree, &text, options);
    assert!(!result.unwrap().applied.is_empty(), "{out}");
    let written = write_config(&tree, NonKey::Omit).unwrap();
    assert_eq!(written, SCST_CONF.replacen("\t\tblocksize 4096\n", "", 1));
}

#[test]
fn what_fails_midway_is_told_with_its_place_and_taken_back() {
    for (failing, what, line) in [
        ("add_device disk3", "Opening device 'disk3' using", 24),
        ("create grp1", "Adding new group 'grp1' to", 0),
        ("tg2/remote_tgt_1/rel_tgt_id: 77", "", 0),
    ] {
        let tree = Fake::recorded('A');
        let before = tree.dump();
        *tree.fails.lock() = Some((failing.to_owned(), kshim::error::code::EINVAL));
        let text = if line == 0 {
            extra()
        } else {
            SCST_CONF.to_owned()
        };
        let (result, out) = apply_text(&tree, &text, Options::default());
        let report = result.unwrap();
        if what.is_empty() {
            // An attribute that cannot be set is a warning, as with SCST's scstadmin.
            assert!(report.fatal.is_none() && report.failed.len() == 1, "{out}");
            assert!(
                report.failed[0].contains(":116:4: Setting target"),
                "{report:#?}"
            );
            continue;
        }
        assert!(
            report.fatal.is_some() && report.undone > 3,
            "{report:#?}\n{out}"
        );
        assert_eq!(tree.dump(), before);
        assert!(report.applied.is_empty() && !report.not_applied.is_empty());
        assert_eq!(report.failed.len(), 1, "{report:#?}");
        assert!(report.failed[0].contains(what), "{report:#?}");
        if line > 0 {
            assert!(
                report.failed[0].contains(&format!(":{line}:2: ")),
                "{report:#?}"
            );
        }
    }
}

#[test]
fn a_store_that_fails_is_a_warning_unless_it_is_a_targets() {
    let tree = Fake::recorded('A');
    *tree.fails.lock() = Some(("threads_num: 3".to_owned(), kshim::error::code::EINVAL));
    let text = SCST_CONF.replacen("blocksize 4096", "blocksize 4096\n\t\tthreads_num 3", 1);
    let (result, out) = apply_text(&tree, &text, Options::default());
    let report = result.unwrap();
    assert!(
        report.fatal.is_none() && report.failed.len() == 1,
        "{report:#?}"
    );
    assert!(
        out.contains("WARNING: Received the following error:\n\n\tFailed to set device attribute."),
        "{out}"
    );
    assert!(out.ends_with("(EINVAL) "), "{out}");
}

#[test]
fn a_dry_run_shows_the_plan_and_changes_nothing() {
    let tree = Fake::recorded('A');
    let before = tree.dump();
    let options = Options {
        dry_run: true,
        ..Options::default()
    };
    let (result, out) = apply_text(&tree, SCST_CONF, options);
    let report = result.unwrap();
    assert!(report.applied.is_empty() && report.not_applied.len() > 10);
    assert!(
        out.contains("\t-> Opening device 'cd5' using handler 'vcdrom'\n"),
        "{out}"
    );
    assert_eq!(tree.dump(), before);
}

#[test]
fn groups_and_initiators_move() {
    let tree = Fake::recorded('B');
    let group = |a: &str, b: &str| {
        SCST_CONF.replacen(
            "\t\tLUN 5 cd5 {\n\t\t\tread_only 1\n\t\t}\n\t}\n}\n\nTARGET_DRIVER scst_local",
            &format!(
                "\t\tLUN 5 cd5 {{\n\t\t\tread_only 1\n\t\t}}\n\n\t\tGROUP a {{\n\t\t\tLUN 0 disk0\n{a}\t\t}}\n\n\t\tGROUP b \
                 {{\n\t\t\tLUN 0 disk1\n{b}\t\t}}\n\t}}\n}}\n\nTARGET_DRIVER scst_local"
            ),
            1,
        )
    };
    let first = group("\n\t\t\tINITIATOR i1\n\n\t\t\tINITIATOR i2\n", "");
    apply_text(&tree, &first, Options::default()).0.unwrap();
    assert_eq!(write_config(&tree, NonKey::Omit).unwrap(), first);
    let second = group("\n\t\t\tINITIATOR i2\n", "\n\t\t\tINITIATOR i1\n");
    let (result, out) = apply_text(&tree, &second, Options::default());
    assert!(result.unwrap().applied.is_empty());
    assert!(
        out.contains(
            "Initiator 'i1' is moving to group 'b' from group 'a'. Use -force to move it."
        ),
        "{out}"
    );
    apply_text(&tree, &second, force()).0.unwrap();
    assert_eq!(write_config(&tree, NonKey::Omit).unwrap(), second);
}

#[test]
fn an_obsolete_file_is_converted() {
    let text = "[HANDLER vdisk]\nDEVICE d0,/data/x,WT|NV,512\nDEVICE n0,,NULLIO\n[GROUP g]\nUSER ini\n[ASSIGNMENT g]\nDEVICE \
                d0,0\n[ASSIGNMENT Default_loc]\nDEVICE n0,0\n";
    let tree = Fake::recorded('A');
    let mut out = Vec::new();
    assert!(old::is_old(text));
    assert!(!old::is_old(SCST_CONF));
    let config = old::convert(text, &tree, &mut out).unwrap();
    let d0 = &config.handlers["vdisk_fileio"].devices["d0"].attrs;
    assert_eq!(
        (
            d0.get("write_through"),
            d0.get("nv_cache"),
            d0.get("blocksize")
        ),
        (Some("1"), Some("1"), Some("512"))
    );
    assert!(config.handlers["vdisk_nullio"].devices.contains_key("n0"));
    let loc = &config.drivers["scst_local"].targets["loc"];
    assert_eq!(loc.luns[&0].device, "n0");
    assert_eq!(loc.groups["g"].luns[&0].device, "d0");
    assert!(loc.groups["g"].initiators.contains_key("ini"));
}
