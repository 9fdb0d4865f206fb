//! What starts a machine before any kernel does.
use crate::boot_disk::{OVMF_CODE, OVMF_VARIABLES};
use std::{fs, path::Path};

/// What starts a machine.
#[derive(Clone, Copy)]
pub(super) enum Firmware {
    /// The BIOS that QEMU has by default.
    SeaBios,
    /// UEFI.
    Ovmf,
}

impl Firmware {
    /// What GRUB calls it.
    pub(super) fn platform(self) -> &'static str {
        match self {
            Firmware::SeaBios => "i386-pc",
            Firmware::Ovmf => "x86_64-efi",
        }
    }

    /// QEMU's arguments.
    ///
    /// # Errors
    /// The file with its variables cannot be made.
    pub(super) fn arguments(self, folder: &Path) -> Result<Vec<String>, String> {
        match self {
            Firmware::SeaBios => Ok(Vec::new()),
            Firmware::Ovmf => {
                let variables = folder.join("variables.fd");
                fs::copy(OVMF_VARIABLES, &variables).map_err(|error| format!("{OVMF_VARIABLES}: {error}"))?;
                let code = format!("if=pflash,format=raw,unit=0,readonly=on,file={OVMF_CODE}");
                let variables = format!("if=pflash,format=raw,unit=1,file={}", variables.display());
                Ok(["-drive".into(), code, "-drive".into(), variables].into())
            }
        }
    }
}
