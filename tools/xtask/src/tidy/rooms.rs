//! Which room may import which, and no circles.
//!
//! A room is a folder or a file directly below a crate's root. What counts as an import is said in [`super::imports`].
use super::imports::{Crate, Import};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// A room, and the rooms that it may import.
type Room = (&'static str, &'static [&'static str]);

/// Crates that have several folders, by their roots; a room may import rooms above it alone, and those are named.
/// The root itself is no room: it may import all of them.
const ROOMS: &[(&str, &[Room])] = &[
    (
        "core/src/lib.rs",
        &[
            ("cpus", &[]),
            ("error", &[]),
            ("fallible", &[]),
            ("log_budget", &[]),
            ("event", &["log_budget"]),
            ("memory", &["error"]),
            ("stats", &["memory"]),
            ("ring", &["event", "fallible", "memory"]),
            ("worker", &["cpus", "event", "memory", "stats"]),
            ("plugin", &["fallible", "log_budget", "memory"]),
            ("queue", &["event", "fallible", "log_budget", "memory", "ring", "stats", "worker"]),
            ("block", &["fallible", "memory", "plugin", "stats", "worker"]),
            (
                "device",
                &["block", "event", "fallible", "log_budget", "memory", "plugin", "queue", "ring", "stats", "worker"],
            ),
            ("transport", &["device", "event", "log_budget", "memory", "queue", "ring", "worker"]),
            ("config", &["cpus", "device", "queue", "transport", "worker"]),
        ],
    ),
    (
        "tools/loadgen/src/lib.rs",
        &[
            ("latency", &[]),
            ("pinning", &[]),
            ("series", &[]),
            ("units", &[]),
            ("wait", &[]),
            ("roundtrip", &["pinning"]),
            ("ideal", &["pinning"]),
            ("slots", &[]),
            ("workload", &["slots"]),
            ("verify", &["slots", "workload"]),
            ("queue", &["slots", "wait"]),
            ("frontend", &["ideal", "queue", "slots", "wait"]),
            ("load", &["frontend", "latency", "queue", "series", "slots", "verify", "workload"]),
            ("machine", &["load", "units"]),
            ("campaign", &["frontend", "ideal", "load", "roundtrip", "verify", "workload"]),
            ("report", &["campaign", "frontend", "latency", "load", "machine", "units"]),
        ],
    ),
    (
        "tools/xtask/src/main.rs",
        &[
            ("host", &[]),
            ("process", &[]),
            ("project", &[]),
            ("summary", &["process"]),
            ("lab", &["process", "project"]),
            ("image", &["lab", "process"]),
            ("boot_disk", &["image"]),
            ("guest_program", &["process", "project"]),
            ("setup", &["boot_disk", "host", "lab", "process", "project"]),
            ("cargo_test", &["summary"]),
            ("demo", &["host", "lab", "process", "project", "setup", "summary"]),
            ("fuzz", &["host", "process", "project", "setup", "summary"]),
            ("instructions", &["host", "process", "project", "setup", "summary"]),
            ("lab_tests", &["guest_program", "image", "lab", "process", "project", "setup", "summary"]),
            (
                "qemu_tests",
                &["boot_disk", "guest_program", "host", "image", "lab", "process", "project", "setup", "summary"],
            ),
            ("tidy", &["project", "summary"]),
            (
                "test",
                &[
                    "cargo_test",
                    "demo",
                    "fuzz",
                    "instructions",
                    "lab_tests",
                    "process",
                    "project",
                    "qemu_tests",
                    "setup",
                    "summary",
                    "tidy",
                ],
            ),
        ],
    ),
    (
        "vmm/src/lib.rs",
        &[
            ("bus", &[]),
            ("exits", &[]),
            ("layout", &[]),
            ("terminal", &[]),
            ("acpi", &["layout"]),
            ("boot", &["layout"]),
            ("irq", &["layout"]),
            ("serial", &["bus"]),
            ("shutdown", &["terminal"]),
            ("vm", &["layout"]),
            ("console", &["serial", "terminal"]),
            ("spec", &["boot", "console"]),
            ("mmio", &["acpi", "bus", "layout"]),
            ("pci", &["bus", "irq", "layout"]),
            ("vcpu_error", &[]),
            ("verbs", &[]),
            ("control", &["vcpu_error"]),
            ("vcpu", &["bus", "control", "exits", "vcpu_error"]),
            ("platform", &["bus", "control", "layout"]),
            ("attached", &[]),
            ("error", &["boot", "bus", "pci", "vcpu_error"]),
            ("parts", &["attached", "boot", "error", "exits", "spec"]),
            (
                "cycle",
                &[
                    "acpi", "attached", "boot", "bus", "console", "control", "error", "irq", "layout", "mmio", "parts",
                    "pci", "platform", "serial", "shutdown", "spec", "vcpu", "verbs", "vm",
                ],
            ),
            (
                "machine",
                &[
                    "attached", "boot", "console", "cycle", "error", "exits", "layout", "mmio", "parts", "pci",
                    "shutdown", "spec", "vcpu", "verbs", "vm",
                ],
            ),
        ],
    ),
];

/// What is wrong with the table, and imports that it does not allow.
pub(super) fn imports(crates: &[Crate]) -> Vec<String> {
    let mut faults = Vec::new();
    for of in crates {
        match ROOMS.iter().find(|(root, _)| *root == of.root) {
            Some((_, table)) => faults.extend(against(of, table)),
            None if folders(of) > 1 && of.root.contains("src/") => {
                faults.push(format!("{}: has several folders: say in {HERE} what each room may import", of.root));
            }
            None => {}
        }
    }
    faults
}

const HERE: &str = "tools/xtask/src/tidy/rooms.rs";

/// Imports of a crate that its table does not allow, and rows of it that are wrong.
fn against(of: &Crate, table: &[Room]) -> Vec<String> {
    let mut faults = Vec::new();
    for (place, (room, allowed)) in table.iter().enumerate() {
        if !of.files.iter().any(|file| room_of(of, file) == Some(room)) {
            faults.push(format!("{}: there is no room {room} any more: remove it from {HERE}", of.root));
        }
        let is_above = |other: &&str| table[..place].iter().any(|(room, _)| room == other);
        for other in allowed.iter().filter(|other| !is_above(other)) {
            faults.push(format!("{}: {room} may import {other}, which {HERE} does not name above it", of.root));
        }
    }
    for file in &of.files {
        if let Some(room) = room_of(of, file)
            && !table.iter().any(|(known, _)| *known == room)
        {
            faults.push(format!("{}: a new room, {room}: say in {HERE} what it may import", of.root));
        }
    }
    for import in &of.imports {
        let (Some(from), to) = (room_of(of, &import.from), room_of(of, &import.to)) else { continue };
        let allowed = table.iter().find(|(room, _)| *room == from).map_or(&[][..], |(_, allowed)| allowed);
        if to == Some(from) || to.is_some_and(|to| allowed.contains(&to)) {
            continue;
        }
        let to = match to {
            Some(to) => to,
            None if import.to == of.root => "the crate's root",
            // Shared with another crate, outside this one's folder.
            None => continue,
        };
        faults.push(format!("{}; {from} may not import {to}", sentence(import)));
    }
    faults.sort();
    faults.dedup();
    faults
}

/// The room of a file; none for the root.
fn room_of<'f>(of: &Crate, file: &'f str) -> Option<&'f str> {
    if file == of.root {
        return None;
    }
    let (folder, _) = of.root.rsplit_once('/')?;
    let inside = file.strip_prefix(folder)?.strip_prefix('/')?;
    Some(inside.split_once('/').map_or(inside.trim_end_matches(".rs"), |(room, _)| room))
}

/// How many rooms of a crate are folders.
fn folders(of: &Crate) -> usize {
    let rooms: BTreeSet<&str> =
        of.files.iter().filter(|file| file.ends_with("/mod.rs")).filter_map(|file| room_of(of, file)).collect();
    rooms.len()
}

/// Files of one crate that import each other.
pub(super) fn circles(crates: &[Crate]) -> Vec<String> {
    let faults: BTreeSet<String> = crates.iter().flat_map(knots_of).map(|(_, fault)| fault).collect();
    faults.into_iter().collect()
}

/// Sets of files that import each other, each with its shortest circle and the lines that make it.
fn knots_of(of: &Crate) -> Vec<(BTreeSet<&str>, String)> {
    let knots = knots(&of.imports).into_iter().map(|knot| {
        let circle = shortest_circle(&of.imports, &knot);
        let lines: String = circle.iter().map(|import| format!("\n        {}", sentence(import))).collect();
        let fault = format!("{} files import each other, for example:{lines}", knot.len());
        (knot, fault)
    });
    knots.collect()
}

fn sentence(import: &Import) -> String {
    format!("{}:{} imports {} of {}", import.from, import.line, import.name, import.to)
}

/// The files that each file imports.
fn graph(imports: &[Import]) -> BTreeMap<&str, Vec<&Import>> {
    let mut graph: BTreeMap<&str, Vec<&Import>> = BTreeMap::new();
    for import in imports {
        graph.entry(&import.from).or_default().push(import);
    }
    graph
}

/// Sets of files of which each leads to all others.
fn knots(imports: &[Import]) -> Vec<BTreeSet<&str>> {
    let graph = graph(imports);
    let reached: BTreeMap<&str, BTreeSet<&str>> = graph.keys().map(|file| (*file, reach(&graph, file))).collect();
    let mut knots: Vec<BTreeSet<&str>> = Vec::new();
    for (file, others) in reached.iter().filter(|(file, others)| others.contains(*file)) {
        if !knots.iter().any(|knot| knot.contains(file)) {
            let leads_back = |other: &&str| reached.get(other).is_some_and(|back| back.contains(file));
            knots.push(others.iter().copied().filter(leads_back).collect());
        }
    }
    knots
}

/// All files that a file leads to.
fn reach<'i>(graph: &BTreeMap<&str, Vec<&'i Import>>, from: &str) -> BTreeSet<&'i str> {
    let (mut reached, mut pending) = (BTreeSet::new(), vec![from]);
    while let Some(file) = pending.pop() {
        for import in graph.get(file).into_iter().flatten() {
            if reached.insert(import.to.as_str()) {
                pending.push(&import.to);
            }
        }
    }
    reached
}

/// The fewest imports that lead from a file of a knot back to it.
fn shortest_circle<'i>(imports: &'i [Import], knot: &BTreeSet<&str>) -> Vec<&'i Import> {
    let graph = graph(imports);
    let circles = knot.iter().filter_map(|start| {
        let mut arrived: BTreeMap<&str, &Import> = BTreeMap::new();
        let mut pending = VecDeque::from([*start]);
        while let Some(file) = pending.pop_front() {
            for import in graph.get(file).into_iter().flatten() {
                if !arrived.contains_key(import.to.as_str()) {
                    arrived.insert(&import.to, import);
                    pending.push_back(&import.to);
                }
            }
        }
        let mut circle = vec![*arrived.get(start)?];
        while let Some(first) = circle.last().filter(|first| first.from != *start) {
            circle.push(arrived[first.from.as_str()]);
        }
        circle.reverse();
        Some(circle)
    });
    circles.min_by_key(Vec::len).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::{
        super::{imports::crates, source::tests::source},
        *,
    };
    use serde_json::json;
    use std::path::Path;

    /// A crate of these files, whose root is `a/src/lib.rs`.
    fn tree(files: &[(&str, &str)]) -> Crate {
        let files: Vec<_> = files.iter().map(|(path, text)| source(&format!("a/src/{path}"), text)).collect();
        let metadata = json!({"packages": [{"targets": [{"src_path": "/p/a/src/lib.rs"}]}]});
        let mut crates = crates(&files, &metadata, Path::new("/p")).unwrap_or_else(|faults| panic!("{faults:?}"));
        crates.remove(0)
    }

    /// Who imports whom, without the folder that all are in.
    fn pairs(of: &Crate) -> Vec<String> {
        let short = |path: &str| path.trim_start_matches("a/src/").to_owned();
        of.imports
            .iter()
            .map(|import| format!("{}:{} {}", short(&import.from), import.line, short(&import.to)))
            .collect()
    }

    #[test]
    fn imports_lead_to_the_file_that_defines_what_is_named() {
        let of = tree(&[
            ("lib.rs", "mod rings;\nmod worker;\npub use worker::Worker;\n"),
            ("rings/mod.rs", "mod split;\nmod shared;\npub use self::split::Split;\npub use shared::*;\n"),
            ("rings/split.rs", "use super::Shared;\npub struct Split(Shared);\n"),
            ("rings/shared.rs", "pub struct Shared;\n"),
            ("worker.rs", "use crate::rings;\npub struct Worker {\n    ring: rings::Split,\n}\n"),
        ]);
        let expected = [
            "lib.rs:3 worker.rs",
            "rings/mod.rs:3 rings/split.rs",
            "rings/split.rs:1 rings/shared.rs",
            "worker.rs:3 rings/split.rs",
        ];
        assert_eq!(pairs(&of), expected);
        assert_eq!(knots_of(&of), []);
    }

    #[test]
    fn paths_in_code_and_in_macros_are_imports_and_those_of_tests_are_not() {
        let of = tree(&[
            ("lib.rs", "mod a;\nmod b;\nmod c;\n"),
            ("a.rs", "fn f() {\n    let x = crate::b::g();\n    println!(\"{}\", super::c::NUMBER);\n}\n"),
            ("b.rs", "pub fn g() {}\n#[cfg(test)]\nmod tests { use crate::a::f; #[test] fn t() { f() } }\n"),
            ("c.rs", "pub const NUMBER: u8 = 1;\n#[cfg(all(test, unix))]\nuse crate::a::f;\n// crate::a::f()\n"),
        ]);
        assert_eq!(pairs(&of), ["a.rs:2 b.rs", "a.rs:3 c.rs"]);
    }

    #[test]
    fn files_that_import_each_other_are_shown_with_the_shortest_circle() {
        let of = tree(&[
            ("lib.rs", "mod a;\nmod b;\nmod c;\nmod d;\n"),
            ("a.rs", "use crate::{\n    b::B,\n    d::D,\n};\npub struct A(B, D);\n"),
            ("b.rs", "use crate::c::C;\npub struct B(C);\n"),
            ("c.rs", "use crate::a::A;\npub struct C(A);\n"),
            ("d.rs", "use super::a;\npub struct D(Box<a::A>);\n"),
        ]);
        let knots = knots_of(&of);
        assert_eq!(knots.len(), 1);
        assert_eq!(knots[0].0.len(), 4);
        let expected = "4 files import each other, for example:\n        \
            a/src/a.rs:3 imports crate::d::D of a/src/d.rs\n        a/src/d.rs:2 imports a::A of a/src/a.rs";
        assert_eq!(knots[0].1, expected);
    }

    #[test]
    fn a_folder_whose_own_file_defines_what_its_children_import_is_a_circle() {
        let of = tree(&[
            ("lib.rs", "mod rings;\n"),
            ("rings/mod.rs", "mod split;\npub use split::Split;\npub struct Shared;\n"),
            ("rings/split.rs", "use super::Shared;\npub struct Split(Shared);\n"),
        ]);
        assert_eq!(knots_of(&of).len(), 1);
    }

    #[test]
    fn a_room_imports_what_its_row_names_and_rows_name_what_is_above_them() {
        let of = tree(&[
            ("lib.rs", "mod ground;\nmod top;\nmod new;\nuse top::Top;\n"),
            ("ground.rs", "use crate::top::Top;\npub struct Ground;\n"),
            ("top/mod.rs", "mod part;\nuse crate::ground::Ground;\npub struct Top(Ground, part::Part);\n"),
            ("top/part.rs", "pub struct Part;\n"),
            ("new.rs", ""),
        ]);
        let table: &[Room] = &[("ground", &[]), ("gone", &["top"]), ("top", &["ground"])];
        let expected = [
            "a/src/ground.rs:1 imports crate::top::Top of a/src/top/mod.rs; ground may not import top".to_owned(),
            format!("a/src/lib.rs: a new room, new: say in {HERE} what it may import"),
            format!("a/src/lib.rs: gone may import top, which {HERE} does not name above it"),
            format!("a/src/lib.rs: there is no room gone any more: remove it from {HERE}"),
        ];
        assert_eq!(against(&of, table), expected);
    }
}
