//! Looks for known secrets wherever somebody without access to Secrets can look.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tidings_cluster::{Cluster, Controller, Dispatcher};

/// Values that must not show, by what they are.
#[derive(Default)]
pub struct Scan {
    pub secrets: BTreeMap<String, String>,
}

impl Scan {
    pub fn add(&mut self, what: &str, value: &str) {
        assert!(value.len() >= 12, "{what} is too short to be told from other text");
        self.secrets.insert(what.to_owned(), value.to_owned());
    }

    /// The ways in which a value would show: as it is, as a Secret's data, as Debug of its bytes, in hexadecimal.
    pub fn forms(value: &str) -> Vec<String> {
        let bytes: Vec<String> = value.bytes().map(|byte| byte.to_string()).collect();
        let hex: String = value.bytes().map(|byte| format!("{byte:02x}")).collect();
        let mut forms = vec![value.to_owned(), STANDARD.encode(value), bytes.join(", "), hex];
        if let Some(encoded) = value.strip_prefix("whsec_") {
            forms.push(encoded.to_owned());
            if let Ok(key) = STANDARD.decode(encoded) {
                let bytes: Vec<String> = key.iter().map(u8::to_string).collect();
                forms.extend([bytes.join(", "), key.iter().map(|byte| format!("{byte:02x}")).collect()]);
            }
        }
        // A token's signature alone is the secret part of it.
        if value.split('.').count() == 3 {
            forms.extend(value.rsplit('.').next().map(str::to_owned));
        }
        forms
    }

    /// Which secrets are in a text.
    pub fn find(&self, place: &str, text: &[u8]) -> Vec<String> {
        let text = String::from_utf8_lossy(text);
        let mut found = Vec::new();
        for (what, value) in &self.secrets {
            for form in Scan::forms(value) {
                if let Some(at) = text.find(&form) {
                    let line = text[..at].rfind('\n').map_or(0, |newline| newline + 1);
                    let before: String = text[line..at].chars().take(300).collect();
                    found.push(format!("{what} in {place}, after {before:?}"));
                }
            }
        }
        found
    }

    /// Which are in the files of a directory.
    fn find_in(&self, dir: &Path) -> Vec<String> {
        let mut found = Vec::new();
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                found.extend(self.find_in(&path));
            } else {
                found.extend(self.find(&path.display().to_string(), &fs::read(&path).unwrap()));
            }
        }
        found
    }

    /// Which are in anything that somebody without access to Secrets can see.
    pub fn find_everywhere(&self, cluster: &Cluster, controller: &Controller, dispatcher: &Dispatcher) -> Vec<String> {
        let mut found = self.find_in(&cluster.logs_dir());
        found.extend(self.find("what Kubernetes shows", shown(cluster).as_bytes()));
        for (place, metrics) in [
            ("controller", controller.metrics()),
            ("dispatcher", dispatcher.metrics()),
        ] {
            found.extend(self.find(&format!("metrics of the {place}"), metrics.unwrap().as_bytes()));
        }
        found.extend(self.find_in(&dispatcher.data_dir));
        found
    }
}

/// All that Tidings writes in Kubernetes but Secrets.
pub fn shown(cluster: &Cluster) -> String {
    let kinds = "events.events.k8s.io,whe,evsub,evtype,leases,roles,rolebindings";
    cluster.kubectl_ok(&["get", kinds, "-A", "-o", "yaml"]).unwrap()
}
