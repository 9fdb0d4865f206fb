//! A plugin's own counters as it reports them: a JSON object of names and numbers. They are shown to operators, so only
//! a limited number of them is taken, and only names that are harmless on a terminal.
use serde_json::{Map, Value};

/// Most bytes of an answer that are read.
pub(super) const ANSWER_BYTES_MAX: usize = 16 << 10;
/// Most counters of one backend that are taken.
const COUNTERS_MAX: usize = 256;
/// Longest name of a counter in bytes.
const NAME_BYTES_MAX: usize = 56;

/// The counters of one backend, by their names.
pub type Counters = [(String, u64)];

/// Reads an answer: the counters that can be shown, and what is wrong with the first one that cannot.
pub(super) fn read(answer: &[u8]) -> (Vec<(String, u64)>, Option<String>) {
    if answer.is_empty() {
        return (Vec::new(), None);
    }
    // If a name occurs twice, its last value is taken.
    let object: Map<String, Value> = match serde_json::from_slice(answer) {
        Ok(object) => object,
        Err(error) => return (Vec::new(), Some(format!("no JSON object: {error}"))),
    };
    let mut fault = None;
    let mut counters = Vec::new();
    for (name, value) in object {
        match check(&name, &value) {
            Ok(_) if counters.len() == COUNTERS_MAX => {
                fault.get_or_insert(format!("more than {COUNTERS_MAX} counters"));
            }
            Ok(value) => counters.push((name, value)),
            Err(why) => {
                let shown: String = name.chars().take(NAME_BYTES_MAX).collect();
                fault.get_or_insert(format!("{shown:?}, which {why}"));
            }
        }
    }
    (counters, fault)
}

fn check(name: &str, value: &Value) -> Result<u64, &'static str> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.:/-".contains(&byte);
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(is_plain) {
        return Err("is not 1 to 56 letters, digits or `_`, `.`, `:`, `/`, `-`");
    }
    value.as_u64().ok_or("is not a whole number that fits into 64 bits")
}

#[cfg(test)]
mod tests {
    fn read(answer: &str) -> (Vec<(String, u64)>, Option<String>) {
        super::read(answer.as_bytes())
    }

    fn counters(list: &[(&str, u64)]) -> Vec<(String, u64)> {
        list.iter().map(|&(name, value)| (name.to_owned(), value)).collect()
    }

    #[test]
    fn names_and_whole_numbers_are_taken() {
        let taken = counters(&[("a.b/c:d-e_f", u64::MAX), ("reads", 0)]);
        assert_eq!(read(r#"{"reads": 0, "a.b/c:d-e_f": 18446744073709551615}"#), (taken, None));
        assert_eq!(read("{}"), (Vec::new(), None));
        assert_eq!(read(""), (Vec::new(), None));
    }

    #[test]
    fn what_cannot_be_shown_is_left_out_and_named() {
        for (answer, fault) in [
            (r#"{"ok": 1, "x": -1}"#, "\"x\", which is not a whole number"),
            (r#"{"ok": 1, "x": 1.5}"#, "\"x\", which is not a whole number"),
            (r#"{"ok": 1, "x": "1"}"#, "\"x\", which is not a whole number"),
            (r#"{"ok": 1, "x": {"y": 1}}"#, "\"x\", which is not a whole number"),
            (r#"{"ok": 1, "x": 18446744073709551616}"#, "\"x\", which is not a whole number"),
            (r#"{"ok": 1, "": 1}"#, "\"\", which is not 1 to 56 letters"),
            (r#"{"ok": 1, "\u001b[2J": 1}"#, "\"\\u{1b}[2J\", which is not 1 to 56 letters"),
        ] {
            let (taken, found) = read(answer);
            assert_eq!(taken, counters(&[("ok", 1)]), "{answer}");
            assert!(found.as_ref().is_some_and(|found| found.starts_with(fault)), "{answer}: {found:?}");
        }
        let (taken, fault) = read(r#"{"x": 1, "x": 2}"#);
        assert_eq!((taken, fault), (counters(&[("x", 2)]), None));
    }

    #[test]
    fn an_answer_without_end_or_sense_yields_nothing_or_a_bounded_number() {
        let nested = "[".repeat(10_000);
        for answer in ["nonsense", "[1]", "{\"x\": 1", "{\"x\": 1} rest", &format!("{{\"x\": {nested}")] {
            let (taken, fault) = read(answer);
            assert!(taken.is_empty() && fault.is_some_and(|fault| fault.starts_with("no JSON object")), "{answer}");
        }
        let (taken, fault) = super::read(b"{\"\xff\": 1}");
        assert!(taken.is_empty() && fault.is_some());
        let many: Vec<String> = (0..1000).map(|number| format!("\"n{number}\": {number}")).collect();
        let (taken, fault) = read(&format!("{{{}}}", many.join(", ")));
        assert_eq!((taken.len(), fault.as_deref()), (256, Some("more than 256 counters")));
    }
}
