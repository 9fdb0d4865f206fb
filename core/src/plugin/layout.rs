//! Condenses abi_stable's verdict on two layouts into one line. Its own messages are 20 to 60 KB long.
use abi_stable::{
    abi_stability::abi_checking::{AbiInstability, AbiInstabilityErrors, check_layout_compatibility},
    type_layout::{TLFieldOrFunction, TypeLayout},
};

/// Whether a table laid out as `theirs` can be used as `ours`.
///
/// # Errors
/// The first field that differs.
pub(super) fn check(ours: &'static TypeLayout, theirs: &'static TypeLayout) -> Result<(), String> {
    match check_layout_compatibility(ours, theirs) {
        Ok(()) => Ok(()),
        // abi_stable accepts a newer plugin in an older host, but not the reverse: for that, the roles are swapped.
        Err(errors) => check_layout_compatibility(theirs, ours).map_err(|_| first_difference(&errors)),
    }
}

fn first_difference(errors: &AbiInstabilityErrors) -> String {
    let mut shortest: Option<(usize, String)> = None;
    for error in errors.errors.iter() {
        let mut path: Vec<String> = error
            .stack_trace
            .iter()
            .map(|entry| match &entry.expected {
                TLFieldOrFunction::Field(field) => field.name().to_owned(),
                TLFieldOrFunction::Function(function) => function.name.to_string(),
            })
            .collect();
        // A field that holds a function is followed by the function of the same name.
        path.dedup();
        for instability in error.errs.iter() {
            let Some(what) = describe(instability) else { continue };
            // The deepest place is the cause; those around it only contain it.
            if shortest.as_ref().is_none_or(|(depth, _)| path.len() > *depth) {
                shortest = Some((path.len(), format!("{}: {what}", path.join("."))));
            }
        }
    }
    shortest.map_or_else(|| "the layouts differ".into(), |(_, text)| text.trim_start_matches(": ").to_owned())
}

fn describe(instability: &AbiInstability) -> Option<String> {
    Some(match instability {
        AbiInstability::Name(pair) => {
            let (expected, found) = (pair.expected.to_string(), pair.found.to_string());
            format!("type {} expected, found {}", expected.trim(), found.trim())
        }
        AbiInstability::MismatchedPrimitive(pair) => {
            format!("type {:?} expected, found {:?}", pair.expected, pair.found).to_lowercase()
        }
        AbiInstability::UnexpectedField(pair) => format!(
            "field `{}: {}` expected, found `{}: {}`",
            pair.expected.name(),
            pair.expected.layout().name(),
            pair.found.name(),
            pair.found.layout().name()
        ),
        AbiInstability::FieldCountMismatch(pair) => {
            format!("{} fields expected, found {}", pair.expected, pair.found)
        }
        AbiInstability::Size(pair) => format!("a size of {} bytes expected, found {}", pair.expected, pair.found),
        AbiInstability::Package(pair) => format!("a type of package {} expected, found {}", pair.expected, pair.found),
        AbiInstability::PackageVersion(pair) => {
            format!("interface package {:?} expected, found {:?}", pair.expected, pair.found)
        }
        _ => return None,
    })
}
