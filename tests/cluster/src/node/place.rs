//! Where a node runs: namespaces of its own for network, mounts and processes, so that whatever becomes of it, nothing is left.
//!
//! A program enters by running itself again inside. Its first process there is the first of its process namespace: when it
//! ends, however that is, the kernel ends every process in it, and takes back mounts and network. Invariant: outside,
//! nothing is touched but the cache and the packages that are installed.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow, bail};

use super::ADDRESS;
use crate::binaries;
use crate::cache::say;

const INSIDE: &str = "TIDINGS_NODE_INSIDE";
/// What a node needs beside Kubernetes itself: a program, and its package in Debian.
const PROGRAMS: [(&str, &str); 6] = [
    ("containerd", "containerd"),
    ("runc", "runc"),
    ("/usr/lib/cni/bridge", "containernetworking-plugins"),
    ("iptables", "iptables"),
    ("conntrack", "conntrack"),
    ("ip", "iproute2"),
];
/// The control group that the kubelet puts pods in.
const PODS: &str = "kubepods";
/// Folders that containerd, kubelet and network plugins write to whatever they are told: inside they are empty and in memory.
const OWN: [&str; 3] = ["/run", "/var/lib", "/var/log"];

/// Whether this process is inside already.
pub fn inside() -> bool {
    std::env::var_os(INSIDE).is_some() && std::process::id() == 1
}

/// Makes everything ready that needs the outside, what the caller names too, then runs this program again inside, with the
/// same arguments. Returns why there can be no node on this machine.
pub fn enter(prepare: impl FnOnce() -> Result<()>) -> Result<String> {
    if let Some(why) = impossible() {
        return Ok(why);
    }
    if let Err(error) = install() {
        return Ok(format!("{error:#}"));
    }
    binaries::Binaries::ensure()?;
    binaries::node()?;
    prepare()?;
    let program = std::env::current_exe().context("failed to find this program")?;
    let error = Command::new("unshare")
        .args(["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"])
        .args(["--propagation", "private", "--"])
        .arg(program)
        .args(std::env::args_os().skip(1))
        .env(INSIDE, "1")
        .exec();
    Err(anyhow!(error).context("failed to run unshare"))
}

/// Why not, where no program that could be installed would help.
fn impossible() -> Option<String> {
    // SAFETY: looks at who we are.
    if unsafe { libc::geteuid() } != 0 {
        return Some("a node needs root".into());
    }
    let tried = Command::new("unshare")
        .args([
            "--net",
            "--mount",
            "--pid",
            "--fork",
            "--mount-proc",
            "--propagation",
            "private",
        ])
        .args([
            "sh",
            "-c",
            "ip link add try0 type veth peer name try1 && ip link add try2 type bridge && mount -t tmpfs none /run",
        ])
        .output();
    match tried {
        Ok(output) if output.status.success() => {}
        Ok(output) => {
            let why = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
            return Some(format!(
                "a node needs namespaces, bridges and pairs of virtual links: {why}"
            ));
        }
        Err(error) => return Some(format!("a node needs unshare: {error}")),
    }
    if cgroups(PODS).iter().any(|folder| occupied(folder)) {
        return Some("this machine is a node of Kubernetes already".into());
    }
    let lacks = missing();
    if !lacks.is_empty() && !found("apt-get") {
        return Some(format!(
            "a node needs {}, and there is no apt-get to install them",
            lacks.join(", ")
        ));
    }
    None
}

/// Debian's packages of what is not here.
fn missing() -> Vec<&'static str> {
    let lacks = PROGRAMS.iter().filter(|(program, _)| !found(program));
    lacks.map(|(_, package)| *package).collect()
}

/// Installs what is missing.
fn install() -> Result<()> {
    let lacks = missing();
    if lacks.is_empty() {
        return Ok(());
    }
    say(&format!("installing {}, which a node needs ...", lacks.join(", ")));
    let install = ["install", "--yes", "--no-install-recommends"];
    for args in [vec!["update"], install.into_iter().chain(lacks).collect()] {
        let output = Command::new("apt-get")
            .args(&args)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .output()
            .context("failed to run apt-get")?;
        if !output.status.success() {
            bail!(
                "apt-get {} failed: {}",
                args.join(" "),
                String::from_utf8_lossy(&output.stderr)
            );
        }
    }
    Ok(())
}

fn found(program: &str) -> bool {
    let folders = [
        "/usr/local/sbin",
        "/usr/local/bin",
        "/usr/sbin",
        "/usr/bin",
        "/sbin",
        "/bin",
    ];
    folders.iter().any(|folder| Path::new(folder).join(program).is_file())
}

/// The folder of this name in each hierarchy of control groups.
fn cgroups(name: &str) -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    let below = fs::read_dir(root)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path().join(name));
    below.chain([root.join(name)]).collect()
}

/// A network of one machine, and folders of its own.
pub(super) fn furnish() -> Result<()> {
    if !inside() {
        bail!("a node runs inside namespaces of its own: call node::enter() first");
    }
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        let end: extern "C" fn(libc::c_int) = end;
        // SAFETY: what it does is async-signal-safe. Without one, the first process of a namespace ignores these signals.
        unsafe { libc::signal(signal, end as libc::sighandler_t) };
    }
    // Of one that was killed: nobody is in them.
    remove_cgroups();
    // What is mounted into pods shows where kubelet mounted it, and nowhere outside.
    mount("none", "/", "", libc::MS_SHARED | libc::MS_REC)?;
    for folder in OWN {
        mount("tmpfs", folder, "tmpfs", 0)?;
    }
    for args in [
        "link set lo up",
        "link add node type veth peer name node-peer",
        &format!("addr add {ADDRESS}/24 dev node"),
        "link set node up",
        "link set node-peer up",
        &format!("route add default via {ADDRESS}"),
    ] {
        let output = Command::new("ip")
            .args(args.split(' '))
            .output()
            .context("failed to run ip")?;
        if !output.status.success() {
            bail!("ip {args} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
    }
    fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("failed to forward between networks")
}

/// With the first process of a namespace the kernel ends all others.
extern "C" fn end(signal: libc::c_int) {
    // SAFETY: ends the process, and does nothing else.
    unsafe { libc::_exit(128 + signal) };
}

/// Ends every other process inside, and unmounts what is mounted below a folder.
pub(super) fn clear(below: &Path) {
    if !inside() {
        return;
    }
    // SAFETY: we are the first process of our namespace: this reaches all others in it, and nobody outside.
    unsafe { libc::kill(-1, libc::SIGKILL) };
    // SAFETY: waits for children, whose status nobody needs any more.
    while unsafe { libc::waitpid(-1, std::ptr::null_mut(), 0) } > 0 {}
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    for point in mounts.lines().rev().filter_map(|line| line.split(' ').nth(1)) {
        if Path::new(point).starts_with(below)
            && let Ok(point) = CString::new(point)
        {
            // SAFETY: reads one string of ours.
            unsafe { libc::umount2(point.as_ptr(), libc::MNT_DETACH) };
        }
    }
    // Pods' control groups outlive their processes, and belong to no namespace.
    remove_cgroups();
}

fn remove_cgroups() {
    for folder in cgroups(PODS) {
        remove_cgroup(&folder);
    }
}

/// Whether a control group, or one in it, has processes.
fn occupied(folder: &Path) -> bool {
    let processes = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    let mut below = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path());
    !processes.is_empty() || below.any(|path| path.is_dir() && occupied(&path))
}

/// Only empty ones can be removed, the innermost first; their files are the kernel's.
fn remove_cgroup(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove_cgroup(&entry.path());
        }
    }
    let _ = fs::remove_dir(folder);
}

fn mount(source: &str, target: &str, kind: &str, flags: libc::c_ulong) -> Result<()> {
    let [from, to, what] = [source, target, kind].map(|text| CString::new(text).unwrap_or_default());
    // SAFETY: reads three strings of ours.
    let done = unsafe { libc::mount(from.as_ptr(), to.as_ptr(), what.as_ptr(), flags, std::ptr::null()) };
    match done {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()).with_context(|| format!("failed to mount {target}")),
    }
}
