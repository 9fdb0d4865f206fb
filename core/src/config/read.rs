//! A reader over one table of the file: every key is asked for by name and type, and what was not asked for is unknown.
//!
//! Each question comes with an example line, which is what a message tells the user to write.
use super::{
    diagnostic::{Diagnostic, Diagnostics, Span, Spanned},
    suggest,
};
use pollux_abi::options::Size;
use std::cell::RefCell;
use toml::de::{DeTable, DeValue};

/// One table. Ask for every key there can be, then [`finish`](Self::finish).
pub(super) struct Table<'t> {
    /// As it is written: `[vm]`, `[worker.io0]`, `memory`.
    name: String,
    /// Where a missing key is reported.
    span: Span,
    entries: &'t DeTable<'t>,
    known: RefCell<Vec<&'static str>>,
    diagnostics: &'t Diagnostics,
}

impl<'t> Table<'t> {
    /// The file's outermost table.
    pub(super) fn root(entries: &'t DeTable<'t>, diagnostics: &'t Diagnostics) -> Self {
        Table { name: "the file".into(), span: 0..0, entries, known: RefCell::default(), diagnostics }
    }

    /// As it is written: `[vm]`.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The same table under another name.
    pub(super) fn named(self, name: &str) -> Self {
        Table { name: name.into(), ..self }
    }

    /// Where a missing key is reported.
    pub(super) fn span(&self) -> &Span {
        &self.span
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(super) fn report(&self, diagnostic: Diagnostic) {
        self.diagnostics.push(diagnostic);
    }

    /// The value of `key` before anything is known of its type.
    pub(super) fn item(&self, key: &'static str, example: &'static str) -> Option<Item<'t>> {
        self.known.borrow_mut().push(key);
        let value = self.entries.get(key)?;
        Some(Item { key, example, value: value.get_ref(), span: value.span(), diagnostics: self.diagnostics })
    }

    /// The value of a key that may be left out. `None` also if it is there but not of the type, which is reported.
    pub(super) fn optional<T: Value>(&self, key: &'static str, example: &'static str) -> Option<Spanned<T>> {
        self.item(key, example)?.read()
    }

    /// The value of a key that must be there.
    pub(super) fn required<T: Value>(&self, key: &'static str, example: &'static str) -> Option<Spanned<T>> {
        self.required_item(key, example)?.read()
    }

    /// As [`item`](Self::item), of a key that must be there.
    pub(super) fn required_item(&self, key: &'static str, example: &'static str) -> Option<Item<'t>> {
        let item = self.item(key, example);
        if item.is_none() {
            let message = format!("{} needs the key `{key}`", self.name);
            self.report(Diagnostic::error(message).at(&self.span, "").help(format!("add {example}")));
        }
        item
    }

    /// The key whose value is one of a few words.
    pub(super) fn choice<T: Copy>(&self, key: &'static str, choices: &[(&str, T)], default: T) -> T {
        let example = "";
        let Some(Spanned { value: word, span }) = self.optional::<String>(key, example) else { return default };
        if let Some((_, value)) = choices.iter().find(|(choice, _)| *choice == word) {
            return *value;
        }
        let words: Vec<&str> = choices.iter().map(|(choice, _)| *choice).collect();
        let help = match suggest::nearest(&word, words.iter().copied()) {
            Some(near) => format!("did you mean \"{near}\"?"),
            None => format!("write {}", suggest::alternatives(&words)),
        };
        self.report(Diagnostic::error(format!("`{key}` cannot be \"{word}\"")).at(&span, "").help(help));
        default
    }

    /// The tables `[section.NAME]` in the order of the file.
    pub(super) fn section(&self, section: &'static str) -> Vec<(Spanned<String>, Table<'t>)> {
        let example = match section {
            "worker" => "[worker.io0]",
            "block" => "[block.disk0]",
            _ => "[device.blk0]",
        };
        let Some(item) = self.item(section, example) else { return Vec::new() };
        let DeValue::Table(entries) = item.value else {
            let message = format!("[{section}] holds tables that have names");
            self.report(Diagnostic::error(message).at(&item.span, "").help(format!("write {example}")));
            return Vec::new();
        };
        // The parser sorts by name; a guest finds its devices in the order of the file.
        let mut named: Vec<_> = entries.iter().collect();
        named.sort_by_key(|(name, _)| name.span().start);
        named.into_iter().filter_map(|(name, value)| self.named_table(section, example, name, value)).collect()
    }

    fn named_table(
        &self,
        section: &'static str,
        example: &'static str,
        name: &toml::Spanned<toml::de::DeString<'t>>,
        value: &'t toml::Spanned<DeValue<'t>>,
    ) -> Option<(Spanned<String>, Table<'t>)> {
        let text = name.get_ref().to_string();
        let DeValue::Table(entries) = value.get_ref() else {
            let message = format!("[{section}] has no name, so `{text}` belongs to nothing");
            self.report(Diagnostic::error(message).at(&name.span(), "").help(format!("write {example} above it")));
            return None;
        };
        if !is_name(&text) {
            let message = format!("\"{text}\" cannot be a name");
            let help = format!("use 1 to {NAME_BYTES_MAX} of the characters A-Z, a-z, 0-9, - and _");
            self.report(Diagnostic::error(message).at(&name.span(), "").help(help));
        }
        let table = Table {
            name: format!("[{section}.{text}]"),
            span: value.span(),
            entries,
            known: RefCell::default(),
            diagnostics: self.diagnostics,
        };
        Some((Spanned::new(text, name.span()), table))
    }

    /// Reports every key that was not asked for. `hint` goes to the help where no known key is near.
    pub(super) fn finish(self, hint: &str) {
        let known = self.known.into_inner();
        for (key, value) in self.entries {
            let text = key.get_ref().as_ref();
            if known.contains(&text) {
                continue;
            }
            let is_root = self.span == (0..0);
            let is_table = matches!(value.get_ref(), DeValue::Table(_) | DeValue::Array(_));
            let message = match (is_root, is_table) {
                (true, true) => format!("unknown table [{text}]"),
                (true, false) => format!("`{text}` belongs to no table"),
                (false, _) => format!("unknown key `{text}` in {}", self.name),
            };
            let help = match suggest::nearest(text, known.iter().copied()) {
                Some(near) if is_root && is_table => format!("did you mean [{near}]?"),
                Some(near) if !is_root => format!("did you mean `{near}`?"),
                _ => format!("there are {}{hint}", suggest::list(&known)),
            };
            self.diagnostics.push(Diagnostic::error(message).at(&key.span(), "").help(help));
        }
    }
}

/// Longest name in bytes: what a block device can answer as its serial number (virtio 1.3, 5.2.6), which is the name
/// unless told otherwise.
pub(super) const NAME_BYTES_MAX: usize = 20;

fn is_name(text: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    (1..=NAME_BYTES_MAX).contains(&text.len()) && text.bytes().all(is_allowed)
}

/// A value of the file on its way to a type.
pub(super) struct Item<'t> {
    pub(super) key: &'static str,
    example: &'static str,
    pub(super) value: &'t DeValue<'t>,
    pub(super) span: Span,
    diagnostics: &'t Diagnostics,
}

impl<'t> Item<'t> {
    /// Reads it as a `T`; reports it if it is none.
    pub(super) fn read<T: Value>(&self) -> Option<Spanned<T>> {
        T::read(self).map(|value| Spanned::new(value, self.span.clone()))
    }

    /// The value as a table, if it is one.
    pub(super) fn table(&self) -> Option<Table<'t>> {
        let DeValue::Table(entries) = self.value else { return None };
        Some(Table {
            name: format!("`{}`", self.key),
            span: self.span.clone(),
            entries,
            known: RefCell::default(),
            diagnostics: self.diagnostics,
        })
    }

    pub(super) fn diagnostics(&self) -> &'t Diagnostics {
        self.diagnostics
    }

    /// Reports the value; `help` says what to write.
    pub(super) fn refuse(&self, message: String, help: impl Into<String>) {
        self.diagnostics.push(Diagnostic::error(message).at(&self.span, "").help(help));
    }

    /// Reports that the value is not what was wanted. `repaired` is what was probably meant.
    fn mismatch(&self, wanted: &str, repaired: Option<String>) {
        let message = format!("`{}` must be {wanted}, not {}", self.key, with_article(self.value));
        let help = match repaired {
            Some(value) => format!("write {} = {value}", self.key),
            None if self.example.is_empty() => format!("write {wanted}"),
            None => format!("write {}", self.example),
        };
        self.refuse(message, help);
    }
}

fn with_article(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a number",
        DeValue::Float(_) => "a number with a point",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    }
}

/// A type that a value of the file can have.
pub(super) trait Value: Sized {
    /// Reads it, or reports why it is none.
    fn read(item: &Item<'_>) -> Option<Self>;
}

impl Value for String {
    fn read(item: &Item<'_>) -> Option<Self> {
        match item.value {
            DeValue::String(text) => return Some(text.to_string()),
            DeValue::Integer(number) => item.mismatch("a string", Some(format!("\"{number}\""))),
            DeValue::Boolean(value) => item.mismatch("a string", Some(format!("\"{value}\""))),
            _ => item.mismatch("a string", None),
        }
        None
    }
}

impl Value for bool {
    fn read(item: &Item<'_>) -> Option<Self> {
        let repaired = match item.value {
            DeValue::Boolean(value) => return Some(*value),
            DeValue::String(text) => matches!(text.as_ref(), "true" | "false").then(|| text.to_string()),
            _ => None,
        };
        item.mismatch("true or false", repaired);
        None
    }
}

impl Value for u64 {
    fn read(item: &Item<'_>) -> Option<Self> {
        let repaired = match item.value {
            DeValue::Integer(number) => match u64::from_str_radix(number.as_str(), number.radix()) {
                Ok(value) => return Some(value),
                Err(_) => {
                    let reason = if number.as_str().starts_with('-') { "negative" } else { "so large" };
                    item.refuse(format!("`{}` cannot be {reason}", item.key), format!("write {}", item.example));
                    return None;
                }
            },
            DeValue::String(text) => text.parse::<u64>().ok().map(|number| number.to_string()),
            _ => None,
        };
        item.mismatch("a whole number", repaired);
        None
    }
}

impl Value for usize {
    fn read(item: &Item<'_>) -> Option<Self> {
        usize::try_from(u64::read(item)?).ok()
    }
}

impl Value for Size {
    fn read(item: &Item<'_>) -> Option<Self> {
        match item.value {
            DeValue::Integer(_) => u64::read(item).map(Size::from_bytes),
            DeValue::String(text) => match text.parse() {
                Ok(size) => Some(size),
                Err(_) => {
                    let message = format!("`{}` is no size: \"{text}\"", item.key);
                    item.refuse(message, size_help(text, item.example));
                    None
                }
            },
            _ => {
                item.mismatch("a size", None);
                None
            }
        }
    }
}

/// `512 MiB`, `512MB`, `1g`, `1.5G`: what was probably meant.
fn size_help(text: &str, example: &str) -> String {
    let digits = text.find(|character: char| !character.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = (&text[..digits], text[digits..].trim().to_ascii_uppercase());
    let unit = unit.trim_end_matches('B').trim_end_matches('I');
    if !number.is_empty() && matches!(unit, "" | "K" | "M" | "G" | "T") {
        return format!("write \"{number}{unit}\"; K, M, G and T are binary units");
    }
    format!("write a whole number of bytes or one with K, M, G or T, such as {example}")
}

impl<T: Value> Value for Vec<Spanned<T>> {
    fn read(item: &Item<'_>) -> Option<Self> {
        match item.value {
            DeValue::Array(values) => {
                let items = values.iter().map(|value| Item {
                    value: value.get_ref(),
                    span: value.span(),
                    example: item.example,
                    ..*item
                });
                // Reads all, so that each bad one is reported.
                let read: Vec<Option<Spanned<T>>> = items.map(|item| item.read()).collect();
                read.into_iter().collect()
            }
            DeValue::String(text) => {
                item.mismatch("an array", Some(format!("[\"{text}\"]")));
                None
            }
            DeValue::Integer(number) => {
                item.mismatch("an array", Some(format!("[{number}]")));
                None
            }
            _ => {
                item.mismatch("an array", None);
                None
            }
        }
    }
}
