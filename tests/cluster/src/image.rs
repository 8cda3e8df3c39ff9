//! A container image, made without a container engine: one layer with a program and the shared libraries it needs.
//!
//! An OCI image layout in a tar, which containerd, podman, skopeo and docker load (docker also by `manifest.json`). Knows
//! nothing of what the program does. Invariant: the same program and libraries make the same bytes, whoever builds, and when.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::json;
use sha2::{Digest, Sha256};

/// Nobody in particular: the user of distroless images.
const USER: u32 = 65532;
const PATH: &str = "/usr/bin";

/// What an image is made of.
#[derive(Debug)]
pub struct Image<'a> {
    /// `repository:tag`.
    pub name: &'a str,
    /// The program, which becomes the entry point; its symbols are left out.
    pub program: &'a Path,
    /// Other programs that are found by their names.
    pub beside: &'a [&'a Path],
    pub labels: BTreeMap<&'a str, &'a str>,
}

/// A file of the layer: where it is in the image, and what is in it.
type Files = BTreeMap<PathBuf, Vec<u8>>;

impl Image<'_> {
    /// Writes the archive, and returns the digest of the image's manifest (`sha256:...`).
    pub fn write(&self, archive: &Path) -> Result<String> {
        let files = self.files()?;
        let entry = Path::new(PATH).join(file_name(self.program)?);
        let layer = layer(&files).context("failed to make the layer")?;
        let platform = json!({"os": "linux", "architecture": architecture()});
        let config = json!({
            "created": "1970-01-01T00:00:00Z",
            "os": platform["os"],
            "architecture": platform["architecture"],
            "config": {
                "User": format!("{USER}:{USER}"),
                "Env": [format!("PATH={PATH}")],
                "Entrypoint": [entry],
                "WorkingDir": "/",
                "Labels": self.labels,
            },
            "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]},
            "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "tidings-image"}],
        })
        .to_string()
        .into_bytes();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
            "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", &layer)],
        })
        .to_string()
        .into_bytes();
        let mut described = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
        described["platform"] = platform;
        described["annotations"] = json!({
            "io.containerd.image.name": self.name,
            "org.opencontainers.image.ref.name": self.name.rsplit_once(':').map_or(self.name, |(_, tag)| tag),
        });
        let index = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [described],
        });
        let docker = json!([{"Config": blob(&config), "RepoTags": [self.name], "Layers": [blob(&layer)]}]);

        let whole: Files = [
            ("oci-layout".into(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
            ("index.json".into(), index.to_string().into_bytes()),
            ("manifest.json".into(), docker.to_string().into_bytes()),
            (blob(&config).into(), config.clone()),
            (blob(&layer).into(), layer.clone()),
            (blob(&manifest).into(), manifest.clone()),
        ]
        .into();
        let bytes = tar(&whole, 0o644).context("failed to make the archive")?;
        if let Some(parent) = archive.parent() {
            fs::create_dir_all(parent).with_context(|| format!("failed to create {}", parent.display()))?;
        }
        // Elsewhere first: an archive under its name is whole.
        let mut file = tempfile::NamedTempFile::new_in(archive.parent().unwrap_or(Path::new(".")))
            .context("failed to create the archive")?;
        file.write_all(&bytes).context("failed to write the archive")?;
        file.persist(archive)
            .with_context(|| format!("failed to write {}", archive.display()))?;
        Ok(digest(&manifest))
    }

    /// The shared libraries that the programs load, which the image has too.
    pub fn libraries(&self) -> Result<BTreeMap<PathBuf, Vec<u8>>> {
        let mut libraries = BTreeMap::new();
        for program in self.programs() {
            for library in shared_libraries(program)? {
                let bytes = fs::read(&library).with_context(|| format!("failed to read {}", library.display()))?;
                libraries.insert(library, bytes);
            }
        }
        Ok(libraries)
    }

    fn programs(&self) -> impl Iterator<Item = &Path> {
        std::iter::once(self.program).chain(self.beside.iter().copied())
    }

    fn files(&self) -> Result<Files> {
        let mut files = self.libraries()?;
        for program in self.programs() {
            files.insert(Path::new(PATH).join(file_name(program)?), stripped(program)?);
        }
        let passwd = format!("root:x:0:0:root:/:/sbin/nologin\nnonroot:x:{USER}:{USER}:nonroot:/:/sbin/nologin\n");
        files.insert("/etc/passwd".into(), passwd.into_bytes());
        Ok(files)
    }
}

fn file_name(program: &Path) -> Result<&Path> {
    program.file_name().map(Path::new).context("the program has no name")
}

/// The names that Go has for machines, which images use.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// What the loader would load for a program, itself included; nothing for a static one.
fn shared_libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd")
        .arg(program)
        .env("LC_ALL", "C")
        .output()
        .context("failed to run ldd")?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    if said.contains("not a dynamic executable") || said.contains("statically linked") {
        return Ok(Vec::new());
    }
    if !output.status.success() || said.contains("not found") {
        bail!("ldd {} failed: {}", program.display(), said.trim());
    }
    // `name => /path (address)`, or `/path (address)` for the loader; the kernel's own has no path.
    let paths = said
        .lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    Ok(paths.map(PathBuf::from).collect())
}

fn stripped(program: &Path) -> Result<Vec<u8>> {
    let out = tempfile::NamedTempFile::new().context("failed to create a temporary file")?;
    // The build id is of the unstripped program too, whose line tables name the folder it was built in.
    let output = Command::new("strip")
        .args(["--strip-all", "--enable-deterministic-archives"])
        .args(["--remove-section=.note.gnu.build-id", "-o"])
        .args([out.path(), program])
        .output()
        .context("failed to run strip, which comes with every C compiler")?;
    if !output.status.success() {
        bail!("strip failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    fs::read(out.path()).context("failed to read the stripped program")
}

fn layer(files: &Files) -> Result<Vec<u8>> {
    tar(files, 0o755)
}

/// A tar of these files and the folders above them, owned by root, of no time.
fn tar(files: &Files, mode: u32) -> Result<Vec<u8>> {
    let mut folders: Vec<&Path> = files
        .keys()
        .flat_map(|path| path.ancestors().skip(1))
        .filter(|path| path.file_name().is_some())
        .collect();
    folders.sort_unstable();
    folders.dedup();
    let mut builder = tar::Builder::new(Vec::new());
    let header = |kind, mode, size| {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(size);
        header
    };
    for folder in folders {
        let mut header = header(tar::EntryType::Directory, 0o755, 0);
        builder.append_data(&mut header, relative(folder), std::io::empty())?;
    }
    for (path, bytes) in files {
        let mut header = header(tar::EntryType::Regular, mode, bytes.len() as u64);
        builder.append_data(&mut header, relative(path), bytes.as_slice())?;
    }
    Ok(builder.into_inner()?)
}

fn relative(path: &Path) -> &Path {
    path.strip_prefix("/").unwrap_or(path)
}

pub(crate) fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(bytes))
}

fn blob(bytes: &[u8]) -> String {
    format!("blobs/sha256/{}", hex(bytes))
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn descriptor(media_type: &str, bytes: &[u8]) -> serde_json::Value {
    json!({"mediaType": media_type, "digest": digest(bytes), "size": bytes.len()})
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn image(program: &Path) -> Image<'_> {
        Image {
            name: "example.com/true:1",
            program,
            beside: &[],
            labels: BTreeMap::from([("org.opencontainers.image.version", "1")]),
        }
    }

    #[test]
    fn the_dockerfile_builds_with_the_toolchain_that_is_pinned() {
        let read = |name: &str| fs::read_to_string(crate::repository_root().join(name)).unwrap();
        let (toolchain, dockerfile) = (read("rust-toolchain.toml"), read("Dockerfile"));
        let version = toolchain
            .lines()
            .find_map(|line| line.strip_prefix("channel = \"")?.strip_suffix('"'));
        let version = version.unwrap();
        let named = ["FROM rust:", "ENV RUSTUP_TOOLCHAIN="].map(|before| {
            let lines = dockerfile.lines().filter_map(|line| line.strip_prefix(before));
            lines.map(|rest| rest.split('-').next().unwrap()).collect::<Vec<_>>()
        });
        assert_eq!(named, [[version], [version]]);
    }

    #[test]
    fn the_same_program_makes_the_same_image_whenever_it_is_made_and_another_makes_another() {
        let dir = tempfile::tempdir().unwrap();
        let programs = ["one/true", "two/true"].map(|name| dir.path().join(name));
        for program in &programs {
            fs::create_dir(program.parent().unwrap()).unwrap();
            fs::copy("/bin/true", program).unwrap();
        }
        // Times and owners of files are of the machine, not of what is in them.
        let long_ago = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1);
        fs::File::options()
            .write(true)
            .open(&programs[1])
            .unwrap()
            .set_modified(long_ago)
            .unwrap();
        let made = programs.each_ref().map(|program| {
            let archive = program.with_extension("tar");
            (image(program).write(&archive).unwrap(), fs::read(archive).unwrap())
        });
        assert!(made[0] == made[1], "bytes and digest are the same");
        fs::copy("/bin/false", &programs[0]).unwrap();
        assert_ne!(
            image(&programs[0]).write(&dir.path().join("other.tar")).unwrap(),
            made[0].0
        );
    }

    #[test]
    fn a_program_that_is_built_in_another_folder_makes_the_same_image() {
        let dir = tempfile::tempdir().unwrap();
        let built = ["one", "two"].map(|folder| {
            let folder = dir.path().join(folder);
            fs::create_dir(&folder).unwrap();
            fs::write(folder.join("main.c"), "int main(void) { return 0; }").unwrap();
            let output = Command::new("cc")
                .args(["-g", "-Wl,--build-id", "-o", "program", "main.c"])
                .current_dir(&folder)
                .output()
                .unwrap();
            assert!(output.status.success(), "{output:?}");
            folder.join("program")
        });
        let [one, two] = built.each_ref().map(|program| fs::read(program).unwrap());
        assert!(one != two, "the folder is in the line tables");
        let [one, two] = built.map(|program| image(&program).write(&dir.path().join("image.tar")).unwrap());
        assert_eq!(one, two);
    }

    #[test]
    fn what_the_manifest_names_is_there_and_runs_as_nobody_with_all_it_needs() {
        let dir = tempfile::tempdir().unwrap();
        let archive = dir.path().join("image.tar");
        let program = fs::canonicalize("/bin/true").unwrap();
        let both = Image {
            beside: &[Path::new("/bin/false")],
            ..image(&program)
        };
        let digest = both.write(&archive).unwrap();
        let blobs = entries(&fs::read(&archive).unwrap());
        let read = |path: &str| -> serde_json::Value { serde_json::from_slice(&blobs[path].1).unwrap() };
        let of = |digest: &serde_json::Value| digest.as_str().unwrap().replace("sha256:", "blobs/sha256/");

        let index = read("index.json");
        assert_eq!(index["manifests"][0]["digest"], digest);
        let manifest = read(&of(&index["manifests"][0]["digest"]));
        let config = read(&of(&manifest["config"]["digest"]));
        assert_eq!(config["config"]["User"], "65532:65532");
        assert_eq!(config["config"]["Entrypoint"], json!(["/usr/bin/true"]));
        assert_eq!(config["rootfs"]["diff_ids"][0], manifest["layers"][0]["digest"]);
        let layer = &blobs[&of(&manifest["layers"][0]["digest"])].1;
        assert_eq!(layer.len(), manifest["layers"][0]["size"].as_u64().unwrap() as usize);

        let files = entries(layer);
        for program in ["usr/bin/true", "usr/bin/false"] {
            assert_eq!(files[program].0, 0o755);
        }
        for library in shared_libraries(&program).unwrap() {
            let name = relative(&library).to_str().unwrap();
            assert_eq!(files[name].1, fs::read(&library).unwrap(), "{name}");
        }
        assert!(files.keys().any(|name| name.contains("libc.so")), "{:?}", files.keys());
    }

    fn entries(bytes: &[u8]) -> BTreeMap<String, (u32, Vec<u8>)> {
        let mut archive = tar::Archive::new(bytes);
        let entries = archive.entries().unwrap();
        entries
            .map(|entry| {
                let mut entry = entry.unwrap();
                let name = entry.path().unwrap().to_str().unwrap().to_owned();
                let (mode, mut content) = (entry.header().mode().unwrap(), Vec::new());
                entry.read_to_end(&mut content).unwrap();
                (name, (mode, content))
            })
            .collect()
    }
}
