//! Volumes: real `.tar.zst` files made of independent zstd frames, with a seek table for strangers.
//!
//! Frames begin and end at member borders (a large file spans several), so that the byte range in an
//! entry's `at` can be decoded by itself, and the whole by `zstd -dc | tar x`.

use std::path::Path;

use bk_manifest::entry::Entry;

/// The folder of the volumes, in the backup's folder.
pub const FOLDER: &str = "files";
/// Small files are gathered into frames of about this many bytes, and large ones cut into such.
pub const FRAME_BYTES: usize = 1 << 20;
/// A volume is closed once it has this many bytes.
pub const VOLUME_BYTES: u64 = 256 << 20;
/// … or this many entries: what its partial list is bounded by.
pub const VOLUME_ENTRIES: u64 = 100_000;
const LEVEL: i32 = 3;
const BLOCK: usize = 512;

/// The name of a volume in the backup's folder; numbers begin with 1.
pub fn name(number: u32) -> String {
    format!("{FOLDER}/{number:06}.tar.zst")
}

/// The tar blocks before a file's content: its header, and the one for a long name.
///
/// # Errors
/// A path that tar cannot hold.
pub fn header(entry: &Entry, size: u64) -> std::io::Result<Vec<u8>> {
    use std::os::unix::ffi::OsStrExt;
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Regular);
    header.set_size(size);
    header.set_mode(entry.mode.unwrap_or(0o600));
    let (user, group) = entry.owner.unwrap_or((0, 0));
    header.set_uid(user.into());
    header.set_gid(group.into());
    let seconds = entry.mtime.map_or(0, |mtime| mtime.unix().0);
    header.set_mtime(u64::try_from(seconds).unwrap_or(0));
    let path = Path::new(std::ffi::OsStr::from_bytes(entry.path.as_bytes()));
    let mut builder = tar::Builder::new(Vec::with_capacity(BLOCK));
    builder.append_data(&mut header, path, std::io::empty())?;
    // Taken before the builder adds the end-of-archive blocks.
    Ok(std::mem::take(builder.get_mut()))
}

/// How many zero bytes follow content of this length.
pub fn padding(size: u64) -> usize {
    let over = usize::try_from(size % BLOCK as u64).unwrap_or(0);
    if over == 0 { 0 } else { BLOCK - over }
}

/// The two zero blocks that end a tar archive.
pub fn end_of_archive() -> Vec<u8> {
    vec![0; 2 * BLOCK]
}

/// A frame: what it takes in the volume and what it holds.
#[derive(Clone, Debug)]
pub struct Frame {
    /// The frame as stored.
    pub bytes: Vec<u8>,
    /// How many bytes it decodes to.
    pub decoded: usize,
}

/// Compresses bytes into one frame; what does not get smaller is stored in it as it is.
///
/// # Errors
/// Those of the compressor.
pub fn frame(bytes: &[u8]) -> std::io::Result<Frame> {
    if is_incompressible(bytes) {
        return Ok(Frame { bytes: raw_frame(bytes), decoded: bytes.len() });
    }
    let mut compressor = zstd::bulk::Compressor::new(LEVEL)?;
    compressor.include_checksum(true)?;
    let compressed = compressor.compress(bytes)?;
    Ok(Frame { bytes: compressed, decoded: bytes.len() })
}

/// Whether samples from all over the bytes say that compressing is not worth its time.
fn is_incompressible(bytes: &[u8]) -> bool {
    const SAMPLE: usize = 8 << 10;
    const SAMPLES: usize = 4;
    if bytes.len() < SAMPLE * SAMPLES * 4 {
        return false;
    }
    let stride = bytes.len() / SAMPLES;
    let compressed: usize = (0..SAMPLES)
        .filter_map(|number| {
            let start = number * stride + stride / 2;
            let sample = &bytes[start..(start + SAMPLE).min(bytes.len())];
            zstd::bulk::compress(sample, 1).ok().map(|compressed| compressed.len())
        })
        .sum();
    compressed > SAMPLE * SAMPLES * 98 / 100
}

/// A zstd frame of raw blocks (RFC 8878, 3.1.1).
fn raw_frame(bytes: &[u8]) -> Vec<u8> {
    const BLOCK_LIMIT: usize = 128 << 10;
    // Eight bytes of content size, single segment, no checksum: SHA-256 covers the content.
    const DESCRIPTOR: u8 = 3 << 6 | 1 << 5;
    let mut frame = Vec::with_capacity(bytes.len() + 13 + 3 * (bytes.len() / BLOCK_LIMIT + 1));
    frame.extend_from_slice(&0xFD2F_B528u32.to_le_bytes());
    frame.push(DESCRIPTOR);
    frame.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
    let blocks = bytes.len().div_ceil(BLOCK_LIMIT).max(1);
    for number in 0..blocks {
        let start = number * BLOCK_LIMIT;
        let block = &bytes[start..(start + BLOCK_LIMIT).min(bytes.len())];
        let is_last = usize::from(number + 1 == blocks);
        let header = block.len() << 3 | is_last;
        frame.extend_from_slice(&header.to_le_bytes()[..3]);
        frame.extend_from_slice(block);
    }
    frame
}

/// The seek table of the zstd seekable format: a skippable frame behind the others.
#[derive(Debug, Default)]
pub struct SeekTable(Vec<u8>);

impl SeekTable {
    /// Adds the next frame.
    pub fn add(&mut self, frame: &Frame) {
        // Frames are far below 4 GiB.
        for length in [frame.bytes.len(), frame.decoded] {
            self.0.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
        }
    }

    /// The table as it is stored.
    pub fn finish(self) -> Vec<u8> {
        const SKIPPABLE: u32 = 0x184D_2A5E;
        const SEEKABLE: u32 = 0x8F92_EAB1;
        let frames = u32::try_from(self.0.len() / 8).unwrap_or(u32::MAX);
        let length = u32::try_from(self.0.len() + 9).unwrap_or(u32::MAX);
        let mut table = Vec::with_capacity(self.0.len() + 17);
        table.extend_from_slice(&SKIPPABLE.to_le_bytes());
        table.extend_from_slice(&length.to_le_bytes());
        table.extend_from_slice(&self.0);
        table.extend_from_slice(&frames.to_le_bytes());
        table.push(0);
        table.extend_from_slice(&SEEKABLE.to_le_bytes());
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::noise;
    use bk_manifest::path::RelPath;
    use std::io::Read;

    #[test]
    fn frames_decode_whether_compressed_or_stored() {
        for bytes in
            [vec![], vec![1; 10], vec![0; 1 << 20], noise(100), noise(500_000), noise(128 << 10)]
        {
            let frame = frame(&bytes).unwrap();
            assert_eq!(zstd::decode_all(&frame.bytes[..]).unwrap(), bytes);
            assert_eq!(zstd::decode_all(&raw_frame(&bytes)[..]).unwrap(), bytes);
        }
        assert!(frame(&noise(1 << 20)).unwrap().bytes.len() < (1 << 20) + 100);
    }

    #[test]
    fn a_volume_is_a_tar_with_any_name() {
        let names: [&[u8]; 4] = [b"a/b", &[b'x'; 255], b"\xff\n\x1b[31m", "ä".as_bytes()];
        let mut volume = Vec::new();
        let mut table = SeekTable::default();
        for name in names {
            let entry = Entry::new(RelPath::new(name).unwrap());
            let mut bytes = header(&entry, 3).unwrap();
            bytes.extend_from_slice(b"abc");
            bytes.resize(bytes.len() + padding(3), 0);
            let frame = frame(&bytes).unwrap();
            table.add(&frame);
            volume.extend(frame.bytes);
        }
        let end = frame(&end_of_archive()).unwrap();
        table.add(&end);
        volume.extend(end.bytes);
        volume.extend(table.finish());
        let mut archive = tar::Archive::new(zstd::Decoder::new(&volume[..]).unwrap());
        let mut read = Vec::new();
        for member in archive.entries().unwrap() {
            let mut member = member.unwrap();
            read.push(member.path_bytes().into_owned());
            let mut text = String::new();
            member.read_to_string(&mut text).unwrap();
            assert_eq!(text, "abc");
        }
        assert_eq!(read, names.map(<[u8]>::to_vec));
        // The footer names the number of frames: four members and the end.
        assert_eq!(volume[volume.len() - 9..volume.len() - 5], 5u32.to_le_bytes());
    }
}
