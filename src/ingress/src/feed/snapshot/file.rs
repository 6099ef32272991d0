//! A file that is whole or refused.
//!
//! ```text
//! portolan-snapshot 2
//! one line for each record, as JSON
//! SHA-256 of everything before this line, in hexadecimal digits
//! ```
//!
//! It is written beside its place and moved there. It is not synced to a disk: it has to outlive
//! the process, not the machine.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde::Serialize;
use sha2::{Digest, Sha256};

/// The first line. Another shape of any record is another number.
const HEAD: &[u8] = b"portolan-snapshot 2\n";

/// The last line: the digest and a line feed.
const TAIL_SIZE: usize = 65;

/// Why a file was not written, or is not used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileError {
    #[error("snapshot cannot be read")]
    Read(#[source] io::Error),
    #[error("snapshot cannot be written")]
    Write(#[source] io::Error),
    #[error("snapshot is larger than {limit} bytes")]
    TooLarge { limit: u64 },
    #[error("snapshot is of another version")]
    OtherVersion,
    #[error("snapshot is incomplete or damaged")]
    Damaged,
    #[error("snapshot has a record that is not understood")]
    Record(#[source] serde_json::Error),
    #[error("snapshot is of another Pod or object")]
    Foreign,
    #[error("snapshot was last vouched for {} s ago", .age.as_secs())]
    TooOld { age: Duration },
}

/// The records of a file that is being written.
pub(crate) struct Records {
    file: BufWriter<File>,
    digest: Sha256,
    size: u64,
    limit: u64,
    line: Vec<u8>,
}

impl Records {
    /// Adds one record.
    pub(crate) fn add(&mut self, record: &impl Serialize) -> Result<(), FileError> {
        self.line.clear();
        serde_json::to_writer(&mut self.line, record).map_err(FileError::Record)?;
        self.line.push(b'\n');
        let line = std::mem::take(&mut self.line);
        let added = self.put(&line);
        self.line = line;
        added
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), FileError> {
        self.size += bytes.len() as u64;
        if self.size > self.limit {
            return Err(FileError::TooLarge { limit: self.limit });
        }
        self.digest.update(bytes);
        self.file.write_all(bytes).map_err(FileError::Write)
    }

    fn seal(mut self) -> Result<u64, FileError> {
        let tail = hexadecimal(&self.digest.finalize()) + "\n";
        self.file.write_all(tail.as_bytes()).map_err(FileError::Write)?;
        self.file.flush().map_err(FileError::Write)?;
        Ok(self.size + tail.len() as u64)
    }
}

/// Puts a file with these records, true at `vouched`, in the place of the one at `path`. Returns
/// its size.
pub(crate) fn write(
    path: &Path,
    limit: u64,
    vouched: SystemTime,
    records: impl FnOnce(&mut Records) -> Result<(), FileError>,
) -> Result<u64, FileError> {
    let beside = path.with_extension("new");
    let written = write_beside(&beside, limit, records).and_then(|size| {
        touch(&beside, vouched)?;
        fs::rename(&beside, path).map(|()| size).map_err(FileError::Write)
    });
    if written.is_err() {
        // Best effort: the next attempt would begin it anew anyway.
        let _ = fs::remove_file(&beside);
    }
    written
}

fn write_beside(
    path: &Path,
    limit: u64,
    records: impl FnOnce(&mut Records) -> Result<(), FileError>,
) -> Result<u64, FileError> {
    let mut options = OpenOptions::new();
    // For nobody else: there are private keys in it.
    options.write(true).create(true).truncate(true).mode(0o600);
    let file = BufWriter::new(options.open(path).map_err(FileError::Write)?);
    let mut file = Records { file, digest: Sha256::new(), size: 0, limit, line: Vec::new() };
    file.put(HEAD)?;
    records(&mut file)?;
    file.seal()
}

/// Says that what is in the file was true at `vouched`. One that is gone is no error.
pub(crate) fn touch(path: &Path, vouched: SystemTime) -> Result<(), FileError> {
    match OpenOptions::new().write(true).open(path) {
        Ok(file) => file.set_modified(vouched).map_err(FileError::Write),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(FileError::Write(error)),
    }
}

/// The records of a file, still as text, and when they were true; `None` if there is no file.
pub(crate) fn read(path: &Path, limit: u64) -> Result<Option<(Vec<u8>, SystemTime)>, FileError> {
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(FileError::Read(error)),
    };
    if metadata.len() > limit + TAIL_SIZE as u64 {
        return Err(FileError::TooLarge { limit });
    }
    let modified = metadata.modified().map_err(FileError::Read)?;
    let mut text = fs::read(path).map_err(FileError::Read)?;
    check(&text)?;
    text.truncate(text.len() - TAIL_SIZE);
    text.drain(..HEAD.len());
    Ok(Some((text, modified)))
}

fn check(text: &[u8]) -> Result<(), FileError> {
    if !text.starts_with(HEAD) {
        return Err(FileError::OtherVersion);
    }
    let content = text.len().checked_sub(TAIL_SIZE).filter(|end| *end >= HEAD.len());
    let (content, tail) = text.split_at(content.ok_or(FileError::Damaged)?);
    let digest = hexadecimal(&Sha256::digest(content)) + "\n";
    if tail == digest.as_bytes() { Ok(()) } else { Err(FileError::Damaged) }
}

pub(crate) fn hexadecimal(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}
