//! The small files of a wave: how they are read, and how they become frames.

use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Context;

use super::{Fate, Item, LARGE_BYTES};
use crate::source::file::Opener;
use crate::source::{Place, Sources};
use crate::volume::{self, FRAME_BYTES, Frame};

pub(super) fn is_folder(place: &Place) -> bool {
    matches!(place, Place::Folder(_))
}

pub(super) fn is_bucket(place: &Place) -> bool {
    matches!(place, Place::Bucket(_))
}

/// Reads the content of neighbouring items, if it is where `is_due` says; `room` is how much more than
/// listed they may be together.
pub(super) fn read_items(
    sources: &Sources,
    items: &mut [Item],
    room: &AtomicU64,
    is_due: fn(&Place) -> bool,
) {
    let mut opener = Opener::default();
    for item in items {
        if !matches!(item.fate, Fate::Unread) || bk_manifest::signal::caught().is_some() {
            continue;
        }
        let located = sources.locate(&item.entry).filter(|located| is_due(located.place));
        let Some(located) = located else { continue };
        let listed = item.entry.size.unwrap_or(0);
        let may_hold = |size: u64| {
            let more = size.saturating_sub(listed);
            let take = |left: u64| left.checked_sub(more);
            size < LARGE_BYTES
                && room.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
        };
        item.fate = match opener.read_small(&located, &mut item.entry, &may_hold) {
            Ok(Some(file)) => Fate::Read(file),
            Ok(None) => Fate::Grown,
            Err(why) => Fate::NotTaken(why),
        };
    }
}

/// Builds and compresses a frame; returns it with the bytes before each member's content.
pub(super) fn make_frame(items: &[Item], members: &[usize]) -> anyhow::Result<(Frame, Vec<u64>)> {
    let mut bytes = Vec::with_capacity(FRAME_BYTES + FRAME_BYTES / 4);
    let mut skips = Vec::with_capacity(members.len());
    for member in members {
        let item = &items[*member];
        let Fate::New(file) = &item.fate else { continue };
        let size = file.bytes.len() as u64;
        let header = volume::header(&item.entry, size)
            .with_context(|| format!("cannot archive '{}'", item.entry.path))?;
        bytes.extend_from_slice(&header);
        skips.push(bytes.len() as u64);
        bytes.extend_from_slice(&file.bytes);
        bytes.resize(bytes.len() + volume::padding(size), 0);
    }
    Ok((volume::frame(&bytes)?, skips))
}
