//! Programs in C that guests run, which have no libraries.
use crate::{process::Run, project::Project};
use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

const COMPILE_LIMIT: Duration = Duration::from_secs(120);

/// Compiles a program from its only file, for guests and this machine alike.
///
/// # Errors
/// It does not compile.
pub(crate) fn compile(project: &Project, source: &Path) -> Result<PathBuf, String> {
    let name = source.file_stem().unwrap_or_default().to_string_lossy();
    let program = project.scratch("guest-programs")?.join(&*name);
    let mut compiler = Command::new("cc");
    compiler.args(["-static", "-O2", "-Wall", "-Wextra", "-Werror", "-o"]).arg(&program).arg(source);
    let log = project.scratch("logs")?.join(format!("compile-{name}.log"));
    let label = format!("compiling {}", source.display());
    let compiled = Run { label: &label, log, limit: COMPILE_LIMIT, echo: false }.run(&mut compiler)?;
    if compiled.succeeded() {
        return Ok(program);
    }
    Err(format!("{} does not compile: {}\n{}", source.display(), compiled.ending(), compiled.tail(20)))
}
