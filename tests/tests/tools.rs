//! libiscsi's tools see the target, its LUNs and their size.

use std::path::Path;
use std::time::Duration;

use scst_tests::tools::{require, run};
use scst_tests::{Server, ServerOptions};

const LIMIT: Duration = Duration::from_secs(20);

fn output(tool: &Path, args: &[&str]) -> String {
    let out = run(tool, args, LIMIT);
    println!("{} {args:?}\n{}{}", tool.display(), out.stdout, out.stderr);
    out.success()
}

#[test]
fn iscsi_ls_lists_the_target_and_its_luns() {
    let Some([ls]) = require(["iscsi-ls"]) else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.img");
    std::fs::File::create(&path)
        .unwrap()
        .set_len(64 << 20)
        .unwrap();
    let server = Server::start(&ServerOptions::lun("16M").and(path.to_str().unwrap()));
    let text = output(&ls, &["-s", &format!("iscsi://{}", server.addr)]);
    let target = format!("Target:{} Portal:{},1", server.iqn, server.addr);
    assert!(text.contains(&target), "{text} lacks {target}");
    // The tool rounds the last LBA, not the size.
    let disks: Vec<&str> = text
        .lines()
        .filter(|l| l.contains("Type:DIRECT_ACCESS"))
        .collect();
    if !Server::is_external() {
        assert_eq!(disks.len(), 2, "{text}");
        assert!(
            disks[0].starts_with("Lun:0 ") && disks[0].contains("Size:15M"),
            "{text}"
        );
        assert!(
            disks[1].starts_with("Lun:1 ") && disks[1].contains("Size:63M"),
            "{text}"
        );
    }
}

#[test]
fn iscsi_inq_shows_identity_and_pages() {
    let Some([inq]) = require(["iscsi-inq"]) else {
        return;
    };
    let server = Server::start(&ServerOptions::lun("16M"));
    let url = server.url(0);
    let text = output(&inq, &[&url]);
    for line in [
        "Peripheral Qualifier:CONNECTED",
        "Peripheral Device Type:DIRECT_ACCESS",
        "CmdQue:1",
    ] {
        assert!(text.contains(line), "{text} lacks {line}");
    }
    let pages = output(&inq, &["-e", "1", "-c", "0", &url]);
    for page in ["0x00", "0x80", "0x83", "0xb0", "0xb1", "0xb2"] {
        assert!(
            pages.contains(&format!("Page:{page}")),
            "{pages} lacks {page}"
        );
    }
    if !Server::is_external() {
        assert!(text.contains("Vendor:SCST_"), "{text}");
        assert!(pages.contains("Page:0x86"), "{pages}");
    }
}

#[test]
fn iscsi_readcapacity16_gives_the_size() {
    let Some([capacity]) = require(["iscsi-readcapacity16"]) else {
        return;
    };
    let server = Server::start(&ServerOptions::lun("100M"));
    let text = output(&capacity, &[&server.url(0)]);
    for line in [
        "RETURNED LOGICAL BLOCK ADDRESS:204799",
        "LOGICAL BLOCK LENGTH IN BYTES:512",
        "Total size:104857600",
        "LBPME:1",
    ] {
        assert!(text.contains(line), "{text} lacks {line}");
    }
    assert_eq!(
        output(&capacity, &["-s", &server.url(0)]).trim(),
        "104857600"
    );
}

#[test]
fn a_wrong_target_name_is_refused_by_name() {
    let Some([inq]) = require(["iscsi-inq"]) else {
        return;
    };
    let server = Server::start(&ServerOptions::lun("16M"));
    let url = format!(
        "iscsi://{}/iqn.2026-01.org.example:no-such-target/0",
        server.addr
    );
    let out = run(&inq, &[&url], LIMIT);
    assert_ne!(out.code, Some(0));
    assert!(
        out.stderr.contains("Target not found") || out.stdout.contains("Target not found"),
        "{out:?}"
    );
}
