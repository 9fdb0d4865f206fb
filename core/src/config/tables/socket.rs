//! The key `socket` of a device that is served over vhost-user.
use crate::{
    config::{
        context::Context,
        diagnostic::{Diagnostic, Spanned, reason},
        read::{Item, Table},
    },
    transport::vhost_user::socket::{PATH_BYTES_MAX, SocketSpec},
};
use nix::unistd::{Group, User};
use std::{fs, io, os::unix::fs::FileTypeExt, path::Path};
use toml::de::DeValue;

const EXAMPLE: &str = "socket = \"/run/pollux/blk0.sock\"";

/// Reads `socket = "/run/pollux/blk0.sock"`, or a table: `socket = { path = …, mode = "0660", owner = "qemu", group =
/// "kvm", memory_files = "any" }`. The span is the path's.
pub(super) fn socket(table: &Table<'_>, context: &Context<'_>) -> Option<Spanned<SocketSpec>> {
    let item = table.required_item("socket", EXAMPLE)?;
    let (path, mode, user, group, any_file) = match item.table() {
        None => (item.read::<String>(), None, None, None, false),
        Some(inner) => {
            let path = inner.required::<String>("path", "path = \"/run/pollux/blk0.sock\"");
            let mode = inner.item("mode", "mode = \"0660\"").and_then(|item| mode(&item));
            let user = inner.item("owner", "owner = \"qemu\"").and_then(|item| id(&item, "user", user_id));
            let group = inner.item("group", "group = \"kvm\"").and_then(|item| id(&item, "group", group_id));
            let any_file = inner.item("memory_files", "memory_files = \"memory\"").is_some_and(|item| any_file(&item));
            inner.finish("");
            (path, mode, user, group, any_file)
        }
    };
    let name = path?;
    let path = context.path(&name.value);
    if let Some((problem, help)) = unusable(&path, context.folder) {
        let message = format!("cannot make the socket {}: {problem}", path.display());
        table.report(Diagnostic::error(message).at(&name.span, "").help(help));
    }
    Some(Spanned::new(SocketSpec { path, mode, user, group, any_file }, name.span))
}

/// Why no socket can be made there, and what to write instead. An existing one may be stale.
fn unusable(path: &Path, folder: &Path) -> Option<(String, String)> {
    let bytes = path.as_os_str().len();
    // The process works in the configuration's folder, so what lies there has a short name as well.
    let from_folder = path.strip_prefix(folder).map_or(bytes, |name| name.as_os_str().len());
    if bytes.min(from_folder) > PATH_BYTES_MAX {
        let problem = format!("the path has {bytes} bytes, and sockets have room for {PATH_BYTES_MAX}");
        let name = path.file_name().unwrap_or_default();
        let link = Path::new("/run/disks").join(name);
        let help = match path.parent() {
            Some(folder) if link.as_os_str().len() <= PATH_BYTES_MAX => {
                let (folder, link) = (folder.display(), link.display());
                format!("make a short way to its folder: ln -s {folder} /run/disks, and write socket = \"{link}\"")
            }
            _ => "write a shorter path, such as one in /run/pollux".into(),
        };
        return Some((problem, help));
    }
    if let Some(folder) = path.parent().filter(|folder| !folder.is_dir()) {
        let problem = format!("there is no folder {}", folder.display());
        return Some((problem, format!("make it: mkdir -p {}", folder.display())));
    }
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => Some((reason(&error), "choose another path".into())),
        Ok(found) if found.is_dir() => Some(("it is a folder".into(), "name a file in it".into())),
        Ok(found) if !found.file_type().is_socket() => {
            Some(("something is there that is no socket".into(), "remove it, or choose another path".into()))
        }
        Ok(_) => None,
    }
}

/// `mode = "0660"`: as chmod takes it. A number without quotes is refused, since it would be decimal.
fn mode(item: &Item<'_>) -> Option<u32> {
    let digits = match item.value {
        DeValue::String(text) => text.as_ref(),
        other => {
            let digits = match other {
                DeValue::Integer(number) => number.as_str(),
                _ => "660",
            };
            item.refuse("`mode` must be a string of octal digits".into(), format!("write mode = \"{digits:0>4}\""));
            return None;
        }
    };
    let is_octal = (3..=4).contains(&digits.len()) && digits.bytes().all(|byte| (b'0'..=b'7').contains(&byte));
    let mode = u32::from_str_radix(digits, 8).ok().filter(|mode| is_octal && *mode <= 0o777);
    if mode.is_none() {
        item.refuse(
            format!("`mode` cannot be \"{digits}\""),
            "write permissions as chmod takes them, such as \"0660\"",
        );
    }
    mode
}

/// `memory_files = "memory"` or `"any"`: which files a front end may share as its guest's memory.
fn any_file(item: &Item<'_>) -> bool {
    let value = item.read::<String>();
    match value.as_ref().map(|value| value.value.as_str()) {
        Some("any") => true,
        Some("memory") | None => false,
        Some(other) => {
            item.refuse(
                format!("`memory_files` cannot be \"{other}\""),
                "write \"memory\", for memfd, tmpfs and hugetlbfs alone, or \"any\"",
            );
            false
        }
    }
}

/// `owner = "qemu"` or `owner = 107`: the id of a name, or an id as it is.
fn id(item: &Item<'_>, noun: &str, find: impl Fn(&str) -> io::Result<Option<u32>>) -> Option<u32> {
    if matches!(item.value, DeValue::Integer(_)) {
        // The last number means "leave it" to chown(2).
        let number = item.read::<u64>()?.value;
        let id = u32::try_from(number).ok().filter(|id| *id != u32::MAX);
        if id.is_none() {
            item.refuse(format!("there is no {noun} {number}"), format!("write the name of a {noun}, or its number"));
        }
        return id;
    }
    let name = item.read::<String>()?.value;
    match find(&name) {
        Ok(Some(id)) => Some(id),
        Ok(None) => {
            let help = match name.parse::<u32>() {
                Ok(number) => format!("write {} = {number}, or the name of a {noun}", item.key),
                Err(_) => format!("write the name of a {noun} on this host, or its number"),
            };
            item.refuse(format!("there is no {noun} \"{name}\""), help);
            None
        }
        Err(error) => {
            let message = format!("cannot look for the {noun} \"{name}\": {}", reason(&error));
            item.refuse(message, format!("write its number: {} = 107", item.key));
            None
        }
    }
}

fn user_id(name: &str) -> io::Result<Option<u32>> {
    Ok(User::from_name(name)?.map(|user| user.uid.as_raw()))
}

fn group_id(name: &str) -> io::Result<Option<u32>> {
    Ok(Group::from_name(name)?.map(|group| group.gid.as_raw()))
}
