use super::*;
use std::collections::BTreeMap;

fn tid(name: &str) -> TransportId {
    let mut b = vec![0x45, 0, 0, name.len() as u8 + 1];
    b.extend_from_slice(name.as_bytes());
    b.push(0);
    TransportId::parse(&b).unwrap()
}

/// A state with so many registrations, of which one holds a reservation of this type.
fn state(regs: u16, ty: Option<PrType>, holder: usize) -> PrState {
    let mut s = PrState::default();
    s.aptpl = true;
    for n in 0..regs {
        s.add(
            tid(&format!("iqn.a{n},i,0x{n:x}")),
            n + 1,
            u64::from(n) + 0xA0,
        );
    }
    if let Some(ty) = ty {
        s.reserve(s.registrants[holder].id, ty, 0);
    }
    s
}

const ALL_TYPES: [u8; 6] = [1, 3, 5, 6, 7, 8];

#[test]
fn the_layout_is_that_of_kernel_scst() {
    let mut s = state(0, None, 0);
    s.add(
        TransportId::parse(&[7; 24]).unwrap(),
        0x0102,
        0x1122_3344_5566_7788,
    );
    s.reserve(s.registrants[0].id, PrType::ExclusiveAccess, 0);
    let mut want = 0xBBEE_EEAA_EEBB_DD77_u64.to_ne_bytes().to_vec();
    want.extend_from_slice(&1u64.to_ne_bytes());
    want.extend_from_slice(&[1, 1, 3, 0, 1]);
    want.extend_from_slice(&[7; 24]);
    want.extend_from_slice(&[0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88]);
    want.extend_from_slice(&0x0102u16.to_ne_bytes());
    assert_eq!(s.to_file(), want);
}

#[test]
fn what_is_saved_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let file = PrFile::new(&dir.path().join("new/pr"), "disk").unwrap();
    assert!(file.load().unwrap().is_none());
    let types = ALL_TYPES.map(PrType::from_code).into_iter().chain([None]);
    for (n, ty) in (1..).zip(types) {
        let s = state(n, ty, usize::from(n) / 2);
        file.save(&s).unwrap();
        let loaded = file.load().unwrap().expect("saved");
        assert_eq!(loaded.to_file(), s.to_file());
        assert_eq!(loaded.to_text(), s.to_text());
    }
    assert!(file.backup.exists());
    let mut s = state(2, None, 0);
    s.aptpl = false;
    file.save(&s).unwrap();
    assert!(!file.main.exists() && !file.backup.exists());
    assert!(file.load().unwrap().is_none());
}

/// Lengths at which a file ends with a whole registration.
fn boundaries(s: &PrState) -> Vec<usize> {
    (0..=s.registrants.len())
        .map(|n| {
            let regs = s.registrants[..n].iter();
            20 + regs
                .map(|r| 11 + r.transport_id.as_bytes().len())
                .sum::<usize>()
        })
        .collect()
}

#[test]
fn a_file_cut_off_anywhere_is_refused_or_whole() {
    for (ty, holder) in [
        (None, 0),
        (PrType::from_code(5), 2),
        (PrType::from_code(8), 0),
    ] {
        let s = state(3, ty, holder);
        let (whole, ends) = (s.to_file(), boundaries(&s));
        for n in 0..whole.len() {
            let cut = PrState::from_file(&whole[..n]);
            // The layout has no length, see the module's documentation.
            let looks_whole = n > 20 && ends.contains(&n) && (ty.is_none() || holder == 0);
            assert_eq!(cut.is_ok(), looks_whole, "{ty:?} cut off at {n}: {cut:?}");
        }
    }
}

#[test]
fn the_copy_is_used_when_the_file_is_not_whole() {
    let dir = tempfile::tempdir().unwrap();
    let file = PrFile::new(dir.path(), "disk").unwrap();
    let (old, new) = (
        state(1, PrType::from_code(5), 0),
        state(3, PrType::from_code(5), 2),
    );
    file.save(&old).unwrap();
    file.save(&new).unwrap();
    let whole = std::fs::read(&file.main).unwrap();
    for n in 0..whole.len() {
        std::fs::write(&file.main, &whole[..n]).unwrap();
        let loaded = file.load().unwrap().expect("the copy");
        assert_eq!(loaded.to_file(), old.to_file(), "cut off at {n}");
    }
    for at in 0..16 {
        let mut bad = whole.clone();
        bad[at] ^= 0x10;
        std::fs::write(&file.main, &bad).unwrap();
        assert_eq!(file.load().unwrap().unwrap().to_file(), old.to_file());
    }
    // Saving over a broken file keeps the copy until the new file is whole.
    std::fs::write(&file.main, &whole[..30]).unwrap();
    file.save(&new).unwrap();
    assert_eq!(std::fs::read(&file.backup).unwrap(), old.to_file());
    // Both broken.
    std::fs::write(&file.main, &whole[..30]).unwrap();
    std::fs::write(&file.backup, b"rubbish, but long enough to look at").unwrap();
    assert_eq!(file.load().unwrap_err(), code::EINVAL);
    std::fs::remove_file(&file.backup).unwrap();
    assert_eq!(file.load().unwrap_err(), code::EINVAL);
    std::fs::write(&file.backup, b"").unwrap();
    assert_eq!(file.load().unwrap_err(), code::EINVAL);
}

#[test]
fn a_device_that_is_called_as_a_copy_keeps_its_own_state() {
    let dir = tempfile::tempdir().unwrap();
    let of = |name: &str| PrFile::new(dir.path(), name).unwrap();
    let names = ["d", "d.1", "d.1.1"];
    let states = [1, 2, 3].map(|regs| state(regs, PrType::from_code(5), 0));
    for _ in 0..2 {
        for (name, s) in names.iter().zip(&states) {
            of(name).save(s).unwrap();
        }
    }
    for (name, s) in names.iter().zip(&states) {
        assert_eq!(of(name).load().unwrap().unwrap().to_file(), s.to_file());
    }
    // Its file is not taken for the copy, whether there is one or not.
    let d = of("d");
    for cut in [0, 30] {
        std::fs::write(&d.main, &states[0].to_file()[..cut]).unwrap();
        assert_eq!(d.load().unwrap().unwrap().to_file(), states[0].to_file());
    }
    std::fs::remove_file(&d.backup).unwrap();
    assert_eq!(d.load().unwrap_err(), code::EINVAL);
    // Nor removed.
    let mut off = state(1, None, 0);
    off.aptpl = false;
    d.save(&off).unwrap();
    assert!(d.load().unwrap().is_none());
    let second = of("d.1").load().unwrap().unwrap();
    assert_eq!(second.to_file(), states[1].to_file());
}

#[test]
fn a_copy_of_kernel_scst_is_used_until_there_is_a_newer_one() {
    let dir = tempfile::tempdir().unwrap();
    let file = PrFile::new(dir.path(), "d").unwrap();
    let (old, new) = (state(1, PrType::from_code(5), 0), state(2, None, 0));
    std::fs::write(&file.former, old.to_file()).unwrap();
    // Alone, it is what was left of a device.
    assert!(file.load().unwrap().is_none());
    std::fs::write(&file.main, &new.to_file()[..30]).unwrap();
    assert_eq!(file.load().unwrap().unwrap().to_file(), old.to_file());
    // It stands for the state before until the new file is whole.
    file.save(&new).unwrap();
    assert!(!file.backup.exists() && file.former.exists());
    file.save(&old).unwrap();
    std::fs::write(&file.main, b"").unwrap();
    assert_eq!(file.load().unwrap().unwrap().to_file(), new.to_file());
}

#[test]
fn no_device_has_the_name_of_a_copy() {
    let file = PrFile::new(tempfile::tempdir().unwrap().path(), "d").unwrap();
    let name = file.backup.file_name().unwrap().to_str().unwrap();
    assert!(crate::core::check_name(name).is_err(), "{name}");
}

#[test]
fn contradictions_are_refused() {
    let good = state(2, PrType::from_code(1), 0);
    let bytes = good.to_file();
    let second = boundaries(&good)[1];
    let changes: [(usize, u8); 5] = [(18, 2), (20, 0), (second, 1), (8, 2), (0, 0)];
    for (at, value) in changes {
        let mut bad = bytes.clone();
        bad[at] = value;
        assert!(PrState::from_file(&bad).is_err(), "byte {at}");
    }
    let twice = [&bytes[..second], &bytes[20..second]].concat();
    assert!(PrState::from_file(&twice).is_err());
    for b in 0..bytes.len() {
        for bit in 0..8 {
            let mut bad = bytes.clone();
            bad[b] ^= 1 << bit;
            let _ = PrState::from_file(&bad);
        }
    }
}

/// A disk that may lose or tear what was not synced.
#[derive(Clone, Default)]
struct Disk {
    now: BTreeMap<bool, Vec<u8>>,
    /// What may be found after a crash, for each file: contents, or none.
    found: BTreeMap<bool, Vec<Option<Vec<u8>>>>,
}

impl Disk {
    fn is_backup(which: Which) -> bool {
        which == Which::Backup
    }

    fn may_be(&mut self, which: Which, contents: Option<Vec<u8>>) {
        let all = self.found.entry(Self::is_backup(which));
        all.or_insert_with(|| vec![None]).push(contents);
    }

    fn run(&mut self, step: &Step<'_>) {
        match step {
            Step::Create(which, data) => {
                let lens = [0, 3, 8, 17, data.len() / 2, data.len().saturating_sub(1)];
                for n in lens.into_iter().filter(|n| *n < data.len()) {
                    self.may_be(*which, Some(data[..n].to_vec()));
                }
                self.may_be(*which, Some(data.to_vec()));
                self.may_be(*which, Some(vec![0; data.len()]));
                self.now.insert(Self::is_backup(*which), data.to_vec());
            }
            Step::Overwrite(which, data) => {
                let file = self.now.get_mut(&Self::is_backup(*which)).expect("created");
                file[..data.len()].copy_from_slice(data);
                let file = file.clone();
                self.may_be(*which, Some(file));
            }
            Step::Sync(which) => {
                let file = self.now.get(&Self::is_backup(*which)).cloned();
                self.found.insert(Self::is_backup(*which), vec![file]);
            }
            Step::Remove(which) => {
                self.now.remove(&Self::is_backup(*which));
                self.may_be(*which, None);
            }
            // Syncing a file is taken to make its name durable, as ext4 and xfs do; removal waits for this.
            Step::SyncDir => {
                for backup in [false, true] {
                    if !self.now.contains_key(&backup) {
                        self.found.insert(backup, vec![None]);
                    }
                }
            }
        }
    }

    /// All there may be after a crash now.
    fn crashes(&self) -> Vec<Self> {
        let none = vec![None];
        let of = |backup| self.found.get(&backup).unwrap_or(&none);
        let mut all = Vec::new();
        for main in of(false) {
            for copy in of(true) {
                let mut disk = Self::default();
                for (backup, contents) in [(false, main), (true, copy)] {
                    disk.found.insert(backup, vec![contents.clone()]);
                    if let Some(c) = contents {
                        disk.now.insert(backup, c.clone());
                    }
                }
                all.push(disk);
            }
        }
        all
    }

    /// What a server finds that starts now.
    fn load(&self) -> Option<Vec<u8>> {
        let parsed = |backup| self.now.get(&backup).map(|d| PrState::from_file(d));
        let loaded = choose(parsed(false), || Ok(parsed(true))).expect("never refused");
        loaded.map(|s| s.to_file())
    }

    /// Saves a state, and answers all that crashes on the way may leave.
    fn save(&mut self, s: &PrState) -> Vec<Self> {
        let backup = self.now.get(&true).cloned();
        let backup_is_whole = || backup.is_some_and(|b| PrState::from_file(&b).is_ok());
        let old = self.now.get(&false).cloned();
        with_plan(s, old, backup_is_whole, |steps| {
            let mut left = self.crashes();
            for step in steps {
                self.run(step);
                left.extend(self.crashes());
            }
            left
        })
    }
}

fn expected(s: &PrState) -> Option<Vec<u8>> {
    (s.aptpl && !s.registrants.is_empty()).then(|| s.to_file())
}

#[test]
fn a_crash_leaves_the_state_before_or_after() {
    let mut off = state(1, None, 0);
    off.aptpl = false;
    let states = [
        state(1, PrType::from_code(5), 0),
        state(2, None, 0),
        state(3, PrType::from_code(7), 0),
        off,
        state(2, PrType::from_code(1), 1),
    ];
    let mut disk = Disk::default();
    let mut before = None;
    let mut crashes = 0;
    for (i, s) in states.iter().enumerate() {
        let left = disk.save(s);
        assert_eq!(disk.load(), expected(s));
        for crashed in left {
            crashes += 1;
            let loaded = crashed.load();
            let after = expected(s);
            assert!(loaded == before || loaded == after, "saving state {i}");
            // The server goes on from what it found, and crashes again.
            let next = &states[(i + 1) % states.len()];
            for again in crashed.clone().save(next) {
                let second = again.load();
                assert!(second == loaded || second == expected(next), "twice, {i}");
                crashes += 1;
            }
        }
        before = expected(s);
    }
    assert!(crashes > 1000, "{crashes}");
}
