//! `make image`: the container image of Tidings, from a release build, without a container engine, and its bill of materials.
//!
//! Invariant: what is too large is no image.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Parser;
use tidings_cluster::image::Image;
use tidings_cluster::{repository_root, sbom};

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
    /// What cargo-cyclonedx says is in the program; the image's bill of materials is written over it
    #[arg(long)]
    sbom: Option<PathBuf>,
    /// What the image is called
    #[arg(long, default_value = concat!("ghcr.io/tidings/tidings:", env!("CARGO_PKG_VERSION")))]
    name: String,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let image = Image {
        name: &args.name,
        program: &args.program,
        beside: &[],
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
    if let Some(path) = &args.sbom {
        let root = repository_root();
        let bom = fs::read_to_string(path).with_context(|| format!("failed to read {}", path.display()))?;
        let bom = sbom::complete(&bom, &root, &sbom::linked(&root)?, &image, &digest)?;
        fs::write(path, bom).with_context(|| format!("failed to write {}", path.display()))?;
        println!("{}", path.display());
    }
    println!(
        "{} {digest}\n{} ({} MiB)",
        args.name,
        args.out.display(),
        size.div_ceil(1 << 20)
    );
    Ok(())
}
