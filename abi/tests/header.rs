//! The C header is generated from the Rust sources, and the one in the tree is what a generator run gives now.
use std::{env, fs, path::Path, process::Command};

#[test]
fn header_in_the_tree_is_in_step_with_the_sources() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut config = cbindgen::Config::from_file(root.join("cbindgen.toml")).expect("cbindgen.toml");
    config.macro_expansion.bitflags = false;
    let mut builder = cbindgen::Builder::new().with_config(config);
    for source in ["text.rs", "host_v1.rs", "plugin.rs", "segment.rs", "memory_region.rs", "block_v1.rs"] {
        builder = builder.with_src(root.join("src").join(source));
    }
    let mut generated = Vec::new();
    builder.generate().expect("bindings").write(&mut generated);
    let generated = String::from_utf8(generated).expect("UTF-8");
    let path = root.join("include/pollux.h");
    if env::var_os("POLLUX_BLESS").is_some() {
        fs::write(&path, &generated).expect("write header");
    }
    let current = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        generated == current,
        "abi/include/pollux.h is out of step: run POLLUX_BLESS=1 cargo test -p pollux-abi --test header"
    );
}

#[test]
fn header_compiles_as_c_and_as_cpp_and_agrees_on_sizes() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = env::temp_dir().join(format!("pollux-header-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("folder");
    let source = folder.join("sizes.c");
    fs::write(
        &source,
        "#include \"pollux.h\"\n\
         #ifdef __cplusplus\n#define _Static_assert static_assert\n#endif\n\
         _Static_assert(sizeof(PolluxBlockRequest) == 64, \"request\");\n\
         _Static_assert(sizeof(PolluxBlockCompletion) == 16, \"completion\");\n\
         _Static_assert(sizeof(PolluxBlockInfo) == 144, \"info\");\n\
         _Static_assert(sizeof(PolluxMemoryRegion) == 64, \"region\");\n\
         _Static_assert(sizeof(PolluxBlockV1) == 112, \"block/1\");\n\
         _Static_assert(POLLUX_BLOCK_WRITE_ZEROES == 4, \"constants\");\n",
    )
    .expect("source");
    for language in ["c", "c++"] {
        let result = Command::new("cc")
            .args(["-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-x", language, "-I"])
            .arg(root.join("include"))
            .arg(&source)
            .output();
        match result {
            Ok(output) => {
                let errors = String::from_utf8_lossy(&output.stderr);
                // A machine without a C++ front end says so; the C one comes with every linker that rustc can use.
                if language == "c++" && errors.contains("cc1plus") {
                    eprintln!("SKIPPED: header as C++: no C++ compiler");
                    continue;
                }
                assert!(output.status.success(), "{language}: {errors}");
            }
            Err(error) => panic!("cc: {error}"),
        }
    }
    fs::remove_dir_all(&folder).expect("clean up");
}
