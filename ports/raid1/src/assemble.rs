//! Putting an array together from its legs, or making it.

use crate::array::{Leg, Region, State, bit};
use crate::daemon::new_uuid;
use crate::leg;
use crate::meta::{
    BITMAP_AT, LegState, MAX_LEGS, MAX_REGIONS, MIN_REGION, PAGE, PAGE_BITS, SlotMeta, Super,
    data_offset, decode_bitmap, encode_bitmap,
};
use crate::order::Order;
use crate::spec::Spec;
use kshim::block::{BlockDevice, QueueLimits};
use kshim::prelude::*;
use kshim::time::Instant;
use std::collections::VecDeque;

/// A leg that could be opened.
struct Found {
    path: String,
    bdev: Arc<BlockDevice>,
    meta: Option<Super>,
}

/// An array that is ready to run.
///
/// # Errors
///
/// `ENOENT`: no leg has a superblock, and none is to be made. `ENXIO`: a leg is missing that may have newer data. `EUCLEAN`: the legs
/// do not belong together, or each went its own way. `EEXIST`: a leg to make an array of is one of another. `ENOSPC`: no room.
/// Others: those of the legs.
#[doc(alias = "analyze_sbs")]
pub(crate) fn assemble(spec: &Spec) -> Result<State> {
    let mut found = Vec::new();
    for path in &spec.legs {
        match leg::open(path).and_then(|bdev| Ok((leg::read_super(&bdev)?, bdev))) {
            Ok((meta, bdev)) => found.push(Found {
                path: path.clone(),
                bdev,
                meta,
            }),
            Err(e) => pr_err!("raid1 {}: {path}: {e}", spec.name),
        }
    }
    let newest = found.iter().filter_map(|f| f.meta.clone()).max_by_key(|m| {
        let own = m.slots.get(m.index).map(|s| s.state);
        (own == Some(LegState::InSync), m.events)
    });
    match newest {
        Some(meta) => join(spec, meta, found),
        None if spec.create && found.len() == spec.legs.len() => create(spec, &found),
        None => Err(ENOENT),
    }
}

fn limits(legs: &[&Arc<BlockDevice>]) -> QueueLimits {
    let mut all = legs.iter().map(|l| l.limits().clone());
    let first = all.next().unwrap_or_default();
    let mut limits = all.fold(first, |a, l| a.stack(&l));
    // What a discarded block reads as has to be the same on all legs.
    if !limits.discard_zeroes_data {
        limits.max_discard_bytes = 0;
    }
    limits
}

fn state(meta: Super, legs: Vec<Leg>, regions: Vec<Region>, spec: &Spec) -> State {
    let open: Vec<_> = legs.iter().filter_map(|l| l.bdev.as_ref()).collect();
    State {
        limits: limits(&open),
        meta,
        legs,
        regions,
        order: Order::new(),
        ready: VecDeque::new(),
        releasing: false,
        dirtying: Vec::new(),
        waiting: Vec::new(),
        degraded: Vec::new(),
        failures: Vec::new(),
        repairs: Vec::new(),
        commands: Vec::new(),
        bios: 0,
        users: 0,
        closing: false,
        threads: 0,
        super_pending: false,
        broken: false,
        speed_min: spec.speed_min,
        speed_max: spec.speed_max,
        last_io: None,
        resynced: 0,
    }
}

/// Makes an array of legs that have none.
#[doc(alias = "md_add_new_disk")]
fn create(spec: &Spec, found: &[Found]) -> Result<State> {
    let least = found
        .iter()
        .map(|f| f.bdev.capacity_bytes())
        .min()
        .ok_or(ENOENT)?;
    let region = spec.region.unwrap_or_else(|| {
        let fair = least.div_ceil(MAX_REGIONS / 4).next_power_of_two();
        fair.max(1 << 20)
    });
    let offset = data_offset(least.div_ceil(region));
    let size = least.checked_sub(offset).ok_or(ENOSPC)?;
    let size = size - size % PAGE as u64;
    let regions = size.div_ceil(region.max(MIN_REGION));
    if size == 0 || regions > MAX_REGIONS || data_offset(regions) > offset {
        return Err(ENOSPC);
    }
    let mut slots = [SlotMeta::default(); MAX_LEGS];
    for (n, slot) in slots.iter_mut().enumerate().take(found.len()) {
        slot.uuid = new_uuid()?;
        let all_alike = n == 0 || spec.assume_clean;
        slot.state = if all_alike {
            LegState::InSync
        } else {
            LegState::Rebuilding
        };
    }
    let meta = Super {
        array: new_uuid()?,
        name: spec.name.clone(),
        index: 0,
        events: 1,
        size,
        data_offset: data_offset(regions),
        region,
        slots,
    };
    let others: u8 = (1..found.len()).fold(0, |m, n| m | bit(n));
    let dirty = !spec.assume_clean && others != 0;
    let now = Instant::now();
    let mut region = Region::new(dirty, now);
    region.stale = if dirty { others } else { 0 };
    let regions = vec![region; usize::try_from(regions)?];
    for (n, f) in found.iter().enumerate() {
        for page in 0..regions.len().div_ceil(PAGE_BITS) {
            let bits = regions.iter().skip(page * PAGE_BITS).map(|r| r.dirty);
            leg::write(
                &f.bdev,
                BITMAP_AT + (page * PAGE) as u64,
                &encode_bitmap(page, bits),
            )?;
        }
        let own = Super {
            index: n,
            ..meta.clone()
        };
        leg::write(&f.bdev, own.position(), &own.encode())?;
    }
    let leg = |f: &Found| Leg {
        path: f.path.clone(),
        bdev: Some(Arc::clone(&f.bdev)),
        ..Leg::default()
    };
    pr_info!(
        "raid1 {}: made of {} legs, {size} bytes",
        spec.name,
        found.len()
    );
    Ok(state(meta, found.iter().map(leg).collect(), regions, spec))
}

/// Puts the legs of an array together. `meta` is the newest superblock.
fn join(spec: &Spec, mut meta: Super, found: Vec<Found>) -> Result<State> {
    if meta
        .slots
        .get(meta.index)
        .is_none_or(|s| s.state != LegState::InSync)
    {
        pr_err!("raid1 {}: no leg has everything", spec.name);
        return Err(ENXIO);
    }
    let places = meta
        .slots
        .iter()
        .rposition(|s| s.state != LegState::Absent)
        .map_or(0, |n| n + 1);
    let mut legs: Vec<Leg> = (0..places).map(|_| Leg::default()).collect();
    let mut returned = Vec::new();
    for f in found {
        let n = place(spec, &meta, &f)?;
        let Some((n, leg)) = n.and_then(|n| legs.get_mut(n).map(|l| (n, l))) else {
            continue;
        };
        if leg.bdev.is_some() {
            pr_err!(
                "raid1 {}: {} and {} are both leg {n}: one is a copy",
                spec.name,
                leg.path,
                f.path
            );
            return Err(EUCLEAN);
        }
        let slot = meta.slots.get(n).copied().unwrap_or_default();
        if slot.state == LegState::Failed {
            returned.push(n);
        }
        leg.equal = slot.state == LegState::InSync;
        leg.path = f.path;
        leg.bdev = Some(f.bdev);
    }
    // The paths of those that are missing: what was named and is nobody's.
    let known: Vec<String> = legs.iter().map(|l| l.path.clone()).collect();
    let mut nameless = spec.legs.iter().filter(|p| !known.contains(p)).cloned();
    for (n, leg) in legs
        .iter_mut()
        .enumerate()
        .filter(|(_, l)| l.bdev.is_none())
    {
        let events = meta.events;
        let Some(slot) = meta
            .slots
            .get_mut(n)
            .filter(|s| s.state != LegState::Absent)
        else {
            continue;
        };
        leg.path = nameless.next().unwrap_or_default();
        if slot.state == LegState::InSync && !spec.degraded {
            pr_err!(
                "raid1 {}: leg {n} is missing, and may have newer data (degraded=1 goes without it)",
                spec.name
            );
            return Err(ENXIO);
        }
        if slot.state != LegState::Failed {
            slot.state = LegState::Failed;
            slot.last_events = events;
        }
    }
    // Of those that had everything always the same one, whichever wrote its superblock last before a crash: what was read of a
    // write that was not acknowledged stays what it is, also when the copying is cut short.
    let master = legs
        .iter()
        .position(|l| l.equal && l.bdev.is_some())
        .ok_or(ENXIO)?;
    let regions = regions(&meta, &legs, master)?;
    for n in returned {
        if let Some(slot) = meta.slots.get_mut(n) {
            slot.state = LegState::Rebuilding;
        }
    }
    let in_use = legs.iter().filter(|l| l.bdev.is_some()).count();
    pr_info!(
        "raid1 {}: {in_use} of {places} legs, {} bytes",
        spec.name,
        meta.size
    );
    Ok(state(meta, legs, regions, spec))
}

/// The place of a leg. `None`: it is not used.
fn place(spec: &Spec, meta: &Super, f: &Found) -> Result<Option<usize>> {
    let Some(m) = &f.meta else {
        pr_err!(
            "raid1 {}: {} is no leg of an array; add it",
            spec.name,
            f.path
        );
        return Ok(None);
    };
    let same = m.array == meta.array && m.size == meta.size && m.region == meta.region;
    let slot = meta.slots.get(m.index).copied().unwrap_or_default();
    let own = m.slots.get(m.index).copied().unwrap_or_default();
    if !same || own.uuid != slot.uuid {
        pr_err!(
            "raid1 {}: {} is a leg of {:?}, not used",
            spec.name,
            f.path,
            m.name
        );
        return Ok(None);
    }
    // It has gone on without the newest one. (That it calls that one failed may just be old.)
    let apart = slot.state == LegState::Failed && m.went_on(slot.last_events);
    if m.index != meta.index && apart {
        pr_err!(
            "raid1 {}: {} and the others have gone on without each other",
            spec.name,
            f.path
        );
        return Err(EUCLEAN);
    }
    if f.bdev.capacity_bytes() < meta.data_offset + meta.size {
        return Err(ENOSPC);
    }
    Ok(Some(m.index))
}

/// The regions, as the bitmaps of all that had everything say: a crash may have left each of them some bits.
#[doc(alias = "bitmap_load")]
fn regions(meta: &Super, legs: &[Leg], master: usize) -> Result<Vec<Region>> {
    let n = usize::try_from(meta.regions())?;
    let mut regions = vec![Region::new(false, Instant::now()); n];
    for leg in legs.iter().filter(|l| l.equal) {
        let Some(bdev) = &leg.bdev else { continue };
        for page in 0..n.div_ceil(PAGE_BITS) {
            // A page that cannot be read has dirty regions only.
            let bytes = leg::read(bdev, BITMAP_AT + (page * PAGE) as u64, PAGE).unwrap_or_default();
            let dirty = decode_bitmap(page, &bytes);
            for (i, r) in regions
                .iter_mut()
                .skip(page * PAGE_BITS)
                .take(PAGE_BITS)
                .enumerate()
            {
                r.dirty |= dirty(i);
            }
        }
    }
    let others =
        (0..legs.len()).filter(|&n| n != master && legs.get(n).is_some_and(|l| l.bdev.is_some()));
    let others = others.fold(0, |m, n| m | bit(n));
    for r in regions.iter_mut().filter(|r| r.dirty) {
        r.stale = others;
    }
    Ok(regions)
}
