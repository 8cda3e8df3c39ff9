//! What the examples of producers in `examples/producers` need (the SDKs of CloudEvents, Argo Events' models), installed once
//! into the cache.
//!
//! Invariant: the versions are those pinned beside the examples, where a reader finds them; what only tests need is pinned
//! beside this crate.

use std::path::PathBuf;

use anyhow::Result;

use crate::cache::{self, Folder};

macro_rules! example {
    ($path:literal) => {
        include_str!(concat!("../../../examples/producers/", $path))
    };
}

/// Where the programs are that can run the examples.
#[derive(Clone, Debug)]
pub struct Producers {
    /// A Python interpreter that imports `cloudevents`, and Argo Events' models from `hera`.
    pub python: PathBuf,
    /// A folder with the JavaScript example and its `node_modules`.
    pub javascript: PathBuf,
    /// The Go example, built.
    pub go: PathBuf,
}

impl Producers {
    /// Finds or installs all; needs python3, npm and go.
    pub fn ensure() -> Result<Producers> {
        let requirements = concat!(
            include_str!("../../../examples/producers/python/requirements.txt"),
            include_str!("../verifiers/argo-events.txt")
        );
        let folder = Folder {
            name: "producers",
            title: "the SDKs of CloudEvents for Python, JavaScript and Go",
            files: &[
                ("requirements.txt", requirements),
                ("javascript/send.mjs", example!("javascript/send.mjs")),
                ("javascript/package.json", example!("javascript/package.json")),
                ("javascript/package-lock.json", example!("javascript/package-lock.json")),
                ("go/main.go", example!("go/main.go")),
                ("go/go.mod", example!("go/go.mod")),
                ("go/go.sum", example!("go/go.sum")),
            ],
        };
        let dir = folder.ensure(|dir| {
            cache::venv(dir)?;
            cache::node_modules(&dir.join("javascript"))?;
            cache::run(&dir.join("go"), "go", &["build", "-trimpath", "-o", "producer", "."])
        })?;
        Ok(Producers {
            python: dir.join("venv/bin/python"),
            javascript: dir.join("javascript"),
            go: dir.join("go/producer"),
        })
    }
}
