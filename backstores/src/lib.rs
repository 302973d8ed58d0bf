//! Block drivers under `vdisk_blockio`.
