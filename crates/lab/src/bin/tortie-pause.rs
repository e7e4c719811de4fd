//! Waits until it is told to end: the process of a container whose program is not there.
//!
//! SIGTERM ends it by the kernel's default. It allocates nothing and has no second thread, so that a hundred of them
//! cost next to nothing.

fn main() {
    loop {
        std::thread::park();
    }
}
