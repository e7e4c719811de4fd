//! A host beside the test's own, over a link that can be cut, and a disk that can be full: in namespaces, without root.

use crate::namespace::{Namespace, alone, change, index_of, raise};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkFlags, LinkMessage};
use rustix::mount::{MountFlags, mount};
use std::fs::File;
use std::future::Future;
use std::io::Write as _;
use std::path::Path;

/// The other host's address, over a link of its own.
pub(crate) const ADDRESS: &str = "10.99.0.2";

/// A host that is reached by a link.
pub(crate) struct Link {
    pub(crate) host: Namespace,
}

/// Runs `body` in namespaces of its own, with a host beside it.
pub(crate) fn beside_a_host<T: Future<Output = ()>>(name: &str, body: impl FnOnce(Link) -> T) {
    alone(name, || {
        let own = Namespace(File::open("/proc/thread-self/ns/net").unwrap());
        let host = Namespace::new();
        own.wire("link", "10.99.0.1/24", &host, "eth0", &format!("{ADDRESS}/24"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(body(Link { host }));
    });
}

impl Link {
    /// Lets nothing through, and tells nobody.
    pub(crate) fn cut(&self) {
        self.host.run(|| {
            let mut link = LinkMessage::default();
            link.header.index = index_of("eth0");
            link.header.change_mask = LinkFlags::Up;
            change(RouteNetlinkMessage::SetLink(link), 0);
        });
    }

    pub(crate) fn mend(&self) {
        self.host.run(|| raise(index_of("eth0")));
    }
}

/// Makes `folder` a disk of so many megabytes.
pub(crate) fn small_disk(folder: &Path, megabytes: u32) {
    let size = std::ffi::CString::new(format!("size={megabytes}m")).unwrap();
    mount("tmpfs", folder, "tmpfs", MountFlags::empty(), size.as_c_str()).unwrap();
}

/// Fills a disk to its last byte.
pub(crate) fn fill(file: &Path) {
    let mut file = File::create(file).unwrap();
    let zeros = vec![0; 1 << 16];
    while file.write_all(&zeros).is_ok() {}
    while file.write_all(&[0]).is_ok() {}
}
