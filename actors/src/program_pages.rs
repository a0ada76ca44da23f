//! The pages of the program's own file: starting touches most of them, and most of what it touches never again.

use std::ffi::{c_int, c_void};
use std::slice;

/// Gives the pages of the program's file back that nothing was written to. They stay in the system's cache of files: what is needed again is found
/// there, at the cost of a microsecond for each 64 KiB.
pub(crate) fn give_back() {
    // SAFETY: for the length of the call, the callback is given what it takes.
    unsafe { libc::dl_iterate_phdr(Some(give_back_segments), std::ptr::null_mut()) };
}

/// Called with the program first; what it returns ends the calls, so that libraries are left alone.
unsafe extern "C" fn give_back_segments(program: *mut libc::dl_phdr_info, _size: usize, _unused: *mut c_void) -> c_int {
    // SAFETY: the caller gives a description that is there for the length of the call, and so are the headers in it.
    let (start_of_all, headers) = unsafe {
        let program = &*program;
        (program.dlpi_addr, slice::from_raw_parts(program.dlpi_phdr, usize::from(program.dlpi_phnum)))
    };
    let page = procfs::page_size();
    for header in headers {
        // What may be written, and what the linker has written to and then locked, is in segments of their own, which have this flag.
        if header.p_type != libc::PT_LOAD || header.p_flags & libc::PF_W != 0 {
            continue;
        }
        // Whole pages of it only: the one at its end may be shared with the next segment.
        let start = (start_of_all + header.p_vaddr).next_multiple_of(page);
        let end = (start_of_all + header.p_vaddr + header.p_filesz) / page * page;
        if start < end {
            // SAFETY: these are pages of the program's file that are mapped for reading and running only and that nobody has changed: those that are
            // used again are read again, and have the bytes that they had. The system lets nobody write to the file of a program that runs.
            let refused = unsafe { libc::madvise(start as *mut c_void, (end - start) as usize, libc::MADV_DONTNEED) } != 0;
            if refused {
                tracing::debug!(fault = %std::io::Error::last_os_error(), "pages of the program were not given back");
            }
        }
    }
    1
}

#[cfg(test)]
mod tests {
    use super::*;
    use procfs::process::{MMPermissions, MMapPath, Process};

    /// Bytes of the program that run, and those of them that are in memory.
    fn code_bytes() -> (u64, u64) {
        let program = std::env::current_exe().unwrap();
        let maps = Process::myself().unwrap().smaps().unwrap();
        let is_code = |map: &&procfs::process::MemoryMap| {
            map.pathname == MMapPath::Path(program.clone()) && map.perms.contains(MMPermissions::EXECUTE)
        };
        let sizes = maps.iter().filter(is_code).map(|map| (map.extension.map["Size"], map.extension.map["Rss"]));
        sizes.fold((0, 0), |(size, resident), one| (size + one.0, resident + one.1))
    }

    #[test]
    fn the_program_goes_on_without_the_pages_that_it_gave_back() {
        let program = std::env::current_exe().unwrap();
        let maps = Process::myself().unwrap().maps().unwrap();
        for map in maps.iter().filter(|map| map.pathname == MMapPath::Path(program.clone())) {
            if map.perms.contains(MMPermissions::EXECUTE) {
                // SAFETY: the program's code, which is mapped for as long as it runs.
                let code = unsafe { slice::from_raw_parts(map.address.0 as *const u8, (map.address.1 - map.address.0) as usize) };
                std::hint::black_box(code.iter().step_by(4096).map(|byte| u64::from(*byte)).sum::<u64>());
            }
        }
        let (size, before) = code_bytes();
        assert!(before * 10 >= size * 9, "all of it was touched: {before} of {size}");
        give_back();
        let (_, after) = code_bytes();
        assert!(after * 4 < before * 3, "{after} of {before} bytes are left");
    }
}
