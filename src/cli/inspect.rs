//! `tidings inspect`.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Context as _;
use tokio_util::sync::CancellationToken;

use crate::inspect::{self, Config, TlsFiles};
use crate::signing::SigningKeys;

/// `whsec_` keys separated by white space: the other way to give them, for containers.
const SECRET_VARIABLE: &str = "TIDINGS_INSPECT_SECRET";

#[derive(Debug, clap::Args)]
#[command(after_help = "Keys can also be given in the environment variable TIDINGS_INSPECT_SECRET.")]
pub(super) struct Args {
    /// Where it listens
    #[arg(long, default_value = "127.0.0.1:8443")]
    listen: SocketAddr,
    /// The certificate chain, PEM; without it plain HTTP
    #[arg(long, requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The certificate's private key, PEM
    #[arg(long, requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// A file of whsec_ keys separated by white space, or a folder of such files (a mounted Secret), read again when it
    /// changes; may be given several times
    #[arg(long, value_name = "PATH")]
    secret_file: Vec<PathBuf>,
}

pub(super) async fn run(args: Args, shutdown: CancellationToken) -> anyhow::Result<()> {
    let secrets = match std::env::var(SECRET_VARIABLE) {
        Ok(text) => Some(SigningKeys::parse(None, &text).with_context(|| format!("{SECRET_VARIABLE} is not usable"))?),
        Err(_) => None,
    };
    let tls = args
        .tls_cert
        .zip(args.tls_key)
        .map(|(certificate, key)| TlsFiles { certificate, key });
    let config = Config {
        listen: args.listen,
        tls,
        secret_files: args.secret_file,
        secrets,
    };
    inspect::run(config, shutdown).await
}
