//! The node's agent, seen from the plugin: HTTP/1.1 and JSON over a unix socket, with a deadline.

use crate::error::{CniError, code};
use api::attachment::ErrorReply;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a request may take, connecting included. The agent answers in milliseconds or says why it cannot.
pub const DEADLINE: Duration = Duration::from_secs(10);

/// Answers beyond this many bytes are refused.
const ANSWER_LIMIT: usize = 1 << 20;

/// A connection that is made anew for each request: a plugin makes one.
#[derive(Clone, Debug)]
pub struct Agent {
    socket: PathBuf,
    deadline: Duration,
}

impl Agent {
    /// The agent that listens on `socket`.
    #[must_use]
    pub fn at(socket: PathBuf) -> Self {
        Self { socket, deadline: DEADLINE }
    }

    /// The same with another deadline.
    #[must_use]
    pub fn within(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Posts a request and returns the body of its answer.
    ///
    /// # Errors
    /// The agent's own verdict, or code 11 when it does not answer.
    pub fn post(&self, path: &str, body: &[u8]) -> Result<Vec<u8>, CniError> {
        self.exchange("POST", path, body)
    }

    fn garbled(&self, cause: &dyn std::fmt::Display) -> CniError {
        let message = format!("the agent at {} gave an answer that makes no sense", self.socket.display());
        CniError::new(code::PLUGIN, message).because(cause)
    }

    fn exchange(&self, method: &str, path: &str, body: &[u8]) -> Result<Vec<u8>, CniError> {
        let silent = |error: io::Error| {
            let message = format!(
                "the node agent does not answer at {}; see whether calico-node runs on this node",
                self.socket.display()
            );
            CniError::new(code::TRY_AGAIN, message).because(&error)
        };
        let answer = self.transfer(method, path, body).map_err(silent)?;
        let answer = Answer::parse(&answer).ok_or_else(|| self.garbled(&"it is not HTTP"))?;
        if answer.status / 100 == 2 {
            return Ok(answer.body.to_vec());
        }
        match serde_json::from_slice::<ErrorReply>(answer.body) {
            Ok(error) => Err(error.into()),
            Err(_) => {
                let message = format!("the node agent answered {} to {path}", answer.status);
                // A server that is starting or overloaded says so by a status of the five hundreds.
                let code = if answer.status >= 500 { code::TRY_AGAIN } else { code::PLUGIN };
                Err(CniError::new(code, message).because(&String::from_utf8_lossy(answer.body)))
            }
        }
    }

    /// One request, one answer, until the other side closes or the answer is complete.
    fn transfer(&self, method: &str, path: &str, body: &[u8]) -> io::Result<Vec<u8>> {
        let end = Instant::now() + self.deadline;
        let mut stream = connect(&self.socket, self.deadline)?;
        let mut request = format!(
            "{method} {path} HTTP/1.1\r\nhost: agent\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
             connection: close\r\n\r\n",
            body.len()
        )
        .into_bytes();
        request.extend_from_slice(body);
        stream.write_all(&request)?;
        let mut answer = Vec::new();
        let mut chunk = [0; 8192];
        while !Answer::parse(&answer).is_some_and(|answer| answer.complete) {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            stream.set_read_timeout(Some(left))?;
            let read = stream.read(&mut chunk)?;
            answer.extend_from_slice(chunk.get(..read).unwrap_or_default());
            if answer.len() > ANSWER_LIMIT {
                return Err(io::Error::other(format!("the answer is longer than {ANSWER_LIMIT} bytes")));
            }
            if read == 0 {
                break;
            }
        }
        match answer.is_empty() {
            true => Err(io::ErrorKind::UnexpectedEof.into()),
            false => Ok(answer),
        }
    }
}

/// Connects within `deadline`. While the agent restarts its socket stays, and connections wait in the backlog; only a
/// full backlog makes connecting itself wait, which the send timeout bounds.
fn connect(socket: &Path, deadline: Duration) -> io::Result<UnixStream> {
    let address = SocketAddrUnix::new(socket)?;
    let connection =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    set_socket_timeout(&connection, Timeout::Send, Some(deadline))?;
    rustix::net::connect(&connection, &address)?;
    Ok(UnixStream::from(connection))
}

/// An HTTP answer as far as it has come.
struct Answer<'a> {
    status: u16,
    body: &'a [u8],
    /// As long as announced.
    complete: bool,
}

impl<'a> Answer<'a> {
    /// `None` while the head is not complete, or is none.
    fn parse(text: &'a [u8]) -> Option<Self> {
        let split = text.windows(4).position(|window| window == b"\r\n\r\n")?;
        let (head, rest) = text.split_at_checked(split)?;
        let body = rest.get(4..)?;
        let head = std::str::from_utf8(head).ok()?;
        let mut lines = head.split("\r\n");
        let status = lines.next()?.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()?;
        let length: Option<usize> = lines
            .filter_map(|line| line.split_once(':'))
            .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
            .and_then(|(_, value)| value.trim().parse().ok());
        let (body, complete) = match length {
            Some(length) if body.len() >= length => (body.get(..length)?, true),
            _ => (body, false),
        };
        Some(Self { status, body, complete })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_complete_when_it_is_as_long_as_announced() {
        let text = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";
        let answer = Answer::parse(text).unwrap();
        assert!(answer.complete);
        assert_eq!((answer.status, answer.body), (200, b"{}".as_slice()));
        assert!(!Answer::parse(&text[..text.len() - 1]).unwrap().complete);
        assert!(Answer::parse(b"HTTP/1.1 200 OK\r\nContent-Le").is_none());
        assert!(Answer::parse(b"SSH-2.0\r\n\r\n").is_none());
    }

    #[test]
    fn a_missing_agent_may_be_tried_again() {
        let error =
            Agent::at(PathBuf::from("/nonexistent/agent.sock")).post("/v1/status", b"{}").unwrap_err();
        assert_eq!(error.code, 11);
        assert!(error.msg.contains("/nonexistent/agent.sock"), "{}", error.msg);
    }

    #[test]
    fn a_path_longer_than_a_socket_address_is_an_error() {
        let error = Agent::at(PathBuf::from("/x".repeat(100))).post("/v1/status", b"{}").unwrap_err();
        assert_eq!(error.code, 11);
    }
}
