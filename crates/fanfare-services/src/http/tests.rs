use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::*;

/// A server that answers one request with the given bytes; the task ends with what it was sent.
async fn server(answer: impl Into<Vec<u8>>) -> (String, JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/resize?secret=1", listener.local_addr().unwrap());
    let answer = answer.into();
    let task = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let (mut request, mut chunk) = (Vec::new(), [0; 4096]);
        while !request.ends_with(b"{\"a\":1}") {
            let read = stream.read(&mut chunk).await.unwrap();
            assert!(read > 0, "the request ended early");
            request.extend_from_slice(&chunk[..read]);
        }
        stream.write_all(&answer).await.unwrap();
        String::from_utf8(request).unwrap()
    });
    (url, task)
}

fn response(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

async fn post(url: &str) -> Result<String, HttpError> {
    let context = [("fanfare-cid", "c1".to_owned()), ("fanfare-key", "größe 50%".to_owned())];
    let service = HttpService::new(url).unwrap().timeout(Duration::from_secs(10));
    let answer = service.run(Bytes::from_static(b"{\"a\":1}"), &context).await?;
    Ok(answer.get().to_owned())
}

#[tokio::test]
async fn payload_is_posted_and_the_answer_comes_back() {
    let (url, task) = server(response("201 Created", r#"{"b": 2.50}"#)).await;
    assert_eq!(post(&url).await.unwrap(), r#"{"b": 2.50}"#);
    let request = task.await.unwrap().to_lowercase();
    assert!(request.starts_with("post /resize?secret=1 http/1.1\r\n"), "{request}");
    for header in
        ["content-type: application/json", "fanfare-cid: c1", "fanfare-key: gr%c3%b6%c3%9fe%2050%25"]
    {
        assert!(request.contains(&format!("\r\n{header}\r\n")), "{header} is missing in {request}");
    }
}

#[tokio::test]
async fn empty_answer_is_null() {
    let (url, _task) = server(response("204 No Content", "")).await;
    assert_eq!(post(&url).await.unwrap(), "null");
}

#[tokio::test]
async fn failure_has_the_status_and_the_start_of_the_body_but_not_the_query() {
    let (url, _task) = server(response("422 Unprocessable Entity", &"no such image ".repeat(1000))).await;
    let error = post(&url).await.unwrap_err().to_string();
    assert!(error.contains("/resize answered 422 Unprocessable Entity: no such image"), "{error}");
    assert!(!error.contains("secret") && error.len() < 500, "{error}");
}

#[tokio::test]
async fn redirect_is_a_failure_and_not_followed() {
    let (other, followed) = server(response("200 OK", "1")).await;
    let redirect =
        format!("HTTP/1.1 307 Temporary Redirect\r\nlocation: {other}\r\ncontent-length: 0\r\n\r\n");
    let (url, _task) = server(redirect).await;
    let error = post(&url).await.unwrap_err();
    assert!(matches!(error, HttpError::Status { status: StatusCode::TEMPORARY_REDIRECT, .. }), "{error}");
    assert!(!followed.is_finished());
}

#[tokio::test]
async fn answer_that_is_not_json_is_a_failure() {
    let (url, _task) = server(response("200 OK", "<html>")).await;
    let error = post(&url).await.unwrap_err();
    let source = error.source().unwrap().to_string();
    assert!(source.ends_with(r#"it begins with "<html>""#), "{source}");
}

#[tokio::test]
async fn answer_that_is_too_large_is_a_failure() {
    let mut answer = response("200 OK", "").replace(": 0", ": 9000000").into_bytes();
    answer.resize(answer.len() + 9_000_000, b' ');
    let (url, _task) = server(answer).await;
    let error = post(&url).await.unwrap_err();
    assert!(matches!(error, HttpError::TooLarge { .. }), "{error}");
}

#[tokio::test]
async fn server_that_does_not_answer_runs_into_the_time_out() {
    let (url, _task) = server("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n1").await;
    let service = HttpService::new(&url).unwrap().timeout(Duration::from_millis(300));
    // The stream stays open for as long as the server's task waits for a request that ends otherwise.
    let error = service.run(Bytes::from_static(b"{}"), &[]).await.unwrap_err();
    assert!(matches!(error, HttpError::TimedOut { .. }), "{error}");
}

#[tokio::test]
async fn server_that_is_not_there_is_named() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let error = post(&format!("http://{address}/x")).await.unwrap_err();
    assert_eq!(error.to_string(), format!("POST http://{address}/x failed"));
    assert!(error.source().is_some());
}

#[test]
fn urls_that_cannot_be_posted_to_are_refused() {
    for url in ["", "example.com", "/path", "ftp://example.com", "file:///etc/passwd", "http://"] {
        assert!(HttpService::new(url).is_err(), "{url}");
    }
    let error = HttpService::new("https://me:hunter2 x@example.com/").unwrap_err();
    assert!(matches!(error, InvalidUrl::Credentials) && !error.to_string().contains("hunter2"), "{error}");
}

#[tokio::test]
async fn only_a_status_that_blames_the_request_is_not_worth_another_attempt() {
    for (status, fatal) in [
        ("400 Bad Request", true),
        ("422 Unprocessable Entity", true),
        ("408 Request Timeout", false),
        ("429 Too Many Requests", false),
        ("302 Found", false),
        ("503 Service Unavailable", false),
    ] {
        let (url, _task) = server(response(status, "")).await;
        assert_eq!(post(&url).await.unwrap_err().is_fatal(), fatal, "{status}");
    }
}
