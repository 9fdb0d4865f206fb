//! "Did you mean": the most similar of the existing names.

/// The name among `candidates` that was probably meant by `text`.
pub fn nearest<'c>(text: &str, candidates: impl IntoIterator<Item = &'c str>) -> Option<&'c str> {
    let lower = text.to_lowercase();
    let scored = candidates.into_iter().filter_map(|candidate| {
        let distance = strsim::damerau_levenshtein(&lower, &candidate.to_lowercase());
        // `mem` for `memory`: shortened, or lengthened.
        let is_prefix = lower.len() >= 3 && (candidate.starts_with(&lower) || lower.starts_with(candidate));
        let allowed = 1 + candidate.len() / 4;
        (distance <= allowed.min(candidate.len().saturating_sub(1)) || is_prefix).then_some((distance, candidate))
    });
    scored.min_by_key(|&(distance, _)| distance).map(|(_, candidate)| candidate)
}

/// `a`, `b`, `c`
pub(super) fn list(names: &[&str], open: char, close: char) -> String {
    names.iter().map(|name| format!("{open}{name}{close}")).collect::<Vec<_>>().join(", ")
}

/// "a", "b" or "c"
pub(super) fn alternatives(words: &[&str]) -> String {
    let quoted: Vec<String> = words.iter().map(|word| format!("\"{word}\"")).collect();
    match quoted.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => quoted.concat(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_find_their_name_and_strangers_do_not() {
        let keys = ["cpus", "memory", "kernel", "initrd", "cmdline"];
        let near = |text| nearest(text, keys);
        assert_eq!(near("kernal"), Some("kernel"));
        assert_eq!(near("Kernel"), Some("kernel"));
        assert_eq!(near("cpu"), Some("cpus"));
        assert_eq!(near("mem"), Some("memory"));
        assert_eq!(near("initramfs"), None);
        assert_eq!(near("path"), None);
        assert_eq!(nearest("io1", ["io0"]), Some("io0"));
        assert_eq!(nearest("b", ["a"]), None);
    }

    #[test]
    fn lists_read_as_english() {
        assert_eq!(alternatives(&["pci"]), "\"pci\"");
        assert_eq!(alternatives(&["pci", "mmio"]), "\"pci\" or \"mmio\"");
        assert_eq!(list(&["a", "b"], '[', ']'), "[a], [b]");
    }
}
