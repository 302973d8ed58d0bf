use super::*;
use crate::cdb::CdbFlags;
use crate::sense;

fn tid(name: &str, isid: u8) -> TransportId {
    let text = format!("{name},i,0x{isid:x}\0");
    let mut b = vec![0x45, 0, 0, text.len() as u8];
    b.extend_from_slice(text.as_bytes());
    TransportId::parse(&b).unwrap()
}

const A: NexusId = NexusId(1);
const B: NexusId = NexusId(2);
const C: NexusId = NexusId(3);

/// Three nexuses at target port 1.
fn three() -> PrState {
    let mut s = PrState::default();
    for (n, name) in [(A, "iqn.a"), (B, "iqn.b"), (C, "iqn.c")] {
        s.attach(n, tid(name, 1), 1);
    }
    s
}

fn params(key: u64, action_key: u64, flags: u8) -> Vec<u8> {
    let mut p = key.to_be_bytes().to_vec();
    p.extend_from_slice(&action_key.to_be_bytes());
    p.extend_from_slice(&[0, 0, 0, 0, flags, 0, 0, 0]);
    p
}

fn run(
    s: &mut PrState,
    nexus: NexusId,
    action: u8,
    scope_type: u8,
    params: &[u8],
) -> Result<Vec<Effect>, Refusal> {
    s.out(&PrOut {
        nexus,
        action,
        scope_type,
        params,
        ports: &[1, 2],
        can_persist: true,
    })
}

fn register(s: &mut PrState, nexus: NexusId, key: u64) {
    let p = params(0, key, 0);
    assert_eq!(run(s, nexus, 0, 0, &p), Ok(vec![]));
}

#[test]
fn who_passes_which_reservation() {
    let we = CdbFlags::WRITE_EXCL_ALLOWED;
    let ea = CdbFlags::EXCL_ACCESS_ALLOWED;
    let none = CdbFlags::empty();
    // Of the holder, another registrant, and a nexus that is not registered.
    let rows = [
        (1, [none, we, we]),
        (3, [none, ea, ea]),
        (5, [none, none, we]),
        (6, [none, none, ea]),
        (7, [none, none, we]),
        (8, [none, none, ea]),
    ];
    for (ty, needed) in rows {
        let mut s = three();
        register(&mut s, A, 1);
        register(&mut s, B, 2);
        run(&mut s, A, 1, ty, &params(1, 0, 0)).unwrap();
        assert_eq!([A, B, C].map(|n| s.required_flags(n)), needed, "type {ty}");
        let crh = needed.map(|n| n.is_empty());
        assert_eq!([A, B, C].map(|n| s.is_crh_case(n)), crh, "type {ty}");
    }
}

#[test]
fn registrations_find_their_nexus_again() {
    let mut s = three();
    register(&mut s, A, 1);
    run(&mut s, A, 1, 1, &params(1, 0, 0)).unwrap();
    s.detach(A);
    assert_eq!(s.registrants()[0].nexus, None);
    let again = NexusId(9);
    s.attach(NexusId(8), tid("iqn.a", 2), 1);
    s.attach(NexusId(7), tid("iqn.a", 1), 2);
    s.attach(again, tid("IQN.A", 1), 1);
    assert_eq!(s.registrants()[0].nexus, Some(again));
    assert!(s.required_flags(again).is_empty());
    assert!(!s.required_flags(NexusId(8)).is_empty());
    // Two LUNs of a session lead to the device: the second takes over.
    let second = NexusId(10);
    s.attach(second, tid("iqn.a", 1), 1);
    s.detach(again);
    assert_eq!(s.registrants()[0].nexus, Some(second));
}

#[test]
fn spec_i_pt_registers_ports_and_devices() {
    let mut s = three();
    let mut p = params(0, 7, 0x08);
    let wildcard = [&[5, 0, 0, 8][..], b"iqn.b\0\0\0"].concat();
    let list = [tid("iqn.x", 4).as_bytes(), &wildcard].concat();
    p.extend_from_slice(&(list.len() as u32).to_be_bytes());
    p.extend_from_slice(&list);
    assert_eq!(run(&mut s, A, 0, 0, &p), Ok(vec![]));
    let names: Vec<_> = s.registrants().iter().map(|r| (r.nexus, r.key)).collect();
    assert_eq!(names, [(None, 7), (Some(B), 7), (Some(A), 7)]);
    // Cut off anywhere it is refused, and nothing has changed.
    for n in 0..p.len() {
        let mut s = three();
        assert!(run(&mut s, A, 0, 0, &p[..n]).is_err(), "{n}");
        assert!(s.registrants().is_empty());
    }
    let bad = |p: &[u8]| run(&mut three(), A, 0, 0, p).unwrap_err();
    let mut short = p.clone();
    short[27] -= 1;
    let byte24 = Refusal::Parm {
        byte: 24,
        bit: None,
    };
    assert_eq!(bad(&short), byte24);
    // Only a new registration may do it.
    let again = params(7, 8, 0x08);
    let bit = Refusal::Parm {
        byte: 20,
        bit: Some(3),
    };
    assert_eq!(run(&mut s, A, 0, 0, &again), Err(bit));
}

#[test]
fn all_tg_pt_registers_and_unregisters_everywhere() {
    let mut s = three();
    assert_eq!(run(&mut s, A, 6, 0, &params(0, 5, 0x04)), Ok(vec![]));
    let ports: Vec<_> = s.registrants().iter().map(|r| r.rel_tgt_id).collect();
    assert_eq!(ports, [1, 2]);
    assert_eq!(run(&mut s, A, 0, 0, &params(5, 0, 0x04)), Ok(vec![]));
    assert!(s.registrants().is_empty());
}

#[test]
fn without_a_file_aptpl_is_refused() {
    let mut s = three();
    let p = params(0, 1, 1);
    let out = PrOut {
        nexus: A,
        action: 0,
        scope_type: 0,
        params: &p,
        ports: &[1],
        can_persist: false,
    };
    let bit = Refusal::Parm {
        byte: 20,
        bit: Some(0),
    };
    assert_eq!(s.out(&out), Err(bit));
    assert_eq!(s.read(2, 8, false).unwrap()[2..4], [0x1C, 0xC0]);
    assert_eq!(s.read(2, 8, true).unwrap()[2..4], [0x1D, 0xC0]);
}

#[test]
fn wrong_fields_are_pointed_at() {
    let mut s = three();
    register(&mut s, A, 1);
    let cdb = |byte, bit| Err(Refusal::Cdb { byte, bit });
    let parm = |byte, bit| Err(Refusal::Parm { byte, bit });
    let length = Err(Refusal::Sense(sense::PARAMETER_LIST_LENGTH_INVALID));
    let p = |flags| params(1, 1, flags);
    let rows = [
        (8, 0, p(0), cdb(1, Some(0))),
        (1, 0x11, p(0), cdb(2, Some(4))),
        (1, 2, p(0), cdb(2, Some(0))),
        (4, 2, p(0), cdb(1, Some(0))),
        (1, 1, p(8), parm(20, Some(3))),
        (6, 0, p(8), parm(20, Some(3))),
        (1, 1, p(4), parm(20, Some(2))),
        (1, 1, p(0)[..23].to_vec(), length.clone()),
        (0, 0, p(0)[..16].to_vec(), length.clone()),
        (3, 0, [p(0), vec![0]].concat(), length),
    ];
    for (action, scope_type, params, want) in rows {
        assert_eq!(run(&mut s, A, action, scope_type, &params), want);
    }
    assert_eq!(run(&mut s, B, 1, 1, &p(0)), Err(Refusal::Conflict));
    run(&mut s, A, 1, 1, &p(0)).unwrap();
    assert_eq!(
        run(&mut s, A, 2, 3, &p(0)),
        Err(Refusal::Sense(sense::INVALID_RELEASE))
    );
    assert_eq!(run(&mut s, A, 4, 1, &params(1, 0, 0)), parm(8, None));
}

#[test]
fn registrations_have_a_limit() {
    let mut s = three();
    for n in 0..MAX_REGISTRANTS {
        s.add(tid(&format!("iqn.{n}"), 0), 1, 1);
    }
    assert_eq!(
        run(&mut s, A, 0, 0, &params(0, 1, 0)),
        Err(Refusal::Sense(sense::INSUFFICIENT_REGISTRATION_RESOURCES))
    );
}

/// Each entry of a list is looked for among all registrations.
#[test]
fn lists_of_transport_ids_have_a_limit() {
    let list = |n: usize| {
        let mut p = params(0, 1, 0x08);
        p.extend_from_slice(&(n as u32 * 4).to_be_bytes());
        p.extend_from_slice(&[0x45, 0, 0, 0].repeat(n));
        p
    };
    let mut s = three();
    let long = run(&mut s, A, 0, 0, &list(MAX_REGISTRANTS + 1));
    let full = sense::INSUFFICIENT_REGISTRATION_RESOURCES;
    assert_eq!(long, Err(Refusal::Sense(full)));
    assert_eq!(run(&mut s, A, 0, 0, &list(MAX_REGISTRANTS)), Ok(vec![]));
    assert_eq!(s.registrants().len(), 2);
}

#[test]
fn answers_are_cut_between_whole_fields() {
    let mut s = three();
    for (n, key) in [(A, 1), (B, 2), (C, 3)] {
        register(&mut s, n, key);
    }
    let len = |action, alloc| s.read(action, alloc, true).unwrap().len();
    for (alloc, want) in [
        (0, 0),
        (7, 0),
        (8, 8),
        (15, 8),
        (16, 16),
        (31, 24),
        (99, 32),
    ] {
        assert_eq!(len(0, alloc), want, "{alloc}");
    }
    let each = 24 + tid("iqn.a", 1).as_bytes().len();
    for (alloc, want) in [(7, 0), (8, 8), (8 + each, 8), (9 + each, 8 + each)] {
        assert_eq!(len(3, alloc), want, "{alloc}");
    }
    let full = s.read(3, 8, true).unwrap();
    assert_eq!(full[4..8], (3 * each as u32).to_be_bytes());
    assert_eq!(s.read(4, 8, true), None);
}

/// Nothing that can be in a parameter list upsets the engine, and a refused command changes nothing.
#[test]
fn any_parameters_are_survived() {
    let mut rng = 0x9E37_79B9_7F4A_7C15_u64;
    let mut next = move || {
        rng ^= rng << 13;
        rng ^= rng >> 7;
        rng ^= rng << 17;
        rng
    };
    let mut s = three();
    for _ in 0..200_000 {
        let len = [24, 24, 24, 28, 48, 80, next() as usize % 90][next() as usize % 7];
        let mut p: Vec<u8> = (0..len)
            .map(|_| (next() % 7) as u8 * (next() % 2) as u8)
            .collect();
        for at in [7, 15] {
            if let Some(b) = p.get_mut(at) {
                *b = (next() % 4) as u8;
            }
        }
        for b in p.iter_mut().take(7).chain([].iter_mut()) {
            *b = 0;
        }
        let nexus = [A, B, C][next() as usize % 3];
        let before = (s.to_text(), s.to_file());
        let (action, ty) = (next() as u8 % 9, next() as u8 % 10);
        if run(&mut s, nexus, action, ty, &p).is_err() {
            assert_eq!((s.to_text(), s.to_file()), before);
        }
        if s.registrants().len() > 40 {
            s = three();
        }
        if let Some(r) = s.reservation() {
            assert!(s.registrants().iter().any(|reg| s.is_holder(reg)), "{r:?}");
        }
    }
}
