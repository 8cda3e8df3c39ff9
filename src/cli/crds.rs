//! `tidings crds`: the CustomResourceDefinitions, to standard output or as one file per kind, and their reference.

use std::path::PathBuf;

use crate::api::{crd, reference};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Writes one file per kind into this folder instead
    #[arg(long)]
    out: Option<PathBuf>,
    /// Writes the reference of all fields, in Markdown, into this file instead
    #[arg(long)]
    reference: Option<PathBuf>,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    if let Some(folder) = &args.out {
        for (name, text) in crd::files() {
            super::write(&folder.join(name), &text)?;
        }
    }
    if let Some(file) = &args.reference {
        super::write(file, &reference::markdown(&crd::crds()))?;
    }
    if args.out.is_none() && args.reference.is_none() {
        print!("{}", crd::yaml());
    }
    Ok(())
}
