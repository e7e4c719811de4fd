//! SPDY/3.1 as kubectl speaks it: the streams of exec, attach and port-forward over one upgraded connection.
//!
//! No flow control: kubectl neither keeps nor expects windows (kube-api §12.3). Frames are refused beyond a size, and
//! a stream that is not read holds up the connection, so memory is bounded all the same.

mod frame;
mod headers;
mod session;

pub(super) use session::{Sender, Session, Stream};
