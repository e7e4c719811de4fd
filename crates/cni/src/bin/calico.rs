//! The CNI main plugin `calico`.

use std::process::ExitCode;

fn main() -> ExitCode {
    cni::invocation::run("Calico CNI plugin", &cni::plugin::Main)
}
