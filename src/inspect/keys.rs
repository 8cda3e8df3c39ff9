//! The keys to verify with: given ones, and files (or folders of files, such as a mounted Secret) that are read again when
//! they change.
//!
//! Invariant: a file that cannot be read or parsed keeps its last good keys, and no error shows what was in it. A key
//! whose file has left its folder is no longer used.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use crate::signing::{KeyError, VerifyingKey};

/// The largest key file: eight keys of 64 bytes are under 1 KiB.
const MAX_FILE: u64 = 16 * 1024;
/// Files of a folder that are read: each is looked at for every request.
const MAX_FILES: usize = 256;

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

/// What is in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Keys in their text forms, separated by white space.
    Text,
    /// One secret, as it is.
    Raw,
}

impl Form {
    /// The keys of a file, or of a variable.
    pub fn read(self, content: &[u8]) -> Result<Vec<VerifyingKey>, KeyError> {
        match self {
            Form::Text => VerifyingKey::parse_all(std::str::from_utf8(content).map_err(|_| KeyError::NotText)?),
            Form::Raw => Ok(vec![VerifyingKey::raw(content)?]),
        }
    }
}

#[derive(Debug)]
struct File {
    path: PathBuf,
    form: Form,
    stamp: Option<Stamp>,
    keys: Vec<VerifyingKey>,
}

/// What was named on the command line: a file, or a folder and the files found in it so far, by name.
#[derive(Debug)]
struct Source {
    named: File,
    found: BTreeMap<PathBuf, File>,
}

/// All keys, in order: given ones first, then file by file.
#[derive(Debug)]
pub struct Keys {
    given: Vec<VerifyingKey>,
    sources: Mutex<Vec<Source>>,
}

impl Keys {
    /// Reads every file once; a missing one has no keys yet, and a named one that holds something else is an error. In a
    /// folder there may be other things: they are told and left out, and files whose names begin with a dot not even told.
    pub fn new(given: Vec<VerifyingKey>, paths: Vec<(Form, PathBuf)>) -> Result<Keys, SecretError> {
        let mut sources: Vec<Source> = paths.into_iter().map(|(form, path)| Source::new(form, path)).collect();
        for source in &mut sources {
            let is_folder = source.is_folder();
            for error in source.refresh().into_iter().filter_map(Result::err) {
                match is_folder {
                    true => tracing::warn!(%error, "left out"),
                    false => return Err(error),
                }
            }
        }
        Ok(Keys {
            given,
            sources: Mutex::new(sources),
        })
    }

    /// The keys as they are now, each once: a pair's Secret holds its public half twice. Looks at the files' metadata, and
    /// reads those that changed.
    pub fn current(&self) -> Vec<VerifyingKey> {
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        let mut keys = self.given.clone();
        for source in sources.iter_mut() {
            for read in source.refresh() {
                match read {
                    Ok(path) => tracing::info!(path = %path.display(), "keys read again"),
                    Err(error) => tracing::warn!(%error, "the last good keys stay in use"),
                }
            }
            for key in source.files().flat_map(|file| &file.keys) {
                if !keys.contains(key) {
                    keys.push(key.clone());
                }
            }
        }
        keys
    }
}

impl Source {
    fn new(form: Form, path: PathBuf) -> Source {
        Source {
            named: File::new(form, path),
            found: BTreeMap::new(),
        }
    }

    fn is_folder(&self) -> bool {
        self.named.path.is_dir()
    }

    fn files(&self) -> impl Iterator<Item = &File> {
        std::iter::once(&self.named).chain(self.found.values())
    }

    /// Which files were read, and which could not be.
    fn refresh(&mut self) -> Vec<Result<PathBuf, SecretError>> {
        if !self.is_folder() {
            return self.named.refresh().into_iter().collect();
        }
        match listed(&self.named.path) {
            Ok(paths) => {
                self.found.retain(|path, _| paths.contains(path));
                let form = self.named.form;
                for path in paths {
                    self.found.entry(path.clone()).or_insert_with(|| File::new(form, path));
                }
                self.found.values_mut().filter_map(File::refresh).collect()
            }
            Err(source) => vec![Err(SecretError::Read {
                path: self.named.path.clone(),
                source,
            })],
        }
    }
}

/// The files of a folder, by name. A mounted Secret's own machinery begins with a dot.
fn listed(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
        if !hidden && entry.path().is_file() {
            paths.push(entry.path());
        }
    }
    paths.sort();
    paths.truncate(MAX_FILES);
    Ok(paths)
}

impl File {
    fn new(form: Form, path: PathBuf) -> File {
        File {
            path,
            form,
            stamp: None,
            keys: Vec::new(),
        }
    }

    /// Its path when it has changed and was read; none when there is nothing new.
    fn refresh(&mut self) -> Option<Result<PathBuf, SecretError>> {
        match self.read_if_changed() {
            Ok(false) => None,
            Ok(true) => Some(Ok(self.path.clone())),
            Err(error) => Some(Err(error)),
        }
    }

    /// True when the keys were read.
    fn read_if_changed(&mut self) -> Result<bool, SecretError> {
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
        let content = std::fs::read(&self.path).map_err(failed)?;
        match self.form.read(&content) {
            Ok(keys) => self.keys = keys,
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
    use crate::signing::{Scheme, public_key};

    const A: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const B: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";

    fn parsed(texts: &[&str]) -> Vec<VerifyingKey> {
        let parse = |text: &&str| VerifyingKey::parse(text).unwrap();
        texts.iter().map(parse).collect()
    }

    #[test]
    fn a_file_is_read_again_when_it_changes_and_keeps_its_keys_when_it_breaks() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("current");
        let text = |path: PathBuf| (Form::Text, path);
        let keys = Keys::new(Vec::new(), vec![text(path.clone())]).unwrap();
        assert!(keys.current().is_empty(), "a Secret that is yet to come");
        for (content, expected) in [
            (format!("{A}\n"), vec![A]),
            (format!("{B} {A}"), vec![B, A]),
            ("nonsense".to_string(), vec![B, A]),
            (B.to_string(), vec![B]),
        ] {
            let fresh = folder.path().join("fresh");
            std::fs::write(&fresh, content).unwrap();
            std::fs::rename(&fresh, &path).unwrap();
            assert_eq!(keys.current(), parsed(&expected));
        }
        std::fs::write(folder.path().join("bad"), "whsec_short").unwrap();
        let error = Keys::new(Vec::new(), vec![text(folder.path().join("bad"))]).unwrap_err();
        assert!(!error.to_string().contains("whsec_short"));
    }

    #[test]
    fn a_folder_is_as_good_as_its_files_are_now() {
        let folder = tempfile::tempdir().unwrap();
        let mounted = folder.path().join("keys");
        let open = || Keys::new(Vec::new(), vec![(Form::Text, mounted.clone())]).unwrap();
        let keys = open();
        assert!(keys.current().is_empty(), "a folder that is yet to come");
        std::fs::create_dir_all(mounted.join("..data")).unwrap();
        let write = |name: &str, content: &str| std::fs::write(mounted.join(name), content).unwrap();
        write("current", A);
        write(".being-written", "nonsense");
        assert_eq!(keys.current(), parsed(&[A]));
        write("current", B);
        write("previous", A);
        assert_eq!(keys.current(), parsed(&[B, A]), "a rotation");
        std::fs::remove_file(mounted.join("previous")).unwrap();
        assert_eq!(keys.current(), parsed(&[B]), "a key that has left is not used");
        write("publicKey", "whpk_that-is-none");
        assert_eq!(keys.current(), parsed(&[B]));
        assert_eq!(open().current().len(), 1, "what is no key is left out");
        let pair = Scheme::Ed25519.generate([7; 32]);
        let public = public_key(&pair).unwrap();
        write("current", &pair);
        write("publicKey", &public);
        assert_eq!(keys.current(), parsed(&[&public]), "a pair's Secret is one key");
    }

    #[test]
    fn a_raw_secret_is_what_its_file_holds() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, content: &[u8]| std::fs::write(folder.path().join(name), content).unwrap();
        write("current", b"whsec_ as Stripe has it\n");
        write("previous", &[0xff, b' ', 0]);
        write("nothing", b"");
        let raw = (Form::Raw, folder.path().to_owned());
        let keys = Keys::new(Vec::new(), vec![raw]).unwrap();
        let expected = [&b"whsec_ as Stripe has it"[..], &[0xff, b' ', 0]].map(|key| VerifyingKey::raw(key).unwrap());
        assert_eq!(keys.current(), expected);
    }
}
