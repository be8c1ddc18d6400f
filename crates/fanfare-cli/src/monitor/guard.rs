//! Keeps strangers' pages from reading what is served to this host alone.

use std::net::{IpAddr, SocketAddr};

use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

const REFUSAL: &str = "this address is served to the local host, by its address or as `localhost`: a page of another name could \
                       read it else; bind it to an address of a network to have it under a name\n";

/// A page of whatever name can have that name lead to the local host, and read what it finds there with the browser of who
/// visits it. So where this listens to the local host alone, it answers to no other names.
pub(super) async fn check(State(address): State<SocketAddr>, request: Request, next: Next) -> Response {
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    if address.ip().is_loopback() && !host.is_none_or(is_of_this_host) {
        return (StatusCode::MISDIRECTED_REQUEST, REFUSAL).into_response();
    }
    next.run(request).await
}

fn is_of_this_host(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let address = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || address.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_and_the_local_host_are_names_of_this_host() {
        for host in ["localhost", "LOCALHOST:9466", "127.0.0.1:9466", "127.0.0.1", "[::1]:9466", "[::1]"] {
            assert!(is_of_this_host(host), "{host}");
        }
        for host in
            ["evil.example", "evil.example:9466", "localhost.evil.example", "127.0.0.1.evil.example", ""]
        {
            assert!(!is_of_this_host(host), "{host}");
        }
    }
}
