//! Any file as a kernel, and its size as that of an initrd.
use crate::{file, input::Input};
use pollux_vmm::{KernelSpec, boot};

/// Memory of the machine: enough for the least kernel, little enough to be filled quickly.
const MEMORY_BYTES: u64 = 32 << 20;

/// Loads a kernel as `pollux run` does before it starts a machine. The first three bytes say what else it is given.
///
/// # Panics
/// It is refused by a message that does not name it.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let (has_initrd, initrd_bytes) = (input.flag(), u64::from(input.half()) << 9);
    let image = file::in_memory(input.bytes(data.len()));
    let initrd = file::in_memory(&[]);
    initrd.set_len(initrd_bytes).expect("a file with a hole");
    let kernel = KernelSpec {
        image: file::path(&image),
        initrd: has_initrd.then(|| file::path(&initrd)),
        command_line: "console=ttyS0".into(),
    };
    if let Err(error) = boot::check(&kernel, MEMORY_BYTES) {
        assert!(error.to_string().contains("/proc/self/fd/"), "which file? {error}");
    }
}
