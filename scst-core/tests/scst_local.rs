//! The local target driver: its part of the management tree, and commands of initiators in this process.

use kshim::error::code;
use kshim::kobject::tree::{Tree, TreeOps};
use kshim::kthread;
use scst_core::core::{Core, CoreParams, LunParams};
use scst_core::dev_handlers::vdisk::{Vdisk, VdiskKind, VdiskParams};
use scst_core::scst_local::LocalDriver;
use scst_core::sense;
use scst_core::sysfs::ScstTree;
use std::sync::Arc;

const TUR: [u8; 6] = [0; 6];
const READ_10: [u8; 10] = [0x28, 0, 0, 0, 0, 0, 0, 0, 8, 0];
const WRITE_10: [u8; 10] = [0x2A, 0, 0, 0, 0, 0, 0, 0, 8, 0];

struct Rig {
    core: Arc<Core>,
    tree: Arc<ScstTree>,
    driver: Arc<LocalDriver>,
}

impl Rig {
    fn new() -> Self {
        let core = Core::new(CoreParams::default()).expect("core");
        let tree = ScstTree::publish(&core).expect("tree");
        let driver = LocalDriver::new(&core);
        driver.publish(&tree).expect("published");
        let disk = Vdisk::new("null", &VdiskParams::new(VdiskKind::Nullio)).expect("disk");
        core.register_virtual_device("null", disk).expect("device");
        Self { core, tree, driver }
    }

    fn write(&self, path: &str, value: &str) -> i32 {
        let done = Tree::new(self.tree.root()).write(path, value.as_bytes());
        done.map_or_else(|e| e.errno(), |()| 0)
    }

    fn read(&self, path: &str) -> String {
        let data = Tree::new(self.tree.root()).read(path).expect("readable");
        String::from_utf8(data).expect("text")
    }

    fn stop(self) {
        self.driver.stop();
        self.core.unregister_virtual_device("null").expect("idle");
        self.tree.unpublish();
        self.core.shutdown();
    }
}

#[test]
fn the_tree_manages_targets_and_sessions() {
    let rig = Rig::new();
    let mgmt = "targets/scst_local/mgmt";
    for (value, errno) in [
        ("add_target", 22),
        ("add_target t1", 0),
        ("add_target t1", 17),
        ("add_target t2 session_name=i1; session_name=i2", 0),
        ("add_target t3 frob=1", 22),
        ("del_target t3", 2),
        ("add_session t1 i1", 0),
        ("add_session t1 i1", 17),
        ("add_session t1", 22),
        ("add_session absent i1", 22),
        ("del_session t1 absent", 22),
        ("del_session t2 i1", 0),
        ("frob t1 i1", 22),
    ] {
        assert_eq!(rig.write(mgmt, value), errno, "{value}");
    }
    let t1 = "targets/scst_local/t1";
    let names = |path: &str| {
        let all = Tree::new(rig.tree.root()).list(path).expect("directory");
        all.into_iter().map(|e| e.name).collect::<Vec<_>>()
    };
    assert_eq!(names("targets/scst_local/t2/sessions"), ["i2"]);
    assert!(!names(t1).contains(&"enabled".to_owned()));
    assert_eq!(rig.read(&format!("{t1}/rel_tgt_id")), "0\n");
    let version = format!("{t1}/scsi_transport_version");
    assert_eq!(rig.read(&version), "0xbe0\n");
    assert_eq!(rig.write(&version, "0x960"), 0);
    assert_eq!(rig.read(&version), "0x960\n[key]\n");
    assert_eq!(rig.write(&format!("{t1}/luns/mgmt"), "add null 0"), 0);
    let sess = rig.driver.session("t1", "i1").expect("there");
    while !sess.exec(0, &TUR, &[], 0).expect("an answer").is_good() {}
    let inquiry = sess
        .exec(0, &[0x12, 0, 0, 0, 96, 0], &[], 96)
        .expect("data");
    let told = inquiry.data.get(60..62);
    assert_eq!(told, Some(&[0x09, 0x60][..]), "iSCSI's descriptor");
    // A session that management closes goes, and may come again.
    assert_eq!(rig.write(&format!("{t1}/sessions/i1/force_close"), "1"), 0);
    while !names(&format!("{t1}/sessions")).is_empty() {
        kshim::time::delay::msleep(1);
    }
    assert_eq!(sess.exec(0, &TUR, &[], 0), Err(code::ENODEV));
    assert_eq!(rig.write(mgmt, "add_session t1 i1"), 0);
    assert_eq!(rig.write(mgmt, "del_target t1"), 0);
    rig.stop();
}

#[test]
fn commands_are_executed_and_aborted_at_the_end() {
    let rig = Rig::new();
    let tgt = rig.driver.add_target("t").expect("new");
    let dev = rig.core.device("null").expect("there");
    let acg = tgt.default_acg_id();
    let params = LunParams::default();
    rig.core
        .add_lun(&tgt, acg, &dev, 3, params)
        .expect("a free LUN");
    let sess = rig.driver.add_session("t", "i").expect("new");
    let first = sess.exec(3, &TUR, &[], 0).expect("an answer");
    assert_eq!(sense::parse(&first.sense), Some(sense::RESET_UA));
    let written = sess.exec(3, &WRITE_10, &[7; 4096], 0).expect("an answer");
    assert!(written.is_good(), "{written:?}");
    let read = sess.exec(3, &READ_10, &[], 4096).expect("an answer");
    assert_eq!((read.data.len(), read.resid), (4096, 0));
    let gone = sess.exec(4, &TUR, &[], 0).expect("an answer");
    let sense = sense::parse(&gone.sense);
    assert_eq!(sense, Some(sense::LUN_NOT_SUPPORTED));
    // Many at a time take turns.
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let sess = Arc::clone(&sess);
            kthread::run("initiator", move |_| {
                for _ in 0..100 {
                    let read = sess.exec(3, &READ_10, &[], 4096).expect("an answer");
                    assert!(read.is_good());
                }
            })
        })
        .collect();
    for t in threads {
        t.expect("a thread").stop();
    }
    rig.driver.remove_session("t", "i").expect("there");
    assert_eq!(sess.exec(3, &TUR, &[], 0), Err(code::ENODEV));
    rig.stop();
}
