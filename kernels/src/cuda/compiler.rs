//! Kernels from source to machine code: by NVRTC, for the GPU that was found, once.
//!
//! The sources of `kernels/cu` are part of the program. What comes out is kept in a folder, under a name that says what it was made from, with a checksum.

use super::machine::GpuError;
use cudarc::nvrtc::result;
use cudarc::nvrtc::sys;
use std::ffi::{CString, NulError, c_char, c_int};
use std::io;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::ptr;
use xxhash_rust::xxh3::xxh3_64;

/// The name by which the library is asked for.
const LIBRARY: &str = "libnvrtc";
/// The sources, under the names by which they include one another.
const SOURCES: [(&str, &str); 10] = [
    ("device.cuh", include_str!("../../cu/device.cuh")),
    ("warpgroup.cuh", include_str!("../../cu/warpgroup.cuh")),
    ("rows.cuh", include_str!("../../cu/rows.cuh")),
    ("attention.cuh", include_str!("../../cu/attention.cuh")),
    ("attention.cu", include_str!("../../cu/attention.cu")),
    ("attention_warpgroup.cu", include_str!("../../cu/attention_warpgroup.cu")),
    ("embed.cu", include_str!("../../cu/embed.cu")),
    ("layer_norm.cu", include_str!("../../cu/layer_norm.cu")),
    ("pool.cu", include_str!("../../cu/pool.cu")),
    ("search.cu", include_str!("../../cu/search.cu")),
];
/// First bytes of a file of machine code; the last one is the version of this format.
const MAGIC: [u8; 8] = *b"rgcubin\x01";
/// Longer files are not ours.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// Whether NVRTC can be loaded.
pub fn is_compiler_present() -> bool {
    // SAFETY: loading the library runs its initialisers, which is what it is for.
    unsafe { sys::is_culib_present() }
}

/// Machine code of all kernels for an architecture such as `sm_90`: from `folder` if it is there and whole, compiled and put there otherwise.
///
/// # Errors
/// No compiler, or one that does not know the architecture.
pub fn machine_code(architecture: &str, folder: &Path) -> Result<Vec<u8>, GpuError> {
    let path = path_in(folder, architecture);
    match read(&path) {
        Ok(Some(code)) => return Ok(code),
        Ok(None) => {}
        Err(fault) => tracing::warn!(path = %path.display(), %fault, "kept machine code cannot be read: compiling anew"),
    }
    machine_code_anew(architecture, folder)
}

/// [`machine_code`] without looking at what is kept, which it replaces.
pub(super) fn machine_code_anew(architecture: &str, folder: &Path) -> Result<Vec<u8>, GpuError> {
    let path = path_in(folder, architecture);
    let code = compile(architecture)?;
    if let Err(fault) = write(&path, &code) {
        tracing::warn!(path = %path.display(), %fault, "machine code is not kept: the next start compiles anew");
    }
    Ok(code)
}

/// Compiles all kernels for an architecture such as `sm_90`. Takes a second or two.
///
/// # Errors
/// As [`machine_code`].
pub fn compile(architecture: &str) -> Result<Vec<u8>, GpuError> {
    if !is_compiler_present() {
        return Err(GpuError::NoLibrary { library: LIBRARY });
    }
    // The library's functions are looked up when they are first called, and a missing one panics.
    let compiled = catch_unwind(|| compile_with_library(architecture));
    compiled.unwrap_or(Err(GpuError::NoLibrary { library: LIBRARY }))
}

fn compile_with_library(architecture: &str) -> Result<Vec<u8>, GpuError> {
    let failed = |log: String| GpuError::Compilation { architecture: architecture.to_owned(), log };
    let program = Program::new().map_err(failed)?;
    let options = options(architecture);
    // SAFETY: the program has been made and is destroyed by its drop only.
    match unsafe { result::compile_program(program.handle, &options) } {
        Ok(()) => program.code().map_err(failed),
        Err(fault) => Err(failed(format!("{fault}: {}", program.log()))),
    }
}

/// The architecture itself, not the virtual one, so that what comes out is machine code and a driver has nothing left to compile.
fn options(architecture: &str) -> [String; 3] {
    [format!("--gpu-architecture={architecture}"), "--std=c++17".to_owned(), "-default-device".to_owned()]
}

/// A program that is being compiled. Destroyed when it is dropped.
struct Program {
    handle: sys::nvrtcProgram,
    /// The library may look at the texts until the program is destroyed.
    _texts: Vec<CString>,
}

impl Program {
    fn new() -> Result<Self, String> {
        let all: String =
            SOURCES.iter().filter(|(name, _)| name.ends_with(".cu")).map(|(name, _)| format!("#include \"{name}\"\n")).collect();
        let texts = || -> Result<Vec<CString>, NulError> {
            let parts = SOURCES.iter().flat_map(|(name, text)| [*name, *text]);
            parts.chain(["kernels.cu", all.as_str()]).map(CString::new).collect()
        };
        let texts = texts().map_err(|fault| fault.to_string())?;
        let included = &texts[..2 * SOURCES.len()];
        let names: Vec<*const c_char> = included.iter().step_by(2).map(|text| text.as_ptr()).collect();
        let headers: Vec<*const c_char> = included.iter().skip(1).step_by(2).map(|text| text.as_ptr()).collect();
        let [name, source] = [2 * SOURCES.len(), 2 * SOURCES.len() + 1].map(|index| texts[index].as_ptr());
        let mut handle = ptr::null_mut();
        // SAFETY: all pointers are to strings that end with a zero and that the program keeps; both lists have the length that is said.
        let created = unsafe {
            sys::nvrtcCreateProgram(&mut handle, source, name, SOURCES.len() as c_int, headers.as_ptr(), names.as_ptr())
        };
        created.result().map_err(|fault| fault.to_string())?;
        Ok(Program { handle, _texts: texts })
    }

    fn code(&self) -> Result<Vec<u8>, String> {
        let mut size = 0;
        // SAFETY: the program is there and compiled, and the size is written to a variable of its type.
        unsafe { sys::nvrtcGetCUBINSize(self.handle, &mut size) }.result().map_err(|fault| fault.to_string())?;
        let mut code = vec![0u8; size];
        // SAFETY: as before; the buffer has the size that was asked for.
        unsafe { sys::nvrtcGetCUBIN(self.handle, code.as_mut_ptr().cast()) }.result().map_err(|fault| fault.to_string())?;
        Ok(code)
    }

    fn log(&self) -> String {
        // SAFETY: the program is there.
        let log = unsafe { result::get_program_log(self.handle) }.unwrap_or_default();
        let bytes: Vec<u8> = log.into_iter().map(|byte| byte as u8).take_while(|byte| *byte != 0).collect();
        String::from_utf8_lossy(&bytes).trim().to_owned()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: the program was made by the library and is not used after this.
        if let Err(fault) = unsafe { result::destroy_program(self.handle) } {
            tracing::debug!(%fault, "a compiled program is left in memory");
        }
    }
}

fn path_in(folder: &Path, architecture: &str) -> PathBuf {
    folder.join(format!("kernels-{:016x}-{architecture}.cubin", source_hash(architecture)))
}

/// Changes with every source, and with how they are compiled. Not with the compiler's version: what is kept needs no compiler to be there.
fn source_hash(architecture: &str) -> u64 {
    let options = options(architecture);
    let texts = SOURCES.iter().flat_map(|(name, text)| [*name, *text]).chain(options.iter().map(String::as_str));
    xxh3_64(&texts.flat_map(|text| [text.as_bytes(), &[0]].concat()).collect::<Vec<u8>>())
}

/// What is kept at `path`; nothing when there is no file, or one that is not whole.
fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match std::fs::metadata(path) {
        Ok(about) if about.len() > FILE_BYTES_MAX => return Ok(None),
        Ok(_) => {}
        Err(fault) if fault.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(fault) => return Err(fault),
    }
    let bytes = std::fs::read(path)?;
    let code = bytes.strip_prefix(&MAGIC).and_then(|rest| rest.split_first_chunk::<8>());
    Ok(code.filter(|(sum, code)| u64::from_le_bytes(**sum) == xxh3_64(code)).map(|(_, code)| code.to_vec()))
}

/// Keeps machine code: whole or not at all.
fn write(path: &Path, code: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    let unfinished = path.with_extension(format!("{}.unfinished", std::process::id()));
    std::fs::write(&unfinished, [&MAGIC, xxh3_64(code).to_le_bytes().as_slice(), code].concat())?;
    std::fs::rename(&unfinished, path)
}

#[cfg(test)]
mod tests {
    use super::super::machine::Kernel;
    use super::*;

    /// Whether the tests that compile can run. In CI they must.
    fn has_compiler() -> bool {
        let present = is_compiler_present();
        assert!(present || std::env::var_os("CI").is_none(), "CI needs NVRTC: scripts/install-nvrtc brings it");
        if !present {
            eprintln!("skipped: NVRTC cannot be loaded; scripts/run-tests brings it");
        }
        present
    }

    #[test]
    fn the_kernels_compile_for_every_architecture() {
        if !has_compiler() {
            return;
        }
        for architecture in ["sm_80", "sm_90", "sm_90a", "sm_100"] {
            let code = compile(architecture).unwrap();
            assert!(code.starts_with(b"\x7fELF"), "{architecture}");
            let has_warpgroups = architecture == "sm_90a";
            for kernel in Kernel::ALL.into_iter().filter(|kernel| has_warpgroups || !kernel.needs_warpgroups()) {
                let name = kernel.name().as_bytes();
                assert!(code.windows(name.len()).any(|window| window == name), "{architecture} lacks {kernel:?}");
            }
        }
    }

    #[test]
    fn an_unknown_architecture_is_an_error_that_names_it() {
        if !has_compiler() {
            return;
        }
        let fault = compile("sm_12345").unwrap_err().to_string();
        assert!(fault.contains("sm_12345"), "{fault}");
    }

    #[test]
    fn kept_code_is_used_again_and_damaged_code_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deeper/kernels.cubin");
        assert!(read(&path).unwrap().is_none());
        write(&path, b"machine code").unwrap();
        assert_eq!(read(&path).unwrap().unwrap(), b"machine code");
        let whole = std::fs::read(&path).unwrap();
        for length in 0..whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            assert!(read(&path).unwrap().is_none(), "cut to {length} bytes");
        }
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 4;
            std::fs::write(&path, damaged).unwrap();
            assert!(read(&path).unwrap().is_none(), "byte {at}");
        }
    }
}
