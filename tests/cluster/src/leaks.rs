//! Secrets that show in logs, recognised by their form: whatever a test did, none of its processes may print one.
//!
//! Knows two forms: a signing key (`whsec_...`) and a token (a JWT with its signature). Tests that know the values look for
//! those. Invariant: what is found is told by its place, never by its value.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::path::Path;

/// The shortest key there is: 24 bytes in base64.
const KEY: usize = 32;
/// What each part of a token has at least.
const PART: usize = 16;

/// The places of all secrets in the files of a directory.
pub fn in_files(dir: &Path) -> io::Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_file() {
            for line in lines_with_secrets(&mut BufReader::new(File::open(&path)?))? {
                found.push(format!("{} line {line}", path.display()));
            }
        }
    }
    Ok(found)
}

/// Numbers of the lines with a secret, from 1.
pub fn lines_with_secrets(text: &mut impl BufRead) -> io::Result<Vec<usize>> {
    let (mut line, mut number, mut found) = (Vec::new(), 0, Vec::new());
    while text.read_until(b'\n', &mut line)? > 0 {
        number += 1;
        if has_secret(&String::from_utf8_lossy(&line)) {
            found.push(number);
        }
        line.clear();
    }
    Ok(found)
}

fn has_secret(line: &str) -> bool {
    line.match_indices("whsec_")
        .any(|(at, prefix)| run(&line[at + prefix.len()..], "+/=") >= KEY)
        || line.match_indices("eyJ").any(|(at, _)| is_token(&line[at..]))
}

/// Header, claims and signature, each in base64url.
fn is_token(text: &str) -> bool {
    let mut rest = text;
    for part in 0..3 {
        let length = run(rest, "-_");
        if length < PART {
            return false;
        }
        match (part, rest[length..].strip_prefix('.')) {
            (2, _) => {}
            (_, Some(next)) => rest = next,
            (_, None) => return false,
        }
    }
    true
}

/// How many characters of base64 a text begins with.
fn run(text: &str, more: &str) -> usize {
    text.find(|c: char| !c.is_ascii_alphanumeric() && !more.contains(c))
        .unwrap_or(text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_tokens_are_found_and_what_only_looks_like_them_is_not() {
        let key = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
        let token = "eyJhbGciOiJSUzI1NiIsImtpZCI6IngifQ.eyJpc3MiOiJrdWJlcm5ldGVzIn0.c2lnbmF0dXJlLW9mLWEtdG9rZW4";
        let text = format!(
            "nothing\nkey={key},\n{{\"authorization\":\"Bearer {token}\"}}\nwhsec_ is what keys begin with: \
             whsec_...\neyJhbGciOiJSUzI1NiIsImtpZCI6IngifQ.{{}}\n{key}\n"
        );
        assert_eq!(lines_with_secrets(&mut text.as_bytes()).unwrap(), [2, 3, 6]);
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.log"), text).unwrap();
        let found = in_files(dir.path()).unwrap();
        assert_eq!(found.len(), 3);
        assert!(found.iter().all(|place| !place.contains(key)), "{found:?}");
    }
}
