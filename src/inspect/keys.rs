//! The keys to verify with: given ones, and files that are read again when they change.
//!
//! Invariant: a file that cannot be read or parsed keeps its last good keys, and no error shows what was in it.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use crate::signing::{KeyError, SigningKey, SigningKeys};

/// The largest key file: eight keys of 64 bytes are under 1 KiB.
const MAX_FILE: u64 = 16 * 1024;

/// Failed to read a file of keys.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    #[error("failed to read {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path} is larger than {MAX_FILE} bytes: no file of keys")]
    TooLarge { path: PathBuf },
    #[error("{path} holds no usable keys: {source}")]
    Keys { path: PathBuf, source: KeyError },
}

/// What tells that a file has changed: a mounted Secret is replaced as a whole, so its inode changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    modified: Option<SystemTime>,
    length: u64,
    inode: u64,
}

#[derive(Debug)]
struct File {
    path: PathBuf,
    stamp: Option<Stamp>,
    keys: Vec<SigningKey>,
}

/// All keys, in order: given ones first, then file by file.
#[derive(Debug)]
pub struct Keys {
    given: Vec<SigningKey>,
    files: Mutex<Vec<File>>,
}

impl Keys {
    /// Reads every file once; a missing one has no keys yet.
    pub fn new(given: Option<SigningKeys>, files: Vec<PathBuf>) -> Result<Keys, SecretError> {
        let mut read = Vec::with_capacity(files.len());
        for path in files {
            let mut file = File {
                path,
                stamp: None,
                keys: Vec::new(),
            };
            file.refresh()?;
            read.push(file);
        }
        let given = given.map(|keys| keys.keys).unwrap_or_default();
        Ok(Keys {
            given,
            files: Mutex::new(read),
        })
    }

    /// The keys as they are now. Looks at the files' metadata, and reads those that changed.
    pub fn current(&self) -> Vec<SigningKey> {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let mut keys = self.given.clone();
        for file in files.iter_mut() {
            match file.refresh() {
                Ok(false) => {}
                Ok(true) => tracing::info!(path = %file.path.display(), keys = file.keys.len(), "keys read again"),
                Err(error) => tracing::warn!(%error, "the last good keys stay in use"),
            }
            keys.extend_from_slice(&file.keys);
        }
        keys
    }
}

impl File {
    /// True when the keys were read.
    fn refresh(&mut self) -> Result<bool, SecretError> {
        let failed = |source| SecretError::Read {
            path: self.path.clone(),
            source,
        };
        let stamp = match std::fs::metadata(&self.path) {
            Ok(metadata) => Stamp {
                modified: metadata.modified().ok(),
                length: metadata.len(),
                inode: std::os::unix::fs::MetadataExt::ino(&metadata),
            },
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(failed(error)),
        };
        if self.stamp == Some(stamp) {
            return Ok(false);
        }
        // Remembered before it is read: what is wrong is told once, not at every request.
        self.stamp = Some(stamp);
        if stamp.length > MAX_FILE {
            return Err(SecretError::TooLarge {
                path: self.path.clone(),
            });
        }
        let text = std::fs::read_to_string(&self.path).map_err(failed)?;
        match SigningKeys::parse(None, &text) {
            Ok(keys) => self.keys = keys.keys,
            Err(source) => {
                return Err(SecretError::Keys {
                    path: self.path.clone(),
                    source,
                });
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const B: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";

    #[test]
    fn a_file_is_read_again_when_it_changes_and_keeps_its_keys_when_it_breaks() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("current");
        let keys = Keys::new(None, vec![path.clone()]).unwrap();
        assert!(keys.current().is_empty(), "a Secret that is yet to come");
        let texts = |keys: Vec<SigningKey>| keys.iter().map(SigningKey::to_text).collect::<Vec<_>>();
        for (content, expected) in [
            (format!("{A}\n"), vec![A]),
            (format!("{B} {A}"), vec![B, A]),
            ("nonsense".to_string(), vec![B, A]),
            (B.to_string(), vec![B]),
        ] {
            let fresh = folder.path().join("fresh");
            std::fs::write(&fresh, content).unwrap();
            std::fs::rename(&fresh, &path).unwrap();
            assert_eq!(texts(keys.current()), expected);
        }
        std::fs::write(folder.path().join("bad"), "whsec_short").unwrap();
        let error = Keys::new(None, vec![folder.path().join("bad")]).unwrap_err();
        assert!(!error.to_string().contains("whsec_short"));
    }
}
