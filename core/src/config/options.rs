//! A plugin's options on their way to JSON, which is how plugins read them.
use super::{
    diagnostic::{Diagnostic, Span, Spanned},
    read::{Item, Table},
};
use serde_json::{Map, Number, Value};
use toml::de::{DeTable, DeValue};

/// `options`: its contents are between the user and the plugin.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PluginOptions {
    /// A JSON object.
    pub json: String,
    /// Where they were written; `None` if they were left out.
    pub span: Option<Span>,
    /// The keys, so that a plugin's complaint about one can be shown at its place.
    pub keys: Vec<Spanned<String>>,
}

/// Reads `options` of `table`.
pub(super) fn read(table: &Table<'_>) -> PluginOptions {
    let Some(item) = table.item("options", "options = { path = \"disk.img\" }") else {
        return PluginOptions { json: "{}".into(), ..PluginOptions::default() };
    };
    let DeValue::Table(entries) = item.value else {
        item.refuse("`options` must be a table".into(), "write options = { path = \"disk.img\" }");
        return PluginOptions::default();
    };
    let object = object(entries, &item, &item.span);
    let keys = entries.keys().map(|key| Spanned::new(key.get_ref().to_string(), key.span())).collect();
    PluginOptions { json: Value::Object(object).to_string(), span: Some(item.span), keys }
}

fn object(entries: &DeTable<'_>, item: &Item<'_>, span: &Span) -> Map<String, Value> {
    let mut object = Map::new();
    for (key, value) in entries {
        // Values of tables made by dotted keys have no place of their own.
        let span = if value.span().is_empty() { span.clone() } else { value.span() };
        object.insert(key.get_ref().to_string(), json(value.get_ref(), item, &span));
    }
    object
}

/// The depth of `value` is bounded by the parser.
fn json(value: &DeValue<'_>, item: &Item<'_>, span: &Span) -> Value {
    let refuse = |what: String| {
        item.diagnostics().push(
            Diagnostic::error(format!("plugins cannot be given {what}")).at(span, "").help("write another number"),
        );
        Value::Null
    };
    match value {
        DeValue::String(text) => Value::String(text.to_string()),
        DeValue::Boolean(value) => Value::Bool(*value),
        DeValue::Datetime(date) => Value::String(date.to_string()),
        DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
            Ok(value) => Value::from(value),
            Err(_) => match u64::from_str_radix(number.as_str(), number.radix()) {
                Ok(value) => Value::from(value),
                Err(_) => refuse(format!("{number}, which has more than 64 bits")),
            },
        },
        DeValue::Float(number) => match number.as_str().parse().ok().and_then(Number::from_f64) {
            Some(value) => Value::Number(value),
            None => refuse(number.as_str().to_owned()),
        },
        DeValue::Array(values) => {
            values.iter().map(|value| json(value.get_ref(), item, &value.span())).collect::<Vec<_>>().into()
        }
        DeValue::Table(entries) => Value::Object(object(entries, item, span)),
    }
}
