//! The kernels as a library of the processor: compiled by the C++ compiler, once for each state of the sources.

use super::memory::arena;
use libloading::Library;
use std::ffi::{CString, c_char, c_void};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use xxhash_rust::xxh3::xxh3_64;

/// Tells the library where the GPU's memory begins and ends, and where its own file is.
type MemoryIs = unsafe extern "C" fn(*const c_void, *const c_void, *const c_char);

/// The kernels.
pub(super) fn library() -> &'static Library {
    static LIBRARY: OnceLock<Library> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let file = compiled();
        // SAFETY: the library has no initialisers that do anything.
        let library = unsafe { Library::new(&file) }.unwrap();
        let (memory, file) = (arena(), CString::new(file.into_os_string().into_vec()).unwrap());
        // SAFETY: the function has this type and copies the text.
        unsafe {
            let memory_is = library.get::<MemoryIs>(b"memory_is").expect("the library finds races");
            memory_is(memory.start as *const c_void, memory.end as *const c_void, file.as_ptr());
        }
        library
    })
}

/// The library's file, beside the tests: compiled when there is none of these sources.
fn compiled() -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let name = format!("libragged_kernels_emulated-{:016x}.so", source_hash());
    let file = tests.parent().unwrap().join(name);
    if !file.exists() {
        let folder = tempfile::tempdir_in(tests.parent().unwrap()).unwrap();
        // Other processes may do the same: each finds a whole file.
        std::fs::rename(compile(folder.path()), &file).unwrap();
    }
    file
}

/// Changes with every source.
fn source_hash() -> u64 {
    let mut files: Vec<PathBuf> = ["cu", "src/cuda/emulator", "src/cuda/emulator.rs"]
        .map(|name| Path::new(env!("CARGO_MANIFEST_DIR")).join(name))
        .iter()
        .flat_map(|path| match path.is_dir() {
            true => std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).collect(),
            false => vec![path.clone()],
        })
        .collect();
    files.sort();
    xxh3_64(&files.iter().flat_map(|file| std::fs::read(file).unwrap()).collect::<Vec<u8>>())
}

/// Compiles the kernels so that they report what they read and write, and what looks at that so that it does not.
fn compile(folder: &Path) -> PathBuf {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR"));
    let emulator = sources.join("src/cuda/emulator");
    let run = |command: &mut Command| {
        let done = command.output().expect("a C++ compiler is there: `make setup` installs it");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    };
    let compiler = || {
        let mut compiler = Command::new("c++");
        compiler
            .args(["-O2", "-g1", "-std=c++17", "-fPIC", "-Wno-unknown-pragmas", "-I"])
            .arg(sources.join("cu"))
            .arg("-I")
            .arg(&emulator);
        compiler
    };
    let (kernels, races, library) = (folder.join("kernels.o"), folder.join("races.o"), folder.join("emulated.so"));
    run(compiler()
        .args(["-fsanitize=thread", "--param", "tsan-instrument-func-entry-exit=0", "-c"])
        .arg(emulator.join("kernels.cpp"))
        .arg("-o")
        .arg(&kernels));
    run(compiler().arg("-c").arg(emulator.join("races.cpp")).arg("-o").arg(&races));
    run(Command::new("c++").args(["-shared", "-Wl,-Bsymbolic"]).args([&kernels, &races]).arg("-o").arg(&library));
    library
}
