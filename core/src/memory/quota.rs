//! How much of this process's resources the memory of front ends may take. Each front end chooses how much it shares,
//! and the address space, the mappings (`vm.max_map_count`) and the descriptors of a process are limited: one front end
//! must not use up what all need.
use rustix::process::{Resource, getrlimit};
use std::{
    fs,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

/// Most mappings of one front end: its largest memory table twice, since the old one is in use until the new one is,
/// and while requests are in flight in it.
const FRONT_END_MAPPINGS: u64 = 2048;
/// Most bytes that the mappings of one front end have together: 16 TiB, an eighth of what a process on x86-64 can
/// address.
const FRONT_END_BYTES: u64 = 1 << 44;
/// Most bytes that those of all front ends have together: three quarters of it.
const PROCESS_BYTES: u64 = 6 * FRONT_END_BYTES;
/// The kernel's default.
const MAX_MAP_COUNT: u64 = 65530;

/// A front end, or all of them together, would exceed a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{owner} may have {most} {what} at a time")]
pub struct QuotaError {
    owner: &'static str,
    most: u64,
    what: &'static str,
}

/// What one front end may map. Its mappings may outlive it, and count until they are gone.
#[derive(Clone, Debug)]
pub struct Quota(Arc<Account>);

impl Quota {
    /// The quota of another front end.
    pub fn of_front_end() -> Self {
        Quota(Arc::new(Account::new("a front end", FRONT_END_MAPPINGS, FRONT_END_BYTES)))
    }

    /// Takes what a mapping of `bytes` bytes needs; the share gives it back when it is dropped.
    ///
    /// # Errors
    /// It exceeds what this front end may have, or all of them together.
    pub(super) fn take(&self, bytes: u64) -> Result<Share, QuotaError> {
        self.0.take(bytes)?;
        if let Err(error) = process().take(bytes) {
            self.0.give_back(bytes);
            return Err(error);
        }
        Ok(Share { account: self.0.clone(), bytes })
    }
}

/// What one mapping has taken.
#[derive(Debug)]
pub(super) struct Share {
    account: Arc<Account>,
    bytes: u64,
}

impl Drop for Share {
    fn drop(&mut self) {
        self.account.give_back(self.bytes);
        process().give_back(self.bytes);
    }
}

/// Two sums with their limits.
#[derive(Debug)]
struct Account {
    owner: &'static str,
    mappings: AtomicU64,
    most_mappings: u64,
    bytes: AtomicU64,
    most_bytes: u64,
}

impl Account {
    fn new(owner: &'static str, most_mappings: u64, most_bytes: u64) -> Self {
        Account { owner, mappings: AtomicU64::new(0), most_mappings, bytes: AtomicU64::new(0), most_bytes }
    }

    fn take(&self, bytes: u64) -> Result<(), QuotaError> {
        // Relaxed: only the sums matter, and each is changed as a whole.
        let add = |sum: &AtomicU64, amount: u64, most: u64| {
            let bounded = |old: u64| old.checked_add(amount).filter(|new| *new <= most);
            sum.fetch_update(Ordering::Relaxed, Ordering::Relaxed, bounded).is_ok()
        };
        let error = |most, what| QuotaError { owner: self.owner, most, what };
        if !add(&self.mappings, 1, self.most_mappings) {
            return Err(error(self.most_mappings, "mappings of memory files"));
        }
        if !add(&self.bytes, bytes, self.most_bytes) {
            self.mappings.fetch_sub(1, Ordering::Relaxed);
            return Err(error(self.most_bytes, "bytes of mapped memory files"));
        }
        Ok(())
    }

    fn give_back(&self, bytes: u64) {
        self.mappings.fetch_sub(1, Ordering::Relaxed);
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// The sums of all front ends. The limit of mappings is half of the process's limit of mappings or of descriptors,
/// whichever is lower, since each mapping keeps a descriptor; determined once.
fn process() -> &'static Account {
    static PROCESS: OnceLock<Account> = OnceLock::new();
    PROCESS.get_or_init(|| {
        let maps = fs::read_to_string("/proc/sys/vm/max_map_count").ok();
        let maps = maps.and_then(|text| text.trim().parse().ok()).unwrap_or(MAX_MAP_COUNT);
        let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        Account::new("all front ends together", maps.min(descriptors) / 2, PROCESS_BYTES)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_back_can_be_taken_again_and_no_more() {
        let account = Account::new("a test", 3, 100);
        for bytes in [50, 30, 20] {
            account.take(bytes).expect("within both bounds");
        }
        let message = account.take(0).expect_err("a fourth mapping").to_string();
        assert_eq!(message, "a test may have 3 mappings of memory files at a time");
        account.give_back(30);
        let message = account.take(31).expect_err("too many bytes").to_string();
        assert_eq!(message, "a test may have 100 bytes of mapped memory files at a time");
        account.take(u64::MAX).expect_err("a sum that overflows");
        account.take(30).expect("what was refused has taken nothing");
    }
}
