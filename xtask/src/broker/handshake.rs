//! The first frame that a broker sends: proof that it serves AMQP, and the version of the server.

use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

const LIMIT: Duration = Duration::from_secs(3);

/// Server properties take a few hundred bytes. What claims to be longer is no AMQP broker.
const FRAME_LIMIT: usize = 65_536;

/// The host and port of an `amqp://` URL; nothing for TLS and for lists.
pub(super) fn address(url: &str) -> Option<String> {
    let rest = url.strip_prefix("amqp://").filter(|rest| !rest.contains(','))?;
    let authority = rest.split(['/', '?']).next()?;
    let host = authority.rsplit('@').next().filter(|host| !host.is_empty())?;
    let has_port = host.rsplit(':').next().is_some_and(|port| port.parse::<u16>().is_ok());
    Some(if has_port { host.to_owned() } else { format!("{host}:5672") })
}

/// Connects, asks for AMQP 0-9-1 and returns the version that the server names in its answer.
pub(super) fn version(address: &str) -> Result<String> {
    let address = address.to_socket_addrs()?.next().context("the name has no address")?;
    let mut stream = TcpStream::connect_timeout(&address, LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(b"AMQP\0\0\x09\x01")?;
    let mut head = [0; 7];
    stream.read_exact(&mut head).context("no answer to the AMQP header")?;
    let [1, _, _, size @ ..] = head else { bail!("the answer is no AMQP method") };
    let size = u32::from_be_bytes(size) as usize;
    ensure!(size <= FRAME_LIMIT, "the answer is too long for AMQP");
    let mut frame = vec![0; size];
    stream.read_exact(&mut frame)?;
    server_version(&frame).context("the server does not name its version")
}

/// Finds `version` in the table of server properties of a `connection.start` method.
fn server_version(mut frame: &[u8]) -> Option<String> {
    let input = &mut frame;
    let [0, 10, 0, 10, 0, 9] = take(input, 6)? else { return None };
    let length = long(input)?;
    let table = &mut take(input, length)?;
    while !table.is_empty() {
        let length = take(table, 1)?[0];
        let name = take(table, length.into())?;
        let value = match take(table, 1)?[0] {
            b'S' | b'F' | b'A' | b'x' => long(table).and_then(|length| take(table, length))?,
            b't' | b'b' | b'B' => take(table, 1)?,
            b's' | b'u' => take(table, 2)?,
            b'I' | b'i' | b'f' => take(table, 4)?,
            b'l' | b'd' | b'T' => take(table, 8)?,
            b'D' => take(table, 5)?,
            b'V' => &[],
            _ => return None,
        };
        if name == b"version" {
            return Some(String::from_utf8_lossy(value).into_owned());
        }
    }
    None
}

fn long(input: &mut &[u8]) -> Option<usize> {
    take(input, 4).and_then(|bytes| Some(u32::from_be_bytes(bytes.try_into().ok()?) as usize))
}

fn take<'a>(input: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (taken, rest) = input.split_at_checked(count)?;
    *input = rest;
    Some(taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_is_found_behind_other_properties() {
        let table = b"\x0ccapabilitiesF\0\0\0\x0b\x09confirmst\x01\x07versionS\0\0\0\x054.0.5";
        let mut frame = vec![0, 10, 0, 10, 0, 9, 0, 0, 0, table.len() as u8];
        frame.extend(table);
        assert_eq!(server_version(&frame).as_deref(), Some("4.0.5"));
        assert_eq!(server_version(&frame[..20]), None);
    }

    #[test]
    fn address_is_the_url_without_its_secrets() {
        assert_eq!(address("amqp://u:p@host/%2f").as_deref(), Some("host:5672"));
        assert_eq!(address("amqp://host:1234").as_deref(), Some("host:1234"));
        assert_eq!(address("amqp://[::1]:1234/v?x=y").as_deref(), Some("[::1]:1234"));
        assert_eq!(address("amqps://host"), None);
        assert_eq!(address("amqp://a,amqp://b"), None);
    }
}
