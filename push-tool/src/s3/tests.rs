//! What a bucket does when its store, the network or the clock does not do what it should.

mod answers;
mod application;
mod bucket;
mod denied;
mod reading;
mod requests;
mod storing;

use std::io::{Read, Write};
use std::time::Duration;

use super::*;
use crate::destination::Created;
use crate::testing::server::{Accident, Kind, Server};

fn open(server: &Server) -> S3 {
    S3::open(server.bucket_name(), "backups", &server.access(&[])).unwrap()
}

/// The same, with a server that counts as dead after a moment, and is asked twice.
fn impatient(server: &Server, rate: &str) -> S3 {
    let others = [("BACKUP_S3_MAX_RETRIES", "1"), ("BACKUP_LIMIT_RATE", rate)];
    let mut settings = Settings::read(server.bucket_name(), &server.access(&others)).unwrap();
    settings.stall = Duration::from_millis(700);
    S3 { client: Arc::new(Client::new(settings).unwrap()), ..open(server) }
}

fn bytes(length: usize) -> Vec<u8> {
    let mut bytes = (0..=250).collect::<Vec<u8>>().repeat(length / 251 + 1);
    bytes.truncate(length);
    bytes
}

fn put(s3: &S3, name: &str, bytes: &[u8]) -> Result<()> {
    let mut upload = s3.put(name, bytes.len() as u64)?;
    upload.write_all(bytes).unwrap();
    upload.commit()
}

fn read(s3: &S3, name: &str, range: Option<Range<u64>>) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    s3.read(name, range).map_err(std::io::Error::other)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn names(s3: &S3, folder: &str) -> Result<Vec<String>> {
    s3.list(folder)?.map(|object| Ok(object?.name)).collect()
}

fn refuse(server: &Server, kind: Kind, times: u64, status: u16, code: &'static str) {
    for number in 1..=times {
        server.before(kind, number, Accident::Refuse(status, code));
    }
}

fn hint(error: Error) -> String {
    let error = anyhow::Error::from(error);
    let failure = error.chain().find_map(|cause| cause.downcast_ref::<Failure>());
    failure.map(|failure| failure.hints.join("; ")).unwrap_or_default()
}
