//! Tokens of service accounts: made on request, believed while they last and their account exists.
//!
//! A token is a JSON web token signed with HMAC-SHA-256. The key is drawn once and kept in the store, so that tokens
//! outlive the server's process.

use crate::error::Status;
use crate::identity::User;
use crate::objects::{self, meta};
use crate::server::Server;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use bytes::Bytes;
use jiff::Timestamp;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use storage::Write;

/// Where the key is kept; no kind has its objects here.
const KEY: &str = "/tortie/token-key";
const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
const DEFAULT_SECONDS: i64 = 3600;
const MIN_SECONDS: i64 = 600;
const MAX_SECONDS: i64 = 1 << 32;
const BLOCK: usize = 64;

/// HMAC of RFC 2104 over SHA-256.
fn sign(key: &[u8], message: &[u8]) -> [u8; 32] {
    let mut block = [0_u8; BLOCK];
    if key.len() > BLOCK {
        block[..32].copy_from_slice(&Sha256::digest(key));
    } else {
        block[..key.len()].copy_from_slice(key);
    }
    let pad = |with: u8| block.map(|byte| byte ^ with);
    let inner = Sha256::new().chain_update(pad(0x36)).chain_update(message).finalize();
    Sha256::new().chain_update(pad(0x5c)).chain_update(inner).finalize().into()
}

/// Compares without telling by its duration where the first difference is.
fn equal(left: &[u8], right: &[u8]) -> bool {
    left.len() == right.len() && left.iter().zip(right).fold(0, |all, (a, b)| all | (a ^ b)) == 0
}

/// The write that makes the key, if there is none yet.
pub(crate) fn key(server: &Server) -> Option<Write> {
    if server.store.get(KEY).is_some() {
        return None;
    }
    let mut key = Vec::with_capacity(32);
    for _ in 0..2 {
        key.extend_from_slice(uuid::Uuid::new_v4().as_bytes());
    }
    Some(Write::Put(KEY.to_owned(), Bytes::from(key)))
}

/// Who a request with this `Authorization` header is made by.
///
/// # Errors
/// 401 for anything but a token of ours that still holds.
pub(crate) fn authenticate(server: &Server, authorization: &str) -> Result<User, Status> {
    let token = authorization.strip_prefix("Bearer ").ok_or_else(Status::unauthorized)?;
    verify(server, token.trim()).ok_or_else(Status::unauthorized)
}

/// Who a token stands for.
pub(crate) fn verify(server: &Server, token: &str) -> Option<User> {
    let key = server.store.get(KEY)?;
    let (signed, signature) = token.rsplit_once('.')?;
    let signature = BASE64.decode(signature).ok()?;
    if !equal(&sign(&key.value, signed.as_bytes()), &signature) {
        return None;
    }
    let claims: Value = serde_json::from_slice(&BASE64.decode(signed.split_once('.')?.1).ok()?).ok()?;
    if claims["exp"].as_i64()? <= Timestamp::now().as_second() {
        return None;
    }
    let kubernetes = &claims["kubernetes.io"];
    let (namespace, name) =
        (kubernetes["namespace"].as_str()?, kubernetes["serviceaccount"]["name"].as_str()?);
    let uid = kubernetes["serviceaccount"]["uid"].as_str()?;
    let account = server.store.get(&format!("/core/serviceaccounts/{namespace}/{name}"))?;
    (objects::head(&account).metadata.uid == uid).then(|| User::service_account(namespace, name, uid))
}

/// Answers a TokenRequest for a service account.
///
/// # Errors
/// 404 without the account.
pub(crate) fn issue(
    server: &Server,
    namespace: &str,
    name: &str,
    mut request: Value,
) -> Result<Value, Status> {
    let account = server
        .store
        .get(&format!("/core/serviceaccounts/{namespace}/{name}"))
        .ok_or_else(|| Status::not_found("", "serviceaccounts", name))?;
    let account = objects::decode(&account);
    let key = server.store.get(KEY).ok_or_else(|| Status::internal("the key of tokens is missing"))?;
    let asked = request["spec"]["expirationSeconds"].as_i64().unwrap_or(DEFAULT_SECONDS);
    let seconds = asked.clamp(MIN_SECONDS, MAX_SECONDS);
    let now = Timestamp::now().as_second();
    let audiences = match request["spec"]["audiences"].as_array() {
        Some(list) if !list.is_empty() => list.clone(),
        _ => vec![ISSUER.into()],
    };
    let claims = json!({
        "iss": ISSUER, "aud": audiences, "iat": now, "nbf": now, "exp": now + seconds,
        "sub": format!("system:serviceaccount:{namespace}:{name}"),
        "kubernetes.io": {"namespace": namespace, "serviceaccount": {"name": name, "uid": meta(&account, "uid")}},
    });
    let header = BASE64.encode(json!({"alg": "HS256", "typ": "JWT"}).to_string());
    let signed = format!("{header}.{}", BASE64.encode(claims.to_string()));
    let token = format!("{signed}.{}", BASE64.encode(sign(&key.value, signed.as_bytes())));
    let expires = Timestamp::from_second(now + seconds).unwrap_or(Timestamp::MAX);
    request["kind"] = "TokenRequest".into();
    request["apiVersion"] = "authentication.k8s.io/v1".into();
    request["metadata"]["name"] = name.into();
    request["metadata"]["namespace"] = namespace.into();
    request["metadata"]["creationTimestamp"] = objects::now().into();
    request["spec"]["expirationSeconds"] = seconds.into();
    request["spec"]["audiences"] = audiences.into();
    request["status"] = json!({"token": token, "expirationTimestamp": objects::timestamp(expires)});
    Ok(request)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_are_those_of_the_rfc() {
        // RFC 4231, test case 2.
        let signature = sign(b"Jefe", b"what do ya want for nothing?");
        let hex: String = signature.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
    }
}
