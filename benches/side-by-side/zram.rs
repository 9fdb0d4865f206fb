//! A block device in memory: a zram disk, taken away when dropped.
use std::{
    fs, io,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

const CONTROL: &str = "/sys/class/zram-control";
/// How long the device may still be in use by those who have just left it.
const PATIENCE: Duration = Duration::from_secs(10);

/// The disk.
#[derive(Debug)]
pub(crate) struct Zram {
    number: u32,
    /// Whether there was none of that number before.
    is_new: bool,
}

impl Zram {
    /// A disk of `bytes`: a new one, or else the first if nobody uses it. `Err`: why there is none.
    pub(crate) fn new(bytes: u64) -> Result<Self, String> {
        let disk = match fs::read_to_string(format!("{CONTROL}/hot_add")) {
            Ok(number) => {
                let number = number.trim().parse().map_err(|_| format!("{CONTROL}/hot_add gives no number"))?;
                Zram { number, is_new: true }
            }
            Err(_) if is_free(0) => Zram { number: 0, is_new: false },
            Err(error) => return Err(format!("no zram disk ({CONTROL}/hot_add: {error}); load the module as root")),
        };
        // Refused if somebody else has been faster.
        match disk.write("disksize", &bytes.to_string()) {
            Ok(()) => Ok(disk),
            Err(error) => {
                let reason = format!("{}: {error}", disk.attribute("disksize"));
                if !disk.is_new {
                    // It is not ours to reset.
                    std::mem::forget(disk);
                }
                Err(reason)
            }
        }
    }

    pub(crate) fn path(&self) -> PathBuf {
        format!("/dev/zram{}", self.number).into()
    }

    fn attribute(&self, name: &str) -> String {
        format!("/sys/block/zram{}/{name}", self.number)
    }

    fn write(&self, name: &str, value: &str) -> io::Result<()> {
        fs::write(self.attribute(name), value)
    }

    fn take_away(&self) -> io::Result<()> {
        self.write("reset", "1")?;
        if self.is_new { fs::write(format!("{CONTROL}/hot_remove"), self.number.to_string()) } else { Ok(()) }
    }
}

impl Drop for Zram {
    fn drop(&mut self) {
        let start = Instant::now();
        while let Err(error) = self.take_away() {
            if start.elapsed() > PATIENCE {
                eprintln!("{} is left behind: {error}; echo 1 > {}", self.path().display(), self.attribute("reset"));
                return;
            }
            thread::yield_now();
        }
    }
}

/// Whether a disk has no size yet, and is no swap space.
fn is_free(number: u32) -> bool {
    let size = fs::read_to_string(format!("/sys/block/zram{number}/disksize")).unwrap_or_default();
    let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
    size.trim() == "0" && !swaps.contains(&format!("/dev/zram{number} "))
}
