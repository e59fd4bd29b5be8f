//! Questions to the kernel by netlink, of any family, and what it answers.

use std::io;

use netlink_packet_core::{
    NLM_F_REQUEST, NetlinkDeserializable, NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use netlink_sys::{Socket, SocketAddr};

/// Puts a question by a socket of its own.
///
/// # Errors
/// Those of the socket.
pub(super) fn put<Q>(protocol: isize, question: Q, flags: u16) -> io::Result<Socket>
where
    Q: NetlinkSerializable + Into<NetlinkPayload<Q>>,
{
    let socket = Socket::new(protocol)?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut request = NetlinkMessage::from(question);
    request.header.flags = NLM_F_REQUEST | flags;
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    Ok(socket)
}

/// Receives messages until `with` has found in one what it wants.
///
/// # Errors
/// Those of the socket, and if a message cannot be read.
pub(super) fn receive<A, T>(
    socket: &Socket,
    mut with: impl FnMut(NetlinkPayload<A>) -> Option<io::Result<T>>,
) -> io::Result<T>
where
    A: NetlinkDeserializable,
{
    loop {
        let (answer, _) = socket.recv_from_full()?;
        let mut rest = answer.as_slice();
        while !rest.is_empty() {
            let message = NetlinkMessage::<A>::deserialize(rest).map_err(io::Error::other)?;
            let length = (message.header.length as usize).next_multiple_of(4);
            if let Some(found) = with(message.payload) {
                return found;
            }
            rest = rest.get(length..).unwrap_or_default();
        }
    }
}
