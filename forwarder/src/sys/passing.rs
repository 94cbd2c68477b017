//! Bytes and the file descriptors beside them (SCM_RIGHTS, unix(7)).
//!
//! `as _` stands where glibc and musl have integers of different sizes in the
//! same place.

use std::{
    io,
    mem::{size_of, zeroed},
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    ptr,
};

/// Most fds that the kernel passes in one message (SCM_MAX_FD).
const PASSED_MAX: usize = 253;

/// A `cmsghdr` and [`PASSED_MAX`] fds fit; u64 aligns it as `cmsghdr` needs.
type Ancillary = [u64; 2 + PASSED_MAX / 2 + 1];

#[derive(Debug)]
pub struct Received {
    pub bytes: usize,
    pub fds: Vec<OwnedFd>,
    /// The kernel dropped some fds (MSG_CTRUNC): this process may hold no more.
    pub cut: bool,
}

/// Reads what stands in `socket`, at most as far as the end of the message
/// that fds came with. Every fd received is owned by the answer.
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Received> {
    let mut ancillary: Ancillary = [0; 2 + PASSED_MAX / 2 + 1];
    let mut iov = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    // SAFETY: msghdr is plain data, for which all zeroes is a value.
    let mut message: libc::msghdr = unsafe { zeroed() };
    message.msg_iov = &raw mut iov;
    message.msg_iovlen = 1;
    message.msg_control = ancillary.as_mut_ptr().cast();
    message.msg_controllen = size_of::<Ancillary>() as _;
    let flags = libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT;
    // SAFETY: the header points at live buffers of the lengths it states.
    let got = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, flags) };
    let Ok(bytes) = usize::try_from(got) else {
        return Err(io::Error::last_os_error());
    };
    // SAFETY: recvmsg has just filled `message`, whose buffers still live.
    let fds = unsafe { take_fds(&message) };
    Ok(Received {
        bytes,
        fds,
        cut: message.msg_flags & libc::MSG_CTRUNC != 0,
    })
}

/// # Safety
/// `message` was filled by a recvmsg whose fds nobody has taken yet.
unsafe fn take_fds(message: &libc::msghdr) -> Vec<OwnedFd> {
    let mut fds = Vec::new();
    // SAFETY: the macros walk within msg_controllen, as the kernel set it.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(message) };
    // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR yield null or a whole header.
    while let Some(cmsg) = unsafe { header.as_ref() } {
        if cmsg.cmsg_level == libc::SOL_SOCKET && cmsg.cmsg_type == libc::SCM_RIGHTS {
            // SAFETY: CMSG_DATA points behind the header that it is given.
            let data = unsafe { libc::CMSG_DATA(cmsg) };
            let before = data as usize - ptr::from_ref(cmsg) as usize;
            let len: usize = cmsg.cmsg_len as _;
            for place in 0..(len - before) / size_of::<RawFd>() {
                // SAFETY: cmsg_len says that so many fds stand behind the
                // header, each open and ours alone.
                fds.push(unsafe {
                    let fd = data.cast::<RawFd>().add(place).read_unaligned();
                    OwnedFd::from_raw_fd(fd)
                });
            }
        }
        // SAFETY: as above.
        header = unsafe { libc::CMSG_NXTHDR(message, header) };
    }
    fds
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::{IoSlice, Write},
        os::{fd::AsFd, unix::net::UnixStream},
    };

    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

    use super::*;

    fn pass(socket: &UnixStream, bytes: &[u8], fds: &[RawFd]) {
        let rights = [ControlMessage::ScmRights(fds)];
        sendmsg::<()>(
            socket.as_raw_fd(),
            &[IoSlice::new(bytes)],
            &rights,
            MsgFlags::empty(),
            None,
        )
        .expect("send");
    }

    #[test]
    fn fds_arrive_with_their_bytes_and_a_read_ends_there() {
        let (mut here, there) = UnixStream::pair().expect("socket pair");
        let file = File::open("/dev/null").expect("open");
        here.write_all(b"before").expect("write");
        pass(&here, b"with", &[file.as_raw_fd(); 3]);
        here.write_all(b"after").expect("write");
        let mut buffer = [0; 64];
        let got = receive(there.as_fd(), &mut buffer).expect("receive");
        assert_eq!(
            (&buffer[..got.bytes], got.fds.len(), got.cut),
            (&b"beforewith"[..], 3, false)
        );
        let got = receive(there.as_fd(), &mut buffer).expect("receive");
        assert_eq!((&buffer[..got.bytes], got.fds.len()), (&b"after"[..], 0));
        let nothing = receive(there.as_fd(), &mut buffer).expect_err("nothing stands there");
        assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn the_most_that_the_kernel_passes_is_taken_in() {
        let (here, there) = UnixStream::pair().expect("socket pair");
        let file = File::open("/dev/null").expect("open");
        pass(&here, b"x", &[file.as_raw_fd(); PASSED_MAX]);
        let got = receive(there.as_fd(), &mut [0; 8]).expect("receive");
        assert_eq!((got.fds.len(), got.cut), (PASSED_MAX, false));
    }
}
