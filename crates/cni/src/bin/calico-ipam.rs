//! The CNI address management plugin `calico-ipam`.

use std::process::ExitCode;

fn main() -> ExitCode {
    cni::invocation::run("Calico CNI IPAM", &cni::ipam::Ipam)
}
