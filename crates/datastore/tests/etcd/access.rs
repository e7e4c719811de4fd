//! Who is let in: certificates, and users with passwords.

use crate::server::{Plan, Server, Tls, ready, with_login, with_tls};
use crate::{handle, one};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use datastore::etcd::{Etcd, Settings};
use datastore::{CommitError, Datastore, Kind, ReadError, Record, Scope, Write};
use futures::StreamExt;
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use serde_json::json;
use std::path::Path;
use tempfile::TempDir;

/// An authority, and one certificate of it that serves both sides.
fn certificates(folder: &Path) -> Tls {
    let authority_key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let tls = Tls { authority: folder.join("ca"), certificate: folder.join("cert"), key: folder.join("key") };
    std::fs::write(&tls.authority, params.self_signed(&authority_key).unwrap().pem()).unwrap();
    let issuer = Issuer::new(params, authority_key);
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    std::fs::write(&tls.certificate, params.signed_by(&key, &issuer).unwrap().pem()).unwrap();
    std::fs::write(&tls.key, key.serialize_pem()).unwrap();
    tls
}

#[tokio::test]
async fn a_client_certificate_lets_in_and_none_or_a_strangers_does_not() {
    let folder = TempDir::new().unwrap();
    let tls = certificates(folder.path());
    let Some(server) = Server::start(&Plan { tls: Some(&tls), ..Plan::default() }) else { return };
    let store = Etcd::new(with_tls(server.settings(), &tls)).unwrap();
    ready(&store).await;
    let record = handle("h", 1);
    one(&store, Write::Create(record.clone())).await.unwrap();
    let mut watch = store.watch(&Scope::All(Kind::Handle), datastore::Revision(1)).await.unwrap();
    assert!(watch.next().await.unwrap().is_ok());

    let nobody = Etcd::new(Settings { identity: None, ..with_tls(server.settings(), &tls) }).unwrap();
    assert!(matches!(nobody.get(&record.key()).await, Err(ReadError::Unavailable { .. })));
    let elsewhere = TempDir::new().unwrap();
    let theirs = certificates(elsewhere.path());
    let stranger = Etcd::new(with_tls(server.settings(), &theirs)).unwrap();
    let refused = stranger.commit(&[], &[Write::Create(handle("x", 1))]).await;
    assert!(matches!(refused, Err(CommitError::Unavailable { .. })), "{refused:?}");
}

#[test]
fn certificates_that_are_none_are_named() {
    let folder = TempDir::new().unwrap();
    let tls = certificates(folder.path());
    std::fs::write(&tls.key, "nonsense").unwrap();
    let error = Etcd::new(with_tls(Settings::of(["https://127.0.0.1:1"]), &tls)).unwrap_err();
    assert!(error.to_string().contains("https://127.0.0.1:1"), "{error}");
    std::fs::remove_file(&tls.key).unwrap();
    let error = Etcd::new(with_tls(Settings::of(["https://127.0.0.1:1"]), &tls)).unwrap_err();
    assert!(error.to_string().contains("key"), "{error}");
    assert!(Etcd::new(Settings::of(["127.0.0.1:2379"])).is_err());
    assert!(Etcd::new(Settings::of(["unix:///run/etcd"])).is_err());
}

/// Turns authentication on: `root`, `calico` who may use Calico's keys, `ipam` who may use those of IPAM only.
async fn lock(server: &Server) {
    for user in ["root", "calico", "ipam"] {
        server.post("/v3/auth/user/add", json!({"name": user, "password": format!("{user}-secret")})).await;
        server.post("/v3/auth/role/add", json!({"name": user})).await;
        server.post("/v3/auth/user/grant", json!({"user": user, "role": user})).await;
    }
    for (role, first, end) in [("calico", "/calico/", "/calico0"), ("ipam", "/calico/ipam/", "/calico/ipam0")]
    {
        let (first, end) = (BASE64_STANDARD.encode(first), BASE64_STANDARD.encode(end));
        let perm = json!({"permType": "READWRITE", "key": first, "range_end": end});
        server.post("/v3/auth/role/grant", json!({"name": role, "perm": perm})).await;
    }
    server.post("/v3/auth/enable", json!({})).await;
}

#[tokio::test]
async fn a_login_lets_in_is_renewed_when_the_server_forgot_it_and_a_wrong_one_is_forbidden() {
    let Some(mut server) = Server::start(&Plan::default()) else { return };
    let store = Etcd::new(with_login(server.settings(), "calico", "calico-secret")).unwrap();
    // No login is wanted yet.
    ready(&store).await;
    lock(&server).await;
    let version = one(&store, Write::Create(handle("h", 1))).await.unwrap();
    let mut watch = store.watch(&Scope::All(Kind::Handle), datastore::Revision(1)).await.unwrap();
    assert!(watch.next().await.unwrap().is_ok());

    for settings in [with_login(server.settings(), "calico", "wrong"), server.settings()] {
        let stranger = Etcd::new(settings).unwrap();
        let read = stranger.get(&handle("h", 1).key()).await;
        assert!(matches!(read, Err(ReadError::Forbidden { .. })), "{read:?}");
        let refused = one(&stranger, Write::Create(handle("x", 1))).await;
        assert!(matches!(refused, Err(CommitError::Refused { .. })), "{refused:?}");
    }

    // A server that was started again knows none of the tokens that it gave.
    server.kill();
    server.run();
    ready(&store).await;
    let version = one(&store, Write::Update(handle("h", 2), version)).await.unwrap();
    let mut watch = store.watch(&Scope::All(Kind::Handle), datastore::Revision(1)).await.unwrap();
    watch.next().await.unwrap().unwrap();
    one(&store, Write::Delete(handle("h", 2), version)).await.unwrap();
}

#[tokio::test]
async fn what_a_users_role_does_not_cover_is_forbidden() {
    let Some(server) = Server::start(&Plan::default()) else { return };
    ready(&server.driver()).await;
    lock(&server).await;
    let store = Etcd::new(with_login(server.settings(), "ipam", "ipam-secret")).unwrap();
    one(&store, Write::Create(handle("h", 1))).await.unwrap();
    let scope = Scope::All(Kind::Pool);
    assert!(matches!(store.list(&scope).await, Err(ReadError::Forbidden { .. })));
    let watch = store.watch(&scope, datastore::Revision(1)).await.err();
    assert!(matches!(watch, Some(ReadError::Forbidden { .. })), "{watch:?}");
    let pool = api::Pool::with_defaults("p", "10.0.0.0/16".parse().unwrap());
    let refused = one(&store, Write::Create(Record::Pool(pool))).await;
    assert!(matches!(refused, Err(CommitError::Refused { .. })), "{refused:?}");
}
