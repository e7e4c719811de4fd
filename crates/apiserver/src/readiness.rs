//! Whether the server can do its work: a store that takes no writes is not ready, and says why.

use crate::answer;
use crate::server::Server;
use axum::body::Body;
use http::Response;
use storage::{Commit, Write};

/// Where nothing is kept: written and deleted in one commit, to find out whether the disk has room again.
const PROBE: &str = "/tortie/probe";
const PROBE_BYTES: usize = 32 << 10;

/// Why no writes are taken, if that is so. Asks the disk again after a failure, because nobody else may.
async fn trouble(server: &Server) -> Option<String> {
    server.store.trouble()?;
    let writes = vec![Write::Put(PROBE.into(), vec![0; PROBE_BYTES].into()), Write::Delete(PROBE.into())];
    // Whatever this comes to, the store says it.
    let _ = server.store.commit(Commit { checks: Vec::new(), writes }).await;
    server.store.trouble()
}

/// The answer of `/readyz`.
pub(crate) async fn answer(server: &Server) -> Response<Body> {
    match trouble(server).await {
        None => answer::text(200, "ok"),
        Some(reason) => {
            let text =
                format!("[+]ping ok\n[-]store failed: it is read-only: {reason}\nreadyz check failed\n");
            answer::text(500, text)
        }
    }
}

#[cfg(test)]
#[path = "../../storage/tests/disk/mod.rs"]
#[expect(dead_code, reason = "the store's own tests ask more of it")]
mod simulated;

#[cfg(test)]
mod tests {
    use super::simulated::Disk;
    use super::*;
    use crate::server::Options;
    use http_body_util::BodyExt;
    use std::sync::Arc;
    use storage::{Limits, Store};

    async fn asked(server: &Server) -> (u16, String) {
        let answer = answer(server).await;
        let code = answer.status().as_u16();
        (code, String::from_utf8(answer.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap())
    }

    #[tokio::test]
    async fn a_server_whose_disk_is_full_is_not_ready_until_there_is_room() {
        let disk = Disk::new(1);
        let made = disk.clone();
        let store = Store::open_on(move || made.clone(), Limits::default()).unwrap();
        let options = Options {
            data_file: "unused".into(),
            pki_dir: "none".into(),
            listeners: Vec::new(),
            kubelet_socket_dir: "none".into(),
            service_cidr: "10.96.0.0/16".into(),
            server_version: "v1.28.0".into(),
            advertise: None,
            guards: Vec::new(),
        };
        let server: Arc<Server> = Server::over(store, &options).unwrap();
        assert_eq!(asked(&server).await, (200, "ok".to_owned()));
        disk.give_space(disk.size() + 300_000);
        let put = |number: usize| Commit {
            checks: Vec::new(),
            writes: vec![Write::Put(format!("/{number}"), "x".repeat(20_000).into())],
        };
        let mut number = 0;
        while server.store.commit(put(number)).await.is_ok() {
            number += 1;
        }
        for _ in 0..3 {
            let (code, said) = asked(&server).await;
            assert_eq!(code, 500);
            assert!(said.contains("[-]store failed: it is read-only: ") && said.contains("space"), "{said}");
        }
        assert!(server.store.get("/0").is_some(), "what is there is read");
        disk.give_space(disk.size() + 10_000_000);
        assert_eq!(asked(&server).await, (200, "ok".to_owned()));
        assert!(server.store.get(PROBE).is_none());
        server.store.commit(put(number)).await.unwrap();
    }
}
