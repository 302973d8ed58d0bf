//! Inputs to begin with: what initiators send when nothing is wrong.

/// A PDU: the header's first bytes, words by offset, data.
fn pdu(opcode: u8, flags: u8, words: &[(usize, u32)], cdb: &[u8], data: &[u8]) -> Vec<u8> {
    let mut out = vec![0u8; 48];
    (out[0], out[1]) = (opcode, flags);
    let len = u32::try_from(data.len()).unwrap_or(0).to_be_bytes();
    out[5..8].copy_from_slice(&len[1..]);
    for (at, word) in words {
        out[*at..at + 4].copy_from_slice(&word.to_be_bytes());
    }
    if !cdb.is_empty() {
        out[32..32 + cdb.len()].copy_from_slice(cdb);
    }
    out.extend_from_slice(data);
    out.resize(48 + data.len().next_multiple_of(4), 0);
    out
}

/// A SCSI command; `flags`: F 80h, R 40h, W 20h.
fn command(tag: u32, flags: u8, len: u32, cdb: &[u8], data: &[u8]) -> Vec<u8> {
    pdu(1, flags | 1, &[(16, tag), (20, len)], cdb, data)
}

fn data_out(tag: u32, ttt: u32, offset: u32, data: &[u8], last: bool) -> Vec<u8> {
    let flags = if last { 0x80 } else { 0 };
    pdu(5, flags, &[(16, tag), (20, ttt), (40, offset)], &[], data)
}

fn tmf(tag: u32, function: u8, of: u32) -> Vec<u8> {
    pdu(0x42, 0x80 | function, &[(16, tag), (20, of)], &[], &[])
}

const NONE: u32 = u32::MAX;

/// Configuration files.
const CONFS: [&str; 6] = [
    include_str!("../../examples/alua.conf"),
    include_str!("../../examples/chap-groups.conf"),
    include_str!("../../examples/file.conf"),
    include_str!("../../examples/portals.conf"),
    include_str!("../../tests/sysfs/scst.conf"),
    include_str!("../../tests/sysfs/scst-extra.conf"),
];

/// Requests of the full feature phase, one after the other.
fn conversations() -> Vec<Vec<u8>> {
    let tur = command(1, 0x80, 0, &[0; 6], &[]);
    let again = command(2, 0x80, 0, &[0; 6], &[]);
    let inquiry = command(3, 0xc0, 255, &[0x12, 1, 0x83, 0, 255, 0], &[]);
    let read = command(4, 0xc0, 8192, &[0x28, 0, 0, 0, 0, 0, 0, 0, 16, 0], &[]);
    let write_cdb = [0x2a, 0, 0, 0, 0, 0, 0, 0, 4, 0];
    let write = command(5, 0xa0, 2048, &write_cdb, &[7; 2048]);
    let unsolicited = [
        command(6, 0x20, 2048, &write_cdb, &[1; 512]),
        data_out(6, NONE, 512, &[2; 1024], false),
        data_out(6, NONE, 1536, &[3; 512], true),
    ]
    .concat();
    let solicited = command(7, 0xa0, 65536, &[0x2a, 0, 0, 0, 0, 0, 0, 0, 128, 0], &[]);
    let text = pdu(4, 0x80, &[(16, 8), (20, NONE)], &[], b"SendTargets=\0");
    let nop = pdu(0x40, 0x80, &[(16, 9), (20, NONE)], &[], b"ping");
    let logout = pdu(6, 0x80, &[(16, 10)], &[], &[]);
    let pr_out = command(11, 0xa0, 24, &[0x5f, 0, 0, 0, 0, 0, 0, 0, 24], &[9; 24]);
    let select = command(12, 0xa0, 24, &[0x15, 0x10, 0, 0, 24, 0], &[0; 24]);
    let caw = command(
        13,
        0xa0,
        1024,
        &[0x89, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0],
        &[0; 1024],
    );
    let unmap = command(14, 0xa0, 24, &[0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0], &[0; 24]);
    let mut extended = command(15, 0xc0, 512, &[0x7f, 0, 0, 0, 0, 0, 0, 24, 0, 9], &[]);
    extended[4] = 5;
    extended.extend([0, 17, 1, 0]);
    extended.extend([0; 16]);
    let luns = command(16, 0xc0, 64, &[0xa0, 0, 2, 0, 0, 0, 0, 0, 0, 64], &[]);
    let tmfs = (1..13)
        .map(|f| tmf(100 + u32::from(f), f, NONE))
        .collect::<Vec<_>>();
    let ready = [tur, again].concat();
    vec![
        ready.clone(),
        [ready.clone(), inquiry, luns, read.clone()].concat(),
        [
            ready.clone(),
            write.clone(),
            unsolicited.clone(),
            read.clone(),
        ]
        .concat(),
        [
            ready.clone(),
            solicited.clone(),
            data_out(7, 0, 0, &[5; 4096], true),
        ]
        .concat(),
        [
            solicited.clone(),
            tmf(20, 1, 7),
            tmf(21, 9, 7),
            tmf(22, 10, NONE),
        ]
        .concat(),
        [solicited, tmfs.concat()].concat(),
        [text, nop, logout].concat(),
        [ready.clone(), pr_out, select, caw, unmap].concat(),
        [ready, extended, write, read].concat(),
        unsolicited,
    ]
}

/// Login PDUs with these texts, each in the stage and with the flags given.
fn logins(texts: &[(u8, &str)]) -> Vec<u8> {
    let one = |(flags, text): &(u8, &str)| {
        let mut out = pdu(0x43, *flags, &[(24, 1)], &[], text.as_bytes());
        out[8] = 0x80;
        out
    };
    texts.iter().flat_map(one).collect()
}

const WHO: &str = "InitiatorName=iqn.i:i\0TargetName=iqn.t:t\0";

fn login_seeds() -> Vec<Vec<u8>> {
    let with = |text: &str| format!("{WHO}{text}");
    let keys = with(
        "InitialR2T=No\0ImmediateData=Yes\0MaxBurstLength=262144\0FirstBurstLength=65536\0HeaderDigest=CRC32C,None\0\
         DataDigest=None\0MaxRecvDataSegmentLength=65536\0MaxOutstandingR2T=8\0ErrorRecoveryLevel=2\0TaskReporting=RFC3720\0",
    );
    let chap = with("AuthMethod=CHAP,None\0");
    let answer = "CHAP_N=u\0CHAP_R=0x01020304\0CHAP_I=7\0CHAP_C=0b0123456789abcdef\0";
    let discovery = "InitiatorName=iqn.i:i\0SessionType=Discovery\0";
    let ask = pdu(4, 0x80, &[(16, 8), (20, NONE)], &[], b"SendTargets=All\0");
    let more = pdu(4, 0x80, &[(16, 8), (20, 1)], &[], &[]);
    let nop = pdu(0x40, 0x80, &[(16, 9), (20, NONE)], &[], b"ping");
    let logout = pdu(6, 0x80, &[(16, 10)], &[], &[]);
    let plain = [[0].as_slice(), &logins(&[(0x87, &keys)])].concat();
    let stages = [
        [0].as_slice(),
        &logins(&[
            (0x81, &with("AuthMethod=None\0")),
            (0x87, "MaxBurstLength=4096\0"),
        ]),
    ]
    .concat();
    let authenticated = [
        [1].as_slice(),
        &logins(&[
            (0x00, &chap),
            (0x00, "CHAP_A=5,7\0"),
            (0x81, answer),
            (0x87, ""),
        ]),
    ]
    .concat();
    let split = [
        [0].as_slice(),
        &logins(&[(0x44, &keys[..100]), (0x87, &keys[100..])]),
    ]
    .concat();
    let list = [
        [0].as_slice(),
        &logins(&[(0x87, discovery)]),
        &ask,
        &more,
        &nop,
        &logout,
    ]
    .concat();
    vec![
        plain.clone(),
        stages,
        authenticated,
        split,
        list,
        [&[2], &plain[1..]].concat(),
    ]
}

/// The seeds of an entry.
pub fn seeds(entry: &str) -> Vec<Vec<u8>> {
    match entry {
        "pdus" => {
            let modes = conversations().into_iter().zip((0u8..4).cycle());
            modes
                .map(|(body, mode)| [&[mode], &body[..]].concat())
                .collect()
        }
        "conf" => CONFS.iter().map(|text| text.as_bytes().to_vec()).collect(),
        "login" => login_seeds(),
        "text" => login_seeds()
            .into_iter()
            .map(|s| s[49..].to_vec())
            .collect(),
        _ => {
            let modes = [0x04, 0x07, 0x0c, 0x44, 0x47, 0x5c, 0x84, 0x00]
                .into_iter()
                .cycle();
            let mut all: Vec<Vec<u8>> = (conversations().iter().zip(modes))
                .map(|(body, mode)| [&[mode, 0], &body[..]].concat())
                .collect();
            all.extend(login_seeds().iter().map(|s| [&[0x20, 1], &s[1..]].concat()));
            all
        }
    }
}
