//! The connection to one of several members of an etcd cluster, moved to another when the member does not serve; the
//! token of a login; and calls over both.
//!
//! A connection is opened before a call and thrown away when a call over it has no answer. That tells a request that
//! was never sent from one whose answer was lost: only the first is safe to make again.

use super::failure::{Failure, root_cause};
use super::messages::{
    AUTHENTICATE, AuthenticateRequest, AuthenticateResponse, RANGE, RangeRequest, RangeResponse,
};
use super::settings::{Login, Settings, SettingsError};
use http::uri::PathAndQuery;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Request, Streaming};
use tonic_prost::ProstCodec;

/// How long making a connection to one member may take.
const CONNECT: Duration = Duration::from_secs(1);

/// How long a member was tried that is not tried first by the next caller, if its own had no more time.
const CHANCE: Duration = Duration::from_millis(250);

/// How long a member that took a connection may take for a first answer, where there are others. One that stands still takes
/// connections too: the system accepts them for it.
const SIGN_OF_LIFE: Duration = Duration::from_millis(500);

/// A connection on which nothing moves is asked for a sign of life this often. etcd turns clients away that ask more
/// often than every five seconds.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// How long that sign may take.
const KEEP_ALIVE_ANSWER: Duration = Duration::from_secs(3);

/// A connection in use.
#[derive(Clone, Debug)]
pub(super) struct Connection {
    channel: Channel,
    /// Which one, so that its failure is not counted against its successor.
    number: u64,
    /// Turns true when the connection is given up, so that watches over it do not wait for ever.
    given_up: watch::Receiver<bool>,
}

impl Connection {
    /// Returns when the connection has been given up.
    pub(super) async fn ended(mut self) {
        // An error means that the driver itself is gone.
        let _ = self.given_up.wait_for(|given_up| *given_up).await;
    }
}

#[derive(Debug, Default)]
struct State {
    /// The member to be tried first.
    member: usize,
    number: u64,
    connection: Option<(Connection, watch::Sender<bool>)>,
    token: Option<MetadataValue<Ascii>>,
    /// The servers said that they want no login.
    authentication_off: bool,
}

/// The members and the connection to one of them.
#[derive(Debug)]
pub(super) struct Members {
    endpoints: Vec<Endpoint>,
    login: Option<Login>,
    state: Mutex<State>,
    /// Held while connecting, so that many callers make one connection.
    connecting: tokio::sync::Mutex<()>,
    /// Held while logging in, likewise.
    logging_in: tokio::sync::Mutex<()>,
}

impl Members {
    pub(super) fn new(settings: &Settings) -> Result<Self, SettingsError> {
        if settings.endpoints.is_empty() {
            return Err(SettingsError::NoEndpoint);
        }
        let mut tls = ClientTlsConfig::new().assume_http2(true);
        tls = match &settings.authority {
            Some(authority) => tls.ca_certificate(Certificate::from_pem(authority.read()?)),
            None => tls.with_native_roots(),
        };
        if let Some((certificate, key)) = &settings.identity {
            tls = tls.identity(Identity::from_pem(certificate.read()?, key.read()?));
        }
        let endpoints =
            settings.endpoints.iter().map(|text| endpoint(text, &tls)).collect::<Result<_, _>>()?;
        Ok(Self {
            endpoints,
            login: settings.login.clone(),
            state: Mutex::default(),
            connecting: tokio::sync::Mutex::default(),
            logging_in: tokio::sync::Mutex::default(),
        })
    }

    /// Whether there is another where one does not answer.
    pub(super) fn are_several(&self) -> bool {
        self.endpoints.len() > 1
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection there is, or a new one to the first member that takes it.
    pub(super) async fn connection(&self) -> Result<Connection, Failure> {
        let known = |state: &State| state.connection.as_ref().map(|(connection, _)| connection.clone());
        if let Some(connection) = known(&self.state()) {
            return Ok(connection);
        }
        let _alone = self.connecting.lock().await;
        let first = {
            let state = self.state();
            if let Some(connection) = known(&state) {
                return Ok(connection);
            }
            state.member
        };
        let mut reasons = Vec::new();
        for step in 0..self.endpoints.len() {
            let member = (first + step) % self.endpoints.len();
            let endpoint = &self.endpoints[member];
            let trying = Trying { members: self, member, since: Instant::now() };
            // The endpoint's own limit does not cover the TLS handshake.
            let connected = tokio::time::timeout(CONNECT, endpoint.connect()).await;
            let reason = match connected {
                Ok(Ok(channel)) => {
                    let (ending, given_up) = watch::channel(false);
                    let number = self.state().number + 1;
                    let connection = Connection { channel, number, given_up };
                    if self.endpoints.len() == 1 || is_alive(&connection).await {
                        drop(trying);
                        let mut state = self.state();
                        state.member = member;
                        state.number = number;
                        state.connection = Some((connection.clone(), ending));
                        return Ok(connection);
                    }
                    format!(
                        "it has no leader, or gives no sign of life within {} ms",
                        SIGN_OF_LIFE.as_millis()
                    )
                }
                Ok(Err(error)) => root_cause(&error),
                Err(_) => format!("no connection within {} ms", CONNECT.as_millis()),
            };
            reasons.push(format!("{}: {reason}", endpoint.uri()));
        }
        Err(Failure::NotConnected(reasons.join("; ")))
    }

    /// Gives `connection` up, if it is still in use: the next call goes to the next member.
    pub(super) fn give_up(&self, connection: &Connection) {
        let mut state = self.state();
        let is_current =
            state.connection.as_ref().is_some_and(|(known, _)| known.number == connection.number);
        if is_current && let Some((_, ending)) = state.connection.take() {
            state.member = (state.member + 1) % self.endpoints.len();
            tracing::info!(member = %self.endpoints[state.member].uri(), "moving to another etcd member");
            let _ = ending.send(true);
        }
    }

    /// The token to send, after a login where one is needed.
    async fn token(&self, connection: &Connection) -> Result<Option<MetadataValue<Ascii>>, Failure> {
        let Some(login) = &self.login else { return Ok(None) };
        let known = |state: &State| (state.token.clone(), state.authentication_off);
        match known(&self.state()) {
            (None, false) => {}
            (token, _) => return Ok(token),
        }
        let _alone = self.logging_in.lock().await;
        match known(&self.state()) {
            (None, false) => {}
            (token, _) => return Ok(token),
        }
        let request = AuthenticateRequest { name: login.user.clone(), password: login.password.clone() };
        let answer: Result<AuthenticateResponse, Failure> =
            send(connection, AUTHENTICATE, request, None).await;
        let mut state = self.state();
        match answer {
            Ok(answer) => {
                let token =
                    MetadataValue::try_from(answer.token.as_str()).map_err(|_| Failure::Answered {
                        code: tonic::Code::Internal,
                        message: "the token of the login is no header".to_owned(),
                    })?;
                state.token = Some(token.clone());
                Ok(Some(token))
            }
            Err(failure) if failure.is_authentication_off() => {
                state.authentication_off = true;
                Ok(None)
            }
            // The request that needed the login was not sent.
            Err(Failure::NoAnswer(reason)) => Err(Failure::NotConnected(reason)),
            Err(failure) => Err(failure),
        }
    }

    /// One call, once. It is made again only where the server says that it turned the token away.
    pub(super) async fn call<Q, A>(
        &self,
        path: &'static str,
        request: Q,
        deadline: Duration,
    ) -> Result<A, Failure>
    where
        Q: prost::Message + Clone + 'static,
        A: prost::Message + Default + 'static,
    {
        let until = tokio::time::Instant::now() + deadline;
        let Ok(connection) = tokio::time::timeout_at(until, self.connection()).await else {
            return Err(Failure::NotConnected(format!("no connection within {} ms", deadline.as_millis())));
        };
        let connection = connection?;
        let mut last_try = self.login.is_none();
        loop {
            let token = match tokio::time::timeout_at(until, self.token(&connection)).await {
                Ok(token) => token,
                Err(_) => Err(Failure::NotConnected("no answer to the login".to_owned())),
            };
            let result = match token {
                Ok(token) => {
                    match tokio::time::timeout_at(until, send(&connection, path, request.clone(), token))
                        .await
                    {
                        Ok(result) => result,
                        Err(_) => Err(Failure::deadline(deadline)),
                    }
                }
                Err(failure) => Err(failure),
            };
            match result {
                Err(failure) if failure.is_stale_token() && !last_try => {
                    self.forget_token();
                    last_try = true;
                }
                Err(failure) if failure.is_of_the_member() => {
                    self.give_up(&connection);
                    return Err(failure);
                }
                result => return result,
            }
        }
    }

    pub(super) fn forget_token(&self) {
        let mut state = self.state();
        state.token = None;
        state.authentication_off = false;
    }

    /// Opens a call over `connection` that goes on in both directions. `requests` is what is said, from the first on.
    pub(super) async fn open<Q, A>(
        &self,
        connection: &Connection,
        path: &'static str,
        requests: impl tokio_stream::Stream<Item = Q> + Send + 'static,
    ) -> Result<Streaming<A>, Failure>
    where
        Q: prost::Message + 'static,
        A: prost::Message + Default + 'static,
    {
        let token = self.token(connection).await?;
        let opened = async {
            let mut grpc =
                tonic::client::Grpc::new(connection.channel.clone()).max_decoding_message_size(usize::MAX);
            grpc.ready().await.map_err(|error| Failure::NotConnected(root_cause(&error)))?;
            let request = dressed(Request::new(requests), token);
            let codec = ProstCodec::<Q, A>::default();
            let answer = grpc.streaming(request, PathAndQuery::from_static(path), codec).await;
            answer.map(tonic::Response::into_inner).map_err(|status| Failure::from_status(&status))
        };
        opened.await.inspect_err(|failure| {
            if failure.is_of_the_member() {
                self.give_up(connection);
            }
        })
    }
}

/// A member that is being connected to. A caller whose time is over goes in the middle of it: then the next one begins with
/// the member after it, or else nobody would ever come past one that is off.
struct Trying<'a> {
    members: &'a Members,
    member: usize,
    since: Instant,
}

impl Drop for Trying<'_> {
    fn drop(&mut self) {
        // One that had hardly begun is to have its turn.
        let next = self.member + usize::from(self.since.elapsed() >= CHANCE);
        self.members.state().member = next % self.members.endpoints.len();
    }
}

/// Whether a member serves, be it that it wants a login. One that is cut off from the others answers too, that it has no leader.
async fn is_alive(connection: &Connection) -> bool {
    let look = RangeRequest {
        key: b"/calico".to_vec(),
        serializable: true,
        keys_only: true,
        ..RangeRequest::default()
    };
    let answer = send::<_, RangeResponse>(connection, RANGE, look, None);
    match tokio::time::timeout(SIGN_OF_LIFE, answer).await {
        Ok(Ok(_)) => true,
        Ok(Err(failure)) => matches!(failure, Failure::Answered { .. }) && !failure.is_without_leader(),
        Err(_) => false,
    }
}

/// A member's address with its time limits and, for `https`, its TLS.
fn endpoint(text: &str, tls: &ClientTlsConfig) -> Result<Endpoint, SettingsError> {
    let bad = || SettingsError::Endpoint { endpoint: text.to_owned() };
    let uri: http::Uri = text.parse().map_err(|_| bad())?;
    if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return Err(SettingsError::Userinfo);
    }
    let secure = match (uri.scheme_str(), uri.host()) {
        (Some("http"), Some(_)) => false,
        (Some("https"), Some(_)) => true,
        _ => return Err(bad()),
    };
    let endpoint = Endpoint::from(uri);
    let endpoint = endpoint
        .connect_timeout(CONNECT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE_ANSWER)
        .keep_alive_while_idle(true);
    if !secure {
        return Ok(endpoint);
    }
    endpoint.tls_config(tls.clone()).map_err(|error| SettingsError::Certificates {
        endpoint: text.to_owned(),
        reason: root_cause(&error),
    })
}

/// The request with what every call carries: a member without a leader is to say so at once, and the token.
fn dressed<Q>(mut request: Request<Q>, token: Option<MetadataValue<Ascii>>) -> Request<Q> {
    request.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
    if let Some(token) = token {
        request.metadata_mut().insert("token", token);
    }
    request
}

async fn send<Q, A>(
    connection: &Connection,
    path: &'static str,
    request: Q,
    token: Option<MetadataValue<Ascii>>,
) -> Result<A, Failure>
where
    Q: prost::Message + 'static,
    A: prost::Message + Default + 'static,
{
    let mut grpc = tonic::client::Grpc::new(connection.channel.clone()).max_decoding_message_size(usize::MAX);
    grpc.ready().await.map_err(|error| Failure::NotConnected(root_cause(&error)))?;
    let request = dressed(Request::new(request), token);
    let answer = grpc.unary(request, PathAndQuery::from_static(path), ProstCodec::<Q, A>::default()).await;
    answer.map(tonic::Response::into_inner).map_err(|status| Failure::from_status(&status))
}
