//! `tidings inspect`.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Context as _;
use tokio_util::sync::CancellationToken;

use crate::inspect::keys::Form;
use crate::inspect::{self, Config};
use crate::tls::TlsFiles;

/// The other way to give keys, for containers.
const VARIABLES: [(Form, &str); 2] = [
    (Form::Text, "TIDINGS_INSPECT_SECRET"),
    (Form::Raw, "TIDINGS_INSPECT_RAW_SECRET"),
];

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Keys can also be given in the environment: TIDINGS_INSPECT_SECRET, TIDINGS_INSPECT_RAW_SECRET."
)]
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
    /// A file of keys separated by white space, whsec_ or (of Ed25519) whpk_ or whsk_, or a folder of such files (a mounted
    /// Secret), read again when it changes; may be given several times
    #[arg(long, value_name = "PATH")]
    secret_file: Vec<PathBuf>,
    /// A file of one secret as it is, for signatures in the style of GitHub or Stripe, or a folder of such files, read again
    /// when it changes; may be given several times
    #[arg(long, value_name = "PATH")]
    raw_secret_file: Vec<PathBuf>,
}

pub(super) async fn run(args: Args, shutdown: CancellationToken) -> anyhow::Result<()> {
    let mut secrets = Vec::new();
    for (form, name) in VARIABLES {
        if let Some(value) = std::env::var_os(name) {
            let keys = form.read(value.as_encoded_bytes());
            secrets.extend(keys.with_context(|| format!("{name} is not usable"))?);
        }
    }
    let files = |form: Form, paths: Vec<PathBuf>| paths.into_iter().map(move |path| (form, path));
    let secret_files = files(Form::Text, args.secret_file).chain(files(Form::Raw, args.raw_secret_file));
    let tls = args
        .tls_cert
        .zip(args.tls_key)
        .map(|(certificate, key)| TlsFiles { certificate, key });
    let config = Config {
        listen: args.listen,
        tls,
        secret_files: secret_files.collect(),
        secrets,
    };
    inspect::run(config, shutdown).await
}
