//! What has once been found stays right: each target runs on its corpus, without libFuzzer and its sanitizer.
use std::{
    fs,
    panic::{self, AssertUnwindSafe},
    path::Path,
    sync::{
        Mutex, Once, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

/// Panics on any thread: those of a worker or a server do not reach a test by themselves.
static PANICS: AtomicUsize = AtomicUsize::new(0);

fn run_corpus(name: &str, target: fn(&[u8])) {
    // One after the other, so that a panic is that of the input that is run.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _one_at_a_time = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let default = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            PANICS.fetch_add(1, Ordering::SeqCst);
            default(info);
        }));
    });
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    let mut count = 0;
    for file in fs::read_dir(&folder).expect("a corpus") {
        let path = file.expect("a file").path();
        let before = PANICS.load(Ordering::SeqCst);
        let data = fs::read(&path).expect("an input");
        let result = panic::catch_unwind(AssertUnwindSafe(|| target(&data)));
        let is_calm = result.is_ok() && PANICS.load(Ordering::SeqCst) == before;
        assert!(is_calm, "{}: panicked; see above", path.display());
        count += 1;
    }
    assert!(count > 0, "{}: no inputs", folder.display());
}

/// A test for each target, named for it.
mod the_corpus_passes {
    macro_rules! tests {
        ($($target:ident)*) => {
            $(
                #[test]
                fn $target() {
                    super::run_corpus(stringify!($target), pollux_fuzz::$target::run);
                }
            )*
        };
    }

    tests!(configuration kernel registers rings statistics vhost_user);
}
