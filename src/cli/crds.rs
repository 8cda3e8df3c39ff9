//! `tidings crds`: the CustomResourceDefinitions, to standard output or as one file per kind.

use std::path::PathBuf;

use crate::api::crd;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Writes one file per kind into this folder instead
    #[arg(long)]
    out: Option<PathBuf>,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    match &args.out {
        None => print!("{}", crd::yaml()),
        Some(folder) => {
            for (name, text) in crd::files() {
                super::write(&folder.join(name), &text)?;
            }
        }
    }
    Ok(())
}
