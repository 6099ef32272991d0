//! The end of everything that the kernel is doing at this moment.

use nftnl::nftnl_sys::libc;

/// Waits for a grace period of the kernel: each packet that was under way has been dealt with.
///
/// Takes some 10 ms. Gives false, at once, where the kernel does not offer it (with CPUs that have
/// no clock tick).
pub(crate) fn await_packets() -> bool {
    const NO_FLAGS: libc::c_long = 0;
    let command = libc::c_long::from(libc::MEMBARRIER_CMD_GLOBAL);
    // SAFETY: the call takes three numbers and touches no memory of ours.
    unsafe { libc::syscall(libc::SYS_membarrier, command, NO_FLAGS, NO_FLAGS) == 0 }
}
