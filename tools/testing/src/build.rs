//! Builds plugins for tests and benchmarks: cargo does not build a shared library for the tests of another package.
use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

/// The folder in which cargo puts what it builds in the profile of this executable, such as `target/debug`.
fn profile_folder() -> PathBuf {
    let executable = env::current_exe().expect("this executable");
    // target/PROFILE/deps/NAME
    executable.ancestors().nth(2).expect("a target folder").to_owned()
}

/// Builds the plugin of the workspace's package `package` (such as `pollux-null`) in the profile of this executable,
/// and returns its file.
pub fn plugin(package: &str) -> PathBuf {
    let file = package_folder(package).join(format!("lib{}.so", package.replace('-', "_")));
    // Cargo leaves files as the umask says; a plugin that others may write is refused.
    protect(&file);
    file
}

/// Builds the program of the workspace's package `package` likewise, and returns its file.
pub fn program(package: &str) -> PathBuf {
    package_folder(package).join(package)
}

/// Builds a package in the profile of this executable, and returns the folder with what came of it.
fn package_folder(package: &str) -> PathBuf {
    let folder = profile_folder();
    let profile = match folder.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(name) => name,
    };
    let output = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["build", "--quiet", "--profile", profile, "-p", package, "--target-dir"])
        .arg(folder.parent().expect("a target folder"))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo");
    assert!(output.status.success(), "{package}: {}", String::from_utf8_lossy(&output.stderr));
    folder
}

/// Compiles a plugin in C from `source` and returns its file, of which there is a new one each time.
pub fn c_plugin(name: &str, source: &str) -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let folder = profile_folder().join("c-plugins").join(format!("{}-{number}", std::process::id()));
    fs::create_dir_all(&folder).expect("a folder");
    let (text, file) = (folder.join(format!("{name}.c")), folder.join(format!("libpollux_{name}.so")));
    fs::write(&text, source).expect("a source file");
    let include = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../abi/include");
    let output = Command::new("cc")
        .args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-Wno-unused", "-O1", "-shared", "-fPIC", "-o"])
        .arg(&file)
        .arg(&text)
        .arg("-I")
        .arg(include)
        .output()
        .expect("cc, which every Rust toolchain links with");
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    protect(&file);
    file
}

fn protect(file: &Path) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(file, fs::Permissions::from_mode(0o755)).expect("permissions");
}
