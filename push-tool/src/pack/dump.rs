//! Dumps and archives: each an object of its own, which `objects` names.

use std::io::{self, Read};

use bk_manifest::digest::Hasher;
use bk_manifest::entry::{At, Entry};
use bk_manifest::exit::{Exit, fail};
use bk_manifest::spool::Spool;

use super::{Packer, locate};
use crate::place;
use crate::source::file::Opener;
use crate::volume::FRAME_BYTES;

impl Packer<'_> {
    /// Stores a dump or an archive as an object of its own.
    pub(super) fn dump(&mut self, mut entry: Entry) -> anyhow::Result<()> {
        let located = locate(self.tools.sources, &entry)?;
        if let (Some(checksum), Some(size)) = (entry.checksum, entry.size)
            && let Some(at) = self.find_known(&checksum, size, &entry)?
        {
            self.totals.inherited += size;
            entry.at = Some(at);
            self.done(&entry)?;
            return Ok(());
        }
        let unreadable = |error: io::Error| {
            let message = format!("cannot read the staged '{}': {error}", entry.path);
            fail(Exit::Failed, message)
        };
        let mut open =
            Opener::default().open(&located, &entry).map_err(|why| unreadable(why.error))?;
        let cipher = self.tools.encryption.of(entry.component());
        let mut object = dump_object(&entry);
        if let Some(cipher) = cipher {
            object = cipher.name(&object);
        }
        while self.tools.lost.contains(&object) {
            // Its name may still be taken, by what prune is about to remove.
            object = place::join(place::AGAIN, &object);
        }
        let size = open.size();
        self.tools.uploader.open(&object, size, cipher)?;
        let mut hasher = Hasher::default();
        loop {
            bk_manifest::signal::check()?;
            let mut chunk = Vec::with_capacity(FRAME_BYTES);
            let read =
                (&mut open).take(FRAME_BYTES as u64).read_to_end(&mut chunk).map_err(unreadable)?;
            if read == 0 {
                break;
            }
            hasher.update(&chunk);
            self.tools.progress.advance(read as u64, 0);
            self.tools.uploader.write(chunk)?;
        }
        let (digest, size) = hasher.finish();
        if entry.checksum.is_some_and(|checksum| checksum != digest) {
            let message = format!("the staged '{}' is not what was dumped", entry.path);
            return Err(fail(Exit::Damaged, message));
        }
        entry.set_content(digest, size);
        entry.at = Some(At { object, ..At::default() });
        let mut entries = Spool::new()?;
        entries.push(&entry)?;
        self.tools.uploader.close(entries)?;
        self.totals.stored += size;
        self.known.add(&entry)?;
        self.done(&entry)?;
        self.tools.progress.advance(0, 1);
        Ok(())
    }
}

/// The object of a dump or an archive: its path without `.bk/`. A component's only file that is
/// named after it lies at the folder's root: `config.tar.zst`, not `config/config.tar.zst`.
fn dump_object(entry: &Entry) -> String {
    let path = String::from_utf8_lossy(entry.path.as_bytes());
    let object = path.strip_prefix(".bk/").unwrap_or(&path);
    match object.split_once('/') {
        Some((component, file))
            if file.split('.').next() == Some(component)
                && !place::MANIFEST_NAMES.contains(&file)
                && !place::SIDE_FILES.contains(&file) =>
        {
            file.to_owned()
        }
        _ => object.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bk_manifest::path::RelPath;

    #[test]
    fn an_archive_named_after_its_component_lies_at_the_root() {
        for (path, object) in [
            (".bk/config/config.tar.zst", "config.tar.zst"),
            (".bk/database/app.dump", "database/app.dump"),
            (".bk/database/database.dump", "database.dump"),
            (".bk/manifest/manifest.json", "manifest/manifest.json"),
        ] {
            assert_eq!(dump_object(&Entry::new(RelPath::new(path).unwrap())), object);
        }
    }
}
