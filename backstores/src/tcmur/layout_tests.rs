//! The structures that plug-ins share with us, against three witnesses: the C compiler on our header, the numbers that
//! 1.5.4 has, and what the shipped plug-ins do.

use std::mem::{offset_of, size_of};
use std::process::Command;

use super::abi::{
    tcmu_list_node, tcmulib_cfg_info, tcmulib_cmd, tcmur_cmd, tcmur_device, tcmur_handler,
};

/// What Rust says: a C expression and its value.
fn rust_says() -> Vec<(String, usize)> {
    let mut all = Vec::new();
    macro_rules! layout {
        ($ty:ident: $($field:ident)*) => {
            all.push((format!("sizeof(struct {})", stringify!($ty)), size_of::<$ty>()));
            $(all.push((
                format!("offsetof(struct {}, {})", stringify!($ty), stringify!($field)),
                offset_of!($ty, $field),
            ));)*
        };
    }
    layout!(tcmu_list_node: next prev);
    layout!(tcmulib_cfg_info: data);
    layout!(tcmulib_cmd: cmd_id cdb iovec iov_cnt sense_buf hm_private);
    layout!(tcmur_cmd: lib_cmd iovec iov_cnt iov_base_copy cmd_state requested cmds_list_entry start_time timed_out done);
    layout!(tcmur_handler: name subtype cfg_desc opaque check_config reconfig open close nr_threads handle_cmd read
        write flush unmap writesame caw report_event lock unlock get_lock_tag get_lock_state _is_dbus_handler
        update_logdir init destroy);
    layout!(tcmur_device: dev hm_private cmdproc_thread flags failover_type recovery_entry lock_lost_cnt conn_lost_cnt
        cmd_timed_out_cnt event_work lock_lost lock_state);
    all
}

#[test]
fn rust_and_c_agree() {
    let dir = tempfile::tempdir().unwrap();
    let (source, program) = (dir.path().join("layout.c"), dir.path().join("layout"));
    let expected = rust_says();
    let checks: String = expected
        .iter()
        .map(|(what, n)| format!("_Static_assert({what} == {n}, \"{what}\");\n"))
        .collect();
    std::fs::write(
        &source,
        format!("#include \"tcmu-runner.h\"\n{checks}int main(void) {{ return 0; }}\n"),
    )
    .unwrap();
    let include = concat!(env!("CARGO_MANIFEST_DIR"), "/abi");
    let out = Command::new("cc")
        .args(["-Wall", "-Werror", "-I", include, "-o"])
        .arg(&program)
        .arg(&source)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{said}");
}

/// Seen in the disassembly of Debian's handler_rbd.so 1.5.4: loads from these offsets behind `tcmu_dev_get_private`, and
/// the size of its `tcmur_handler` in the symbol table.
#[test]
#[cfg(target_pointer_width = "64")]
fn numbers_are_those_of_1_5_4() {
    assert_eq!(size_of::<tcmur_handler>(), 200);
    assert_eq!(offset_of!(tcmur_device, lock_lost_cnt), 0x30);
    assert_eq!(offset_of!(tcmur_device, conn_lost_cnt), 0x38);
    assert_eq!(offset_of!(tcmur_device, cmd_timed_out_cnt), 0x40);
    assert_eq!(offset_of!(tcmur_device, lock_state), 0x51);
    assert_eq!(offset_of!(tcmulib_cmd, sense_buf), 0x20);
    assert_eq!(offset_of!(tcmulib_cmd, hm_private), 0x80);
    assert_eq!(offset_of!(tcmur_cmd, done), 0x58);
}

/// Every symbol that a plug-in of this machine's distribution imports from us is in the list of exports.
#[test]
fn shipped_plugins_find_what_they_import() {
    let exports: Vec<&str> = include_str!("../../abi/exports.txt").lines().collect();
    let mut sorted = exports.clone();
    sorted.sort_unstable();
    assert_eq!(exports, sorted);
    let Some(dir) = super::DIRS
        .iter()
        .find(|d| std::path::Path::new(d).is_dir())
    else {
        assert!(
            std::env::var_os("CI").is_none(),
            "tcmu-runner is not installed: run tools/setup"
        );
        eprintln!("SKIPPED: tcmu-runner is not installed (tools/setup installs it)");
        return;
    };
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "so") {
            continue;
        }
        let out = Command::new("nm")
            .args(["-D", "--undefined-only"])
            .arg(&path)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        for name in text.split_whitespace().filter(|w| w.contains("tcmu")) {
            assert!(exports.contains(&name), "{}: {name}", path.display());
        }
    }
}
