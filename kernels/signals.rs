//! Messages for events that would end a process without one: a mapped file that was cut (SIGBUS), and memory that ran out.
//! A file that reaches the limit of file sizes (SIGXFSZ) no longer ends the process: the write fails.

use std::ops::Range;

/// Installs the handlers; a program calls it once, at its start. SIGBUS then names the mapped file that was cut (those of
/// [`mapped`]) and exits with 135. A write beyond `ulimit -f` fails. Under `ulimit -v` the allocator reserves fewer
/// addresses. On systems without signals it does nothing.
pub fn explain() {
    #[cfg(unix)]
    unix::explain();
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    unix::share_arenas();
}

/// The bytes of address space that `ulimit -v` allows, where it is set. Allocates nothing.
pub(crate) fn address_space_limit() -> Option<u64> {
    #[cfg(all(target_os = "linux", target_pointer_width = "64"))]
    return unix::address_space_limit();
    #[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
    None
}

/// Keeps the name of a file that is mapped at these addresses, escaped for a terminal, until it is dropped.
#[derive(Debug)]
pub struct Mapped(#[cfg_attr(not(unix), allow(dead_code))] Option<usize>);

/// Says that the file `name` is mapped at `addresses`. Of very many files at once, the last are not named.
pub fn mapped(addresses: Range<*const u8>, name: &str) -> Mapped {
    #[cfg(unix)]
    return Mapped(unix::keep(addresses, name));
    #[cfg(not(unix))]
    {
        let _ = (addresses, name);
        Mapped(None)
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        #[cfg(unix)]
        if let Some(slot) = self.0 {
            unix::forget(slot);
        }
    }
}

/// Ends the process with status 1 and a message that says how much memory was missing. Allocates nothing. On systems without
/// signals it returns.
pub(crate) fn out_of_memory(bytes: usize) {
    #[cfg(unix)]
    unix::out_of_memory(bytes);
    #[cfg(not(unix))]
    let _ = bytes;
}

#[cfg(unix)]
mod unix {
    use std::{
        ffi::{c_int, c_void},
        ops::Range,
        ptr,
        sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering},
    };

    /// A mapped file. `start` is 0 while the slot is free, and 1 while it is written.
    struct Slot {
        start: AtomicUsize,
        end: AtomicUsize,
        /// The end of the name, as much as there is room for.
        name: [AtomicU8; NAME_BYTES],
        len: AtomicUsize,
    }

    const NAME_BYTES: usize = 240;

    /// Checkpoints of the field have up to 191 files.
    static SLOTS: [Slot; 256] = [const {
        Slot {
            start: AtomicUsize::new(0),
            end: AtomicUsize::new(0),
            name: [const { AtomicU8::new(0) }; NAME_BYTES],
            len: AtomicUsize::new(0),
        }
    }; 256];

    pub(super) fn keep(addresses: Range<*const u8>, name: &str) -> Option<usize> {
        let free =
            |slot: &Slot| slot.start.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed);
        let index = SLOTS.iter().position(|slot| free(slot).is_ok())?;
        let slot = &SLOTS[index];
        let starts = name.char_indices().map(|(start, _)| start);
        let start = starts.chain([name.len()]).find(|start| name.len() - start <= NAME_BYTES);
        let name = &name.as_bytes()[start.unwrap_or(name.len())..];
        slot.name.iter().zip(name).for_each(|(to, byte)| to.store(*byte, Ordering::Relaxed));
        slot.len.store(name.len(), Ordering::Relaxed);
        slot.end.store(addresses.end as usize, Ordering::Relaxed);
        slot.start.store(addresses.start as usize, Ordering::Release);
        Some(index)
    }

    pub(super) fn forget(slot: usize) {
        SLOTS[slot].start.store(0, Ordering::Release);
    }

    /// The slot of the file that is mapped at an address.
    fn file_at(address: usize) -> Option<&'static Slot> {
        SLOTS.iter().find(|slot| {
            let start = slot.start.load(Ordering::Acquire);
            start > 1 && (start..slot.end.load(Ordering::Relaxed)).contains(&address)
        })
    }

    impl Slot {
        fn name<'b>(&self, buffer: &'b mut [u8; NAME_BYTES]) -> &'b [u8] {
            for (to, byte) in buffer.iter_mut().zip(&self.name) {
                *to = byte.load(Ordering::Relaxed);
            }
            &buffer[..self.len.load(Ordering::Relaxed).min(NAME_BYTES)]
        }
    }

    pub(super) fn explain() {
        answer(libc::SIGBUS, cut);
        // SAFETY: no handler is installed; the signal is ignored from here on.
        unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    }

    /// Under a limit of the address space, keeps glibc from taking 64 MiB of it for every few threads, of which it uses next
    /// to nothing: 800 MB were not enough then to train the model of 2 MB that 120 MB are enough for.
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    pub(super) fn share_arenas() {
        if super::address_space_limit().is_some() {
            // SAFETY: changes how much the allocator reserves from now on, and nothing that it gave out.
            unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
        }
    }

    #[cfg(all(target_os = "linux", target_pointer_width = "64"))]
    pub(super) fn address_space_limit() -> Option<u64> {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: the pointer is to a whole rlimit.
        let known = unsafe { libc::getrlimit(libc::RLIMIT_AS, &mut limit) } == 0;
        (known && limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur)
    }

    type Handler = extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void);

    fn answer(signal: c_int, handler: Handler) {
        // SAFETY: all zero is an empty mask and no flags. The handler calls nothing but write, sigaction and _exit, which
        // may be called from handlers (signal-safety(7)), and reads atomics.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handler as usize;
            action.sa_flags = libc::SA_SIGINFO;
            libc::sigaction(signal, &action, ptr::null_mut());
        }
    }

    /// Restores the default action, so that the signal ends the process once the handler has returned.
    fn give_up(signal: c_int) {
        // SAFETY: as in `answer`.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = libc::SIG_DFL;
            libc::sigaction(signal, &action, ptr::null_mut());
        }
    }

    extern "C" fn cut(signal: c_int, info: *mut libc::siginfo_t, _: *mut c_void) {
        // SAFETY: the system gives the handler a siginfo_t, which for this signal holds an address.
        let address = unsafe { (*info).si_addr() } as usize;
        match file_at(address) {
            Some(slot) => {
                say(b"j1: ");
                say(slot.name(&mut [0; NAME_BYTES]));
                say(b" was cut while it was in use (SIGBUS). Start again with the whole file; to replace a file that may ");
                say(b"be in use, write another and rename it\n");
                exit(128 + signal)
            }
            // Not ours. The access that failed fails again, without a handler.
            None => give_up(signal),
        }
    }

    pub(super) fn out_of_memory(bytes: usize) -> ! {
        // Other threads may find the same.
        static SAID: AtomicBool = AtomicBool::new(false);
        while SAID.swap(true, Ordering::Relaxed) {
            // SAFETY: waits for a signal, or for the end that the first one makes.
            unsafe { libc::pause() };
        }
        let mut digits = [0; 20];
        say(b"j1: out of memory: the system has no room for ");
        say(decimal(bytes, &mut digits));
        say(b" more bytes. Where ulimit -v or a job's limit is what ends it, raise that; else a smaller model or batch, ");
        say(b"fewer threads or less memory for keys and values may fit\n");
        exit(1)
    }

    fn decimal(mut number: usize, digits: &mut [u8; 20]) -> &[u8] {
        let mut at = digits.len();
        loop {
            at -= 1;
            digits[at] = b'0' + (number % 10) as u8;
            number /= 10;
            if number == 0 {
                return &digits[at..];
            }
        }
    }

    fn say(text: &[u8]) {
        // SAFETY: the pointer and length are of one slice. What cannot be written cannot be helped.
        unsafe { libc::write(2, text.as_ptr().cast(), text.len()) };
    }

    fn exit(status: c_int) -> ! {
        // SAFETY: ends the process without running anything.
        unsafe { libc::_exit(status) }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn files_are_found_by_address_while_they_are_mapped() {
            let at = |address: usize| {
                let name = file_at(address)?.name(&mut [0; NAME_BYTES]).to_owned();
                Some(String::from_utf8(name).unwrap())
            };
            let range = |start: usize, end: usize| {
                ptr::without_provenance(start)..ptr::without_provenance(end)
            };
            let (a, b) = (Some("a\\u{1b}".to_owned()), Some("b".to_owned()));
            let first = super::super::mapped(range(0x7000, 0x9000), "a\\u{1b}");
            let second = super::super::mapped(range(0x9000, 0x9001), "b");
            assert_eq!((at(0x6fff), at(0x7000)), (None, a.clone()));
            assert_eq!((at(0x8fff), at(0x9000), at(0x9001)), (a, b.clone(), None));
            drop(first);
            assert_eq!((at(0x7000), at(0x9000)), (None, b));
            drop(second);
            // The end of a long name, in whole characters.
            let long = super::super::mapped(range(0x7000, 0x9000), &"é/".repeat(200));
            assert_eq!(at(0x7000), Some("é/".repeat(80)));
            drop(long);
        }

        #[test]
        fn numbers_are_written_without_memory() {
            assert_eq!(decimal(0, &mut [0; 20]), b"0");
            assert_eq!(decimal(usize::MAX, &mut [0; 20]), usize::MAX.to_string().as_bytes());
        }
    }
}
