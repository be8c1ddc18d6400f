//! What a broker says about itself.
//!
//! It does so in the first frame of a connection, which lapin reads and keeps to itself. So it is read once more, on a
//! connection that goes no further.

use std::io;

use futures_util::{AsyncReadExt, AsyncWriteExt};
use lapin::protocol::connection::Start;
use lapin::types::AMQPValue;

use super::config::Tls;
use super::{Address, dial};

/// The start of AMQP 0-9-1, from the client's side.
const PROTOCOL_HEADER: &[u8] = b"AMQP\x00\x00\x09\x01";
/// The largest first frame to accept. RabbitMQ's has some 500 bytes.
const FRAME_BYTES: usize = 64 * 1024;

/// The product's name and version.
pub(super) async fn read(address: &Address, tls: &Tls) -> io::Result<(String, String)> {
    let limit = dial::timeout(address.uri());
    let greeting = tokio::time::timeout(limit, first_frame(address, tls))
        .await
        .unwrap_or_else(|_| Err(io::Error::other(format!("no greeting within {limit:?}"))))?;
    let start = parse(&greeting).ok_or_else(|| io::Error::other("the greeting is not that of AMQP 0-9-1"))?;
    let property = |name: &str| match start.server_properties.inner().get(name) {
        Some(AMQPValue::LongString(text)) => text.to_string(),
        _ => "unknown".to_owned(),
    };
    Ok((property("product"), property("version")))
}

async fn first_frame(address: &Address, tls: &Tls) -> io::Result<Vec<u8>> {
    let runtime = lapin::runtime::default_runtime().map_err(io::Error::other)?;
    let mut stream = dial::dial(address.uri(), tls, &runtime).await?;
    stream.write_all(PROTOCOL_HEADER).await?;
    stream.flush().await?;
    // A type, a channel (two bytes), the length of what follows (four bytes).
    let mut head = [0; 7];
    stream.read_exact(&mut head).await?;
    let length = u32::from_be_bytes([head[3], head[4], head[5], head[6]]) as usize;
    if length > FRAME_BYTES {
        return Err(io::Error::other("the greeting is not that of AMQP 0-9-1"));
    }
    let mut frame = vec![0; length];
    stream.read_exact(&mut frame).await?;
    Ok(frame)
}

/// The method `connection.start`, class 10, method 10.
fn parse(frame: &[u8]) -> Option<Start> {
    let arguments = frame.strip_prefix(&[0, 10, 0, 10])?;
    lapin::protocol::connection::parse_start(arguments).ok().map(|(_, start)| start)
}
