//! As much of HTTP as the tests need: one request for a connection.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use crate::support::PATIENCE;

/// What was answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// In lower case.
    pub(crate) headers: String,
    pub(crate) body: String,
}

pub(crate) fn get(address: &str, path: &str) -> Answer {
    ask(address, "GET", path, "")
}

pub(crate) fn ask(address: &str, method: &str, path: &str, body: &str) -> Answer {
    ask_as(address, address, method, path, body)
}

/// The same, with another name for the host.
pub(crate) fn ask_as(host: &str, address: &str, method: &str, path: &str, body: &str) -> Answer {
    ask_with(&format!("Host: {host}"), address, method, path, body)
}

/// The same, with other headers.
pub(crate) fn ask_with(headers: &str, address: &str, method: &str, path: &str, body: &str) -> Answer {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let bytes = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\n{headers}\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {bytes}\r\n\r\n{body}"
    )
    .unwrap();
    let mut stream = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert!(stream.read_line(&mut head).unwrap() > 0, "{path}: {head}");
    }
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let headers = head.to_ascii_lowercase();
    let length = headers.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
    let body = match length {
        // It has none.
        _ if status == 204 => Vec::new(),
        Some(length) => exactly(&mut stream, length),
        None => std::iter::from_fn(|| Some(chunk(&mut stream)).filter(|chunk| !chunk.is_empty()))
            .flatten()
            .collect(),
    };
    Answer { status, headers, body: String::from_utf8(body).unwrap() }
}

fn exactly(stream: &mut impl Read, bytes: usize) -> Vec<u8> {
    let mut body = vec![0; bytes];
    stream.read_exact(&mut body).unwrap();
    body
}

/// The next part of an answer that does not say how long it is; the last one is empty.
fn chunk(stream: &mut impl BufRead) -> Vec<u8> {
    let mut size = String::new();
    stream.read_line(&mut size).unwrap();
    let mut chunk = exactly(stream, usize::from_str_radix(size.trim_end(), 16).unwrap() + "\r\n".len());
    chunk.truncate(chunk.len() - "\r\n".len());
    chunk
}
