//! What Pollux is linked with has a licence that goes with its own, Apache-2.0.
use serde_json::Value;
use spdx::{Expression, ParseMode};
use std::collections::BTreeSet;

/// Licences that ask for no more than their own text. That of the Mozilla Foundation is for files alone: whoever
/// changes one of its files passes on that file.
const ALLOWED: [&str; 9] =
    ["Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "ISC", "MIT", "MPL-2.0", "Unicode-3.0", "Unlicense", "Zlib"];

/// The packages that are compiled for a build of the workspace on Linux, and do not let themselves be used by one of
/// the licences above. `metadata` is that of all packages, with what depends on what.
pub(super) fn not_allowed(metadata: &Value) -> Vec<String> {
    let nodes = metadata["resolve"]["nodes"].as_array().into_iter().flatten();
    let used: BTreeSet<&str> = nodes.filter_map(|node| node["id"].as_str()).collect();
    let packages = metadata["packages"].as_array().into_iter().flatten();
    let used = packages.filter(|package| package["id"].as_str().is_some_and(|id| used.contains(id)));
    used.filter_map(|package| Some((package["name"].as_str()?, refusal(package["license"].as_str())?)))
        .map(|(name, refusal)| format!("{name}: {refusal}"))
        .collect()
}

/// Why a package may not be used.
fn refusal(licence: Option<&str>) -> Option<String> {
    let Some(licence) = licence else { return Some("its manifest names no licence".to_owned()) };
    // Old manifests have a slash for OR.
    let Ok(expression) = Expression::parse_mode(licence, ParseMode::LAX) else {
        return Some(format!("its licence cannot be read: {licence}"));
    };
    let is_allowed = |name: &str| ALLOWED.contains(&name);
    let may_be_used = expression.evaluate(|wanted| wanted.license.id().is_some_and(|id| is_allowed(id.name)));
    (!may_be_used).then(|| format!("its licence is not among those allowed in tools/xtask/src/tidy: {licence}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_licence_of_a_choice_is_enough_and_all_of_a_sum_are_needed() {
        for licence in [
            "MIT",
            "MIT/GPL-3.0-only",
            "GPL-2.0-only OR (MIT AND Zlib)",
            "Apache-2.0 WITH LLVM-exception",
            "(MIT OR Apache-2.0) AND Unicode-3.0",
        ] {
            assert_eq!(refusal(Some(licence)), None);
        }
        for licence in ["GPL-3.0-only", "MIT AND GPL-3.0-only", "LicenseRef-Other", "ours"] {
            assert!(refusal(Some(licence)).is_some(), "{licence}");
        }
        assert!(refusal(None).is_some());
    }

    #[test]
    fn only_packages_that_are_compiled_count() {
        let metadata = serde_json::json!({
            "packages": [
                {"id": "a", "name": "a", "license": "MIT"},
                {"id": "b", "name": "b", "license": "GPL-3.0-only"},
                {"id": "windows", "name": "windows", "license": null},
            ],
            "resolve": {"nodes": [{"id": "a"}, {"id": "b"}]},
        });
        let faults = not_allowed(&metadata);
        assert_eq!(faults.len(), 1, "{faults:?}");
        assert!(faults[0].starts_with("b: "), "{faults:?}");
    }
}
