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
    /// Keys that must be there and are not, each with its example.
    missing: RefCell<Vec<(&'static str, &'static str)>>,
    diagnostics: &'t Diagnostics,
}

impl<'t> Table<'t> {
    fn new(name: String, span: Span, entries: &'t DeTable<'t>, diagnostics: &'t Diagnostics) -> Self {
        Table { name, span, entries, known: RefCell::default(), missing: RefCell::default(), diagnostics }
    }

    /// The file's outermost table.
    pub(super) fn root(entries: &'t DeTable<'t>, diagnostics: &'t Diagnostics) -> Self {
        Table::new("the file".into(), 0..0, entries, diagnostics)
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
        if !self.known.borrow().contains(&key) {
            self.known.borrow_mut().push(key);
        }
        let value = self.entries.get(key)?;
        let (value, span) = (value.get_ref(), value.span());
        Some(Item { key, example, value, span, is_element: false, diagnostics: self.diagnostics })
    }

    /// The value of a key that may be left out. `None` also if it is there but not of the type, which is reported.
    pub(super) fn optional<T: Value>(&self, key: &'static str, example: &'static str) -> Option<Spanned<T>> {
        self.item(key, example)?.read()
    }

    /// The value of a key that must be there.
    pub(super) fn required<T: Value>(&self, key: &'static str, example: &'static str) -> Option<Spanned<T>> {
        self.required_item(key, example)?.read()
    }

    /// As [`item`](Self::item), of a key that must be there. [`finish`](Self::finish) reports that it is not.
    pub(super) fn required_item(&self, key: &'static str, example: &'static str) -> Option<Item<'t>> {
        let item = self.item(key, example);
        if item.is_none() {
            self.missing.borrow_mut().push((key, example));
        }
        item
    }

    /// The key whose value is one of a few words.
    pub(super) fn choice<T: Clone>(&self, key: &'static str, choices: &[(&str, T)], default: T) -> T {
        let Some(item) = self.item(key, "") else { return default };
        let words: Vec<&str> = choices.iter().map(|(choice, _)| *choice).collect();
        let all = format!("write {}", suggest::alternatives(&words));
        let Some(word) = item.value.as_str() else {
            item.refuse(format!("`{key}` must be a string, not {}", with_article(item.value)), all);
            return default;
        };
        if let Some((_, value)) = choices.iter().find(|(choice, _)| *choice == word) {
            return value.clone();
        }
        let near = suggest::nearest(word, words.iter().copied());
        let help = near.map_or(all, |near| format!("did you mean \"{near}\"?"));
        item.refuse(format!("`{key}` cannot be \"{word}\""), help);
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

    /// The tables below `section` as they are, before any of them is read.
    pub(super) fn section_values(&self, section: &str) -> Vec<&'t DeTable<'t>> {
        let Some(DeValue::Table(entries)) = self.entries.get(section).map(|value| value.get_ref()) else {
            return Vec::new();
        };
        let tables = entries.values().filter_map(|value| match value.get_ref() {
            DeValue::Table(entries) => Some(entries),
            _ => None,
        });
        tables.collect()
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
        let table = Table::new(format!("[{section}.{text}]"), value.span(), entries, self.diagnostics);
        Some((Spanned::new(text, name.span()), table))
    }

    /// Reports every key that was not asked for, and every one that is missing. `hint` goes to the help where no
    /// known key is near.
    pub(super) fn finish(self, hint: &str) {
        let known = self.known.borrow();
        for (key, value) in self.entries {
            let text = key.get_ref().as_ref();
            if known.contains(&text) {
                continue;
            }
            let near = suggest::nearest(text, known.iter().copied());
            // One slip is one message.
            self.missing.borrow_mut().retain(|(missing, _)| Some(*missing) != near);
            let is_table = matches!(value.get_ref(), DeValue::Table(_) | DeValue::Array(_));
            let (message, help) = match (self.is_root(), is_table) {
                (true, false) => {
                    (format!("`{text}` belongs to no table"), "write it below a table such as [vm]".to_owned())
                }
                (true, true) => {
                    let all = format!("there are {}", suggest::list(&known, '[', ']'));
                    (format!("unknown table [{text}]"), near.map_or(all, |near| format!("did you mean [{near}]?")))
                }
                (false, _) => {
                    let all = format!("there are {}{hint}", suggest::list(&known, '`', '`'));
                    let message = format!("unknown key `{text}` in {}", self.name);
                    (message, near.map_or(all, |near| format!("did you mean `{near}`?")))
                }
            };
            self.report(Diagnostic::error(message).at(&key.span(), "").help(help));
        }
        self.report_missing();
    }

    /// Ends the reading of a table whose keys cannot be known: reports only what is missing.
    pub(super) fn give_up(self) {
        self.report_missing();
    }

    fn report_missing(&self) {
        for (key, example) in self.missing.take() {
            let help = format!("add {example}");
            self.report(match self.is_root() {
                true => Diagnostic::error(format!("there is no table [{key}]")).help(help),
                false => {
                    Diagnostic::error(format!("{} needs the key `{key}`", self.name)).at(&self.span, "").help(help)
                }
            });
        }
    }

    fn is_root(&self) -> bool {
        self.span == (0..0)
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
    /// Whether it is one of the values in an array.
    is_element: bool,
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
        Some(Table::new(format!("`{}`", self.key), self.span.clone(), entries, self.diagnostics))
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
        let what = if self.is_element { format!("each of `{}`", self.key) } else { format!("`{}`", self.key) };
        let message = format!("{what} must be {wanted}, not {}", with_article(self.value));
        let help = match repaired {
            Some(value) if self.is_element => format!("write {value}"),
            Some(value) => format!("write {} = {value}", self.key),
            None => format!("write {}", self.example),
        };
        self.refuse(message, help);
    }
}

pub(super) fn with_article(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a number",
        DeValue::Float(_) => "a number with a point",
        DeValue::Boolean(_) => "a boolean",
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
                    is_element: true,
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
