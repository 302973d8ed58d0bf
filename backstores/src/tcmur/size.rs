//! How large a device is, found out before its handler opens it: handlers want to be told, and refuse a wrong answer.

use kshim::fs::{self, FileKind};
use kshim::prelude::*;

use super::ffi::rbd::{Image, image_size};
use super::spec::Spec;

/// Of the headers below no more is looked at.
const HEADER_LEN: usize = 64;
/// `QFI\xFB`
const QCOW_MAGIC: u32 = 0x5146_49FB;
/// Of handler_file_zbc's files, in the host's byte order.
const ZBC_MAGIC: u32 = u32::from_be_bytes(*b"UZBC");

/// The device's size, and the configuration string to open it with.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// Bytes; `None`: nobody knows, so it is up to the handler.
    pub(super) size: Option<u64>,
    /// For the handler.
    pub(super) cfgstring: String,
    /// Bytes that the first write to any of them has to cover: see [`super::whole`].
    pub(super) unit: Option<u64>,
}

/// Finds the size of a device.
///
/// Context: may sleep.
///
/// # Errors
///
/// `EINVAL`: `size=` is not what the device has. Others: looking at what is behind it.
pub(super) fn find(spec: &Spec) -> Result<Found> {
    let mut found = Found {
        size: spec.size,
        cfgstring: spec.cfgstring(),
        unit: None,
    };
    let probed = match spec.subtype.as_str() {
        "qcow" => qcow(&spec.cfg, &mut found)?,
        "zbc" => zbc(spec, &mut found)?,
        // It has options before the path, as "ro/".
        "fbo" => plain(spec.cfg.find('/').map_or("", |at| &spec.cfg[at..])),
        "rbd" if spec.size.is_none() => Some(image_size(&rbd(&spec.cfg)?)?),
        _ => None,
    };
    let Some(probed) = probed else {
        return Ok(found);
    };
    match spec.size {
        Some(wanted) if wanted != probed => {
            pr_err!("{}: has {probed} bytes, not {wanted}", spec.path);
            Err(EINVAL)
        }
        _ => {
            found.size = Some(probed);
            Ok(found)
        }
    }
}

fn be(head: &[u8], at: usize, n: usize) -> Option<u64> {
    let field = head.get(at..at + n)?;
    Some(field.iter().fold(0, |v, b| v << 8 | u64::from(*b)))
}

fn ne32(head: &[u8], at: usize) -> Option<u32> {
    let field = head.get(at..at + 4)?;
    field.try_into().ok().map(u32::from_ne_bytes)
}

/// A qcow or qcow2 image says it in its header. A file that is neither is raw.
fn qcow(path: &str, found: &mut Found) -> Result<Option<u64>> {
    let head = fs::read_head(path, HEADER_LEN).inspect_err(|e| pr_err!("{path}: {e}"))?;
    if be(&head, 0, 4) == Some(u64::from(QCOW_MAGIC)) {
        let bits = match be(&head, 4, 4) {
            Some(1) => be(&head, 32, 1),
            _ => be(&head, 20, 4),
        };
        found.unit = bits.filter(|b| *b < 32).map(|b| 1 << b);
        return Ok(be(&head, 24, 8));
    }
    Ok(plain(path))
}

fn plain(path: &str) -> Option<u64> {
    let stat = fs::stat(path).ok()?;
    (stat.kind == FileKind::Regular && stat.len > 0).then_some(stat.len)
}

/// handler_file_zbc formats whatever is not a disk of the size and shape it is told, so a disk that is there is opened
/// as it is: with its own size, and without the options, which are for making one.
fn zbc(spec: &Spec, found: &mut Found) -> Result<Option<u64>> {
    let path = match spec.cfg.split_once('@') {
        _ if spec.cfg.starts_with('/') => spec.cfg.as_str(),
        Some((_, path)) => path,
        None => return Ok(None),
    };
    let head = match fs::read_head(path, HEADER_LEN) {
        Ok(head) => head,
        Err(ENOENT) => return Ok(None),
        Err(e) => {
            pr_err!("{path}: {e}");
            return Err(e);
        }
    };
    if head.is_empty() {
        return Ok(None);
    }
    if ne32(&head, 0) != Some(ZBC_MAGIC) {
        pr_err!("{path}: is no zoned disk, and would be overwritten");
        return Err(EMEDIUMTYPE);
    }
    let lbas = head.get(8..16).and_then(|b| b.try_into().ok());
    let size = lbas
        .map(u64::from_ne_bytes)
        .zip(ne32(&head, 16))
        .and_then(|(lbas, block)| lbas.checked_mul(u64::from(block)));
    found.cfgstring = format!("{}/{path}", spec.subtype);
    size.map(Some).ok_or(EMEDIUMTYPE)
}

/// `POOL/IMAGE[;OPTION=VALUE...]`
fn rbd(cfg: &str) -> Result<Image<'_>> {
    let (pool, rest) = cfg.split_once('/').ok_or(EINVAL)?;
    let mut parts = rest.split(';');
    let mut image = Image {
        pool,
        name: parts.next().unwrap_or_default(),
        id: None,
        conf: None,
    };
    for option in parts {
        match option.split_once('=') {
            Some(("id", v)) => image.id = Some(v),
            Some(("conf", v)) => image.conf = Some(v),
            _ => {}
        }
    }
    Ok(image)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(subtype: &str, cfg: &str, more: &str) -> Spec {
        Spec::parse(&format!("/dev/tcmur/{subtype}/{cfg}{more}")).unwrap()
    }

    #[test]
    fn a_qcow2_header_tells_the_size() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.qcow2");
        let cfg = path.to_str().unwrap();
        let mut head = vec![0; 104];
        head[..4].copy_from_slice(&QCOW_MAGIC.to_be_bytes());
        head[24..32].copy_from_slice(&(3u64 << 30).to_be_bytes());
        std::fs::write(&path, &head).unwrap();
        head[20..24].copy_from_slice(&16u32.to_be_bytes());
        std::fs::write(&path, &head).unwrap();
        let found = find(&spec("qcow", cfg, "")).unwrap();
        assert_eq!((found.size, found.unit), (Some(3 << 30), Some(65536)));
        assert!(find(&spec("qcow", cfg, "?size=3G")).is_ok());
        assert_eq!(find(&spec("qcow", cfg, "?size=2G")), Err(EINVAL));
        std::fs::write(&path, [7; 1024]).unwrap();
        assert_eq!(find(&spec("qcow", cfg, "")).unwrap().size, Some(1024));
        assert_eq!(find(&spec("qcow", "/no/such/file", "")), Err(ENOENT));
    }

    #[test]
    fn a_zoned_disk_is_never_formatted_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("z");
        let cfg = format!("model-HM/zsize-1/conv-2@{}", path.to_str().unwrap());
        let new = find(&spec("zbc", &cfg, "?size=64M")).unwrap();
        assert_eq!(new.size, Some(64 << 20));
        assert_eq!(new.cfgstring, format!("zbc/{cfg}"));
        let mut head = vec![0; 64];
        head[..4].copy_from_slice(&ZBC_MAGIC.to_ne_bytes());
        head[8..16].copy_from_slice(&131_072u64.to_ne_bytes());
        head[16..20].copy_from_slice(&512u32.to_ne_bytes());
        std::fs::write(&path, &head).unwrap();
        let old = find(&spec("zbc", &cfg, "")).unwrap();
        assert_eq!(old.size, Some(64 << 20));
        assert_eq!(old.cfgstring, format!("zbc/{}", path.to_str().unwrap()));
        assert_eq!(find(&spec("zbc", &cfg, "?size=32M")), Err(EINVAL));
        std::fs::write(&path, [1; 4096]).unwrap();
        assert_eq!(find(&spec("zbc", &cfg, "")), Err(EMEDIUMTYPE));
    }

    #[test]
    fn images_of_rados() {
        let image = rbd("pool/image;id=me;osd_op_timeout=3;conf=/c").unwrap();
        let (id, conf) = (Some("me"), Some("/c"));
        let wanted = Image {
            pool: "pool",
            name: "image",
            id,
            conf,
        };
        assert_eq!(image, wanted);
        assert_eq!(rbd("pool"), Err(EINVAL));
    }
}
