//! `make image`: the container image of Tidings, from a release build, without a container engine.
//!
//! Invariant: what is too large is no image.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Parser;
use tidings_cluster::image::Image;

/// What a node pulls in a moment, and what a look into the image still takes in.
const LARGEST: u64 = 40 << 20;

/// Makes the container image of Tidings
#[derive(Debug, Parser)]
struct Args {
    /// The release build of `tidings`
    #[arg(long, default_value = "target/release/tidings")]
    program: PathBuf,
    /// Where the archive goes: an OCI image layout that containerd, podman, skopeo and docker load
    #[arg(long, default_value = "target/image/tidings.tar")]
    out: PathBuf,
    /// What the image is called
    #[arg(long, default_value = concat!("ghcr.io/tidings/tidings:", env!("CARGO_PKG_VERSION")))]
    name: String,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let image = Image {
        name: &args.name,
        program: &args.program,
        labels: BTreeMap::from([
            ("org.opencontainers.image.title", "Tidings"),
            (
                "org.opencontainers.image.description",
                "A Kubernetes operator for outgoing webhooks",
            ),
            ("org.opencontainers.image.licenses", env!("CARGO_PKG_LICENSE")),
            ("org.opencontainers.image.version", env!("CARGO_PKG_VERSION")),
        ]),
    };
    let digest = image.write(&args.out)?;
    let size = fs::metadata(&args.out).context("failed to look at the archive")?.len();
    if size > LARGEST {
        fs::remove_file(&args.out).context("failed to remove the archive")?;
        bail!("the image has {size} bytes, and may have {LARGEST}: was it a release build?");
    }
    println!(
        "{} {digest}\n{} ({} MiB)",
        args.name,
        args.out.display(),
        size.div_ceil(1 << 20)
    );
    Ok(())
}
