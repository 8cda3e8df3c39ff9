//! Sockets that others connect to, and HTTP on them.

pub mod serve;
mod timed;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::Context as _;
use socket2::{Domain, Socket, Type};
use tokio::net::TcpListener;

/// Connections that nobody has accepted yet; Linux cuts it at `net.core.somaxconn`.
const BACKLOG: i32 = 4_096;
const EVERY_ADDRESS: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

/// Listens on an address. `[::]` is every one of the machine, IPv6 and IPv4, whatever `net.ipv6.bindv6only` says, and every
/// IPv4 address where there is no IPv6. To be called in the runtime that is to serve it.
pub fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    on(address, bind).with_context(|| format!("failed to listen on {address}"))
}

fn on<T>(address: SocketAddr, bind: impl Fn(SocketAddr) -> io::Result<T>) -> io::Result<T> {
    bind(address).or_else(|error| {
        let has_no_ipv6 = matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL));
        match address.ip() == EVERY_ADDRESS && has_no_ipv6 {
            true => bind((Ipv4Addr::UNSPECIFIED, address.port()).into()),
            false => Err(error),
        }
    })
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    if address.ip() == EVERY_ADDRESS {
        socket.set_only_v6(false)?;
    }
    // A process that is started again need not wait for connections of the one before.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;

    #[tokio::test]
    async fn every_address_is_of_both_families() {
        let listener = match listen((Ipv6Addr::UNSPECIFIED, 0).into()) {
            Ok(listener) => listener,
            Err(error) => panic!("{error:#}"),
        };
        let port = listener.local_addr().unwrap().port();
        TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("by IPv4");
        if std::net::TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok() {
            TcpStream::connect((Ipv6Addr::LOCALHOST, port)).expect("by IPv6");
        }
        let error = listen(listener.local_addr().unwrap()).unwrap_err();
        assert!(error.to_string().starts_with("failed to listen on [::]:"), "{error}");
    }

    #[test]
    fn without_ipv6_it_is_every_address_of_ipv4_and_no_other_failure_is_hidden() {
        let failing = |code: i32| {
            move |address: SocketAddr| match address.is_ipv6() {
                true => Err(io::Error::from_raw_os_error(code)),
                false => Ok(address),
            }
        };
        let (every, one) = ("[::]:8080".parse().unwrap(), "[::1]:8080".parse().unwrap());
        let bound = on(every, failing(libc::EAFNOSUPPORT)).unwrap();
        assert_eq!(bound, "0.0.0.0:8080".parse().unwrap());
        assert!(on(every, failing(libc::EADDRINUSE)).is_err());
        assert!(on(one, failing(libc::EAFNOSUPPORT)).is_err());
    }
}
