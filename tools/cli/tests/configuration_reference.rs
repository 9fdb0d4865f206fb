//! `docs/configuration.md`, the reference: it has every key that the program and its plugins read, and no others, with
//! the words that a key may be. What the program knows is what it says itself when it is given a key that it does not
//! know.
mod common;

use common::Folder;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

/// No key, no word, and near to none.
const UNKNOWN: &str = "zzzzzzzz";

type Names = BTreeSet<String>;

/// A key of the reference or of the program: the keys of the table that it may be, and the words.
#[derive(Debug, Default, PartialEq, Eq)]
struct Key {
    inner: Names,
    words: Names,
}

/// The keys of each table.
type Keys = BTreeMap<String, BTreeMap<String, Key>>;

/// The reference.
fn document() -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/configuration.md");
    fs::read_to_string(file).expect("the reference")
}

/// The rows of the tables whose header is `header`, as cells, each table after the heading above it.
fn rows<'d>(document: &'d str, header: &str) -> Vec<(&'d str, Vec<&'d str>)> {
    let (mut heading, mut is_within, mut rows) = ("", false, Vec::new());
    for line in document.lines() {
        if let Some(row) = line.strip_prefix('|') {
            let is_rule = row.starts_with("---");
            if is_within && !is_rule {
                rows.push((heading, row.trim_end_matches('|').split(" | ").map(str::trim).collect()));
            }
            is_within |= line == header;
        } else {
            is_within = false;
            heading = line.strip_prefix('#').map_or(heading, |text| text.trim_start_matches('#').trim());
        }
    }
    rows
}

/// What stands between two of `mark`.
fn quoted(text: &str, mark: char) -> Names {
    text.split(mark).skip(1).step_by(2).map(str::to_owned).collect()
}

/// The text without what stands in braces, and the keys in them.
fn without_tables(text: &str) -> (String, Names) {
    let (mut outside, mut keys) = (String::new(), Names::new());
    for part in text.split('{') {
        let (inside, after) = part.split_once('}').unwrap_or(("", part));
        keys.extend(inside.split(',').filter_map(|entry| Some(entry.split_once('=')?.0.trim().to_owned())));
        outside.push_str(after);
    }
    (outside, keys)
}

fn documented_keys() -> Keys {
    let (document, mut keys, mut table) = (document(), Keys::new(), String::new());
    for (_, cells) in rows(&document, "| table | key | values | meaning |") {
        let name = cells[0].trim_matches(['`', '[', ']']);
        if !name.is_empty() {
            table = name.split('.').next().expect("a name").to_owned();
        }
        let (outside, inner) = without_tables(cells[2]);
        let key = Key { inner, words: quoted(&outside, '"') };
        let twice = keys.entry(table.clone()).or_default().insert(cells[1].trim_matches('`').to_owned(), key);
        assert!(twice.is_none(), "[{table}] has {} twice", cells[1]);
    }
    keys
}

/// What `pollux check` says of a file: messages, each with its advice.
fn complaints(folder: &Folder, text: &str) -> Vec<(String, String)> {
    folder.write("vm.toml", text);
    let ran = folder.run(&["check", "--json", "vm.toml"]);
    let json: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {ran:?}"));
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let diagnostics = json["diagnostics"].as_array().expect("diagnostics").iter();
    diagnostics.map(|diagnostic| (text(&diagnostic["message"]), text(&diagnostic["help"]))).collect()
}

/// The lines of a good file, by its tables.
type Lines<'l> = &'l [(&'l str, &'l [&'l str])];

const MACHINE: Lines<'_> = &[
    ("vm", &["memory = \"64M\"", "kernel = \"vmlinuz\""]),
    ("worker.io0", &["idle = \"adaptive\""]),
    ("block.d", &["plugin = \"null\""]),
    ("device.d", &["type = \"blk\"", "block = \"d\"", "workers = [\"io0\"]"]),
];
const EXPORTS: Lines<'_> = &[
    ("worker.io0", &["idle = \"adaptive\""]),
    ("block.d", &["plugin = \"null\"", "read_only = true"]),
    ("device.d", &["type = \"blk\"", "block = \"d\"", "workers = [\"io0\"]", VHOST_USER, "socket = \"d.sock\""]),
    // Whatever is written in the other one, this is a file of devices to serve.
    ("device.e", &["type = \"blk\"", "block = \"d\"", "workers = [\"io0\"]", VHOST_USER, "socket = \"e.sock\""]),
];
const VHOST_USER: &str = "transport = \"vhost-user\"";

/// The file with another value of one key.
fn with(lines: Lines<'_>, table: &str, key: &str, value: &str) -> String {
    let mut text = String::new();
    for (name, lines) in lines {
        text += &format!("[{name}]\n");
        let is_other = |line: &&&str| *name != table || line.split(" = ").next() != Some(key);
        lines.iter().filter(is_other).for_each(|line| text += &format!("{line}\n"));
        if *name == table {
            text += &format!("{key} = {value}\n");
        }
    }
    text
}

/// The advice about the first complaint whose message begins like this.
fn advice(complaints: &[(String, String)], message: &str) -> Option<String> {
    complaints.iter().find(|(said, _)| said.starts_with(message)).map(|(_, help)| help.clone())
}

/// Adds the keys that the program reads in a file of this kind.
fn ask(folder: &Folder, lines: Lines<'_>, keys: &mut Keys) {
    for (table, _) in lines {
        let section = table.split('.').next().expect("a name");
        let said = complaints(folder, &with(lines, table, UNKNOWN, "0"));
        let all = advice(&said, &format!("unknown key `{UNKNOWN}` in [{table}]")).expect("the keys of a table");
        for key in quoted(&all, '`') {
            let said = complaints(folder, &with(lines, table, &key, &format!("{{ {UNKNOWN} = 0 }}")));
            let inner = advice(&said, &format!("unknown key `{UNKNOWN}` in `{key}`")).unwrap_or_default();
            let said = complaints(folder, &with(lines, table, &key, &format!("\"{UNKNOWN}\"")));
            let refusals =
                [format!("`{key}` cannot be \"{UNKNOWN}\""), format!("there is no device type \"{UNKNOWN}\"")];
            let words = refusals.iter().find_map(|refusal| advice(&said, refusal)).unwrap_or_default();
            let known = keys.entry(section.to_owned()).or_default().entry(key).or_default();
            known.inner.extend(quoted(&inner, '`'));
            known.words.extend(quoted(&without_tables(&words).0, '"'));
        }
    }
}

#[test]
fn the_reference_has_the_keys_and_words_that_the_program_reads() {
    let folder = Folder::new();
    let tables = advice(&complaints(&folder, &format!("[{UNKNOWN}]\n")), "unknown table").expect("the tables");
    let tables: Names = tables.split(['[', ']']).skip(1).step_by(2).map(str::to_owned).collect();
    let mut known = Keys::new();
    ask(&folder, MACHINE, &mut known);
    ask(&folder, EXPORTS, &mut known);
    assert_eq!(known.keys().cloned().collect::<Names>(), tables, "every table was asked about");

    let documented = documented_keys();
    let names = |keys: &BTreeMap<String, Key>| keys.keys().cloned().collect::<Names>();
    assert_eq!(
        documented.keys().cloned().collect::<Names>(),
        tables,
        "tables of the reference, and those that are read"
    );
    for (table, known) in known {
        let documented = &documented[&table];
        assert_eq!(names(documented), names(&known), "keys of [{table}] in the reference, and those that are read");
        for (key, known) in known {
            let Key { inner, words } = &documented[&key];
            assert_eq!(*inner, known.inner, "keys of `{key}` in [{table}] in the reference, and those that are read");
            // Some take other words than those of a list, such as names.
            if !known.words.is_empty() {
                assert_eq!(
                    *words, known.words,
                    "words for `{key}` in [{table}] in the reference, and those that are read"
                );
            }
        }
    }
}

/// Each plugin's options, with the row that tells of each.
fn documented_options(document: &str) -> BTreeMap<String, BTreeMap<String, String>> {
    let mut options: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    for (heading, cells) in rows(document, "| option | default | meaning |") {
        let Some(plugin) = heading.strip_prefix("Options of ") else { continue };
        let row = options.entry(plugin.to_owned()).or_default();
        row.insert(cells[0].trim_matches('`').to_owned(), cells.join(" | "));
    }
    options
}

#[test]
fn the_reference_has_the_options_that_the_plugins_take() {
    let (folder, document) = (Folder::new(), document());
    let documented = documented_options(&document);
    let plugins = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../plugins");
    let plugins: Names = fs::read_dir(plugins)
        .expect("plugins")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    assert_eq!(documented.keys().cloned().collect::<Names>(), plugins, "each plugin has a table");

    let refusal = |plugin: &str, option: &str, kind: &str| {
        let lines: Lines<'_> = &[MACHINE[0], MACHINE[1], ("block.d", &[&format!("plugin = \"{plugin}\"")]), MACHINE[3]];
        let said = complaints(&folder, &with(lines, "block.d", "options", &format!("{{ {option} = \"{UNKNOWN}\" }}")));
        let about = format!("unknown {kind} `{UNKNOWN}`");
        said.iter().find_map(|(message, _)| Some(quoted(message.split_once(&about)?.1.split_once("expected")?.1, '`')))
    };
    for (plugin, rows) in &documented {
        let options: Names = rows.keys().cloned().collect();
        assert_eq!(refusal(plugin, UNKNOWN, "field").as_ref(), Some(&options), "options of {plugin}");
        for (option, row) in rows {
            for word in refusal(plugin, option, "variant").unwrap_or_default() {
                assert!(row.contains(&format!("\"{word}\"")), "{plugin}: {option} may be \"{word}\": {row}");
            }
        }
    }
    for (_, cells) in rows(&document, "| plugin | options | for |") {
        let options = &documented[cells[0].trim_matches('`')];
        assert_eq!(quoted(cells[1], '`'), options.keys().cloned().collect::<Names>(), "the overview of {}", cells[0]);
    }
}
