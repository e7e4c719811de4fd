//! Who serves the plugin's requests: the node's agent, or, on a node without one, a program that goes to the datastore.

use crate::agent::Agent;
use crate::direct::Direct;
use crate::error::{CniError, code};
use crate::invocation::Invocation;
use crate::sandbox;
use api::attachment::{
    AddAnswer, AddCall, AddReply, AddRequest, CheckRequest, DelRequest, GcReply, GcRequest, StatusRequest,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where the agent listens unless the configuration says otherwise.
pub const DEFAULT_AGENT_SOCKET: &str = "/run/tortie/ipam.sock";

/// One of the two.
#[derive(Clone, Debug)]
pub enum Server {
    /// The node's agent.
    Agent(Agent),
    /// A program for one request.
    Direct(Box<Direct>),
}

impl Server {
    /// Who serves this call.
    ///
    /// An agent that the configuration names is the only one: going past it while it restarts would overtake the releases that it
    /// owes. So would it be where an agent was reached through [`DEFAULT_AGENT_SOCKET`], and a socket that nobody listens at may be
    /// that of an agent that starts anew: only where there is no such file the datastore that is named is gone to directly, as
    /// Calico's plugin does. After a boot, before the agent made its socket, that cannot be told apart.
    ///
    /// # Errors
    /// Code 7 where the datastore would have to be gone to and the program for it is missing; 11 for a DEL.
    pub fn of(call: &Invocation) -> Result<Self, CniError> {
        let config = &call.config;
        let named = config.ipam.agent_socket.as_ref().or(config.agent_socket.as_ref());
        match named {
            Some(socket) => Ok(Self::Agent(Agent::at(socket.clone()))),
            None if Path::new(DEFAULT_AGENT_SOCKET).exists() || !config.names_datastore() => {
                Ok(Self::Agent(Agent::at(PathBuf::from(DEFAULT_AGENT_SOCKET))))
            }
            None => Direct::of(call).map(|direct| Self::Direct(Box::new(direct))),
        }
    }

    /// The same with another deadline for an agent; the program has its own.
    #[must_use]
    pub fn within(self, deadline: Duration) -> Self {
        match self {
            Self::Agent(agent) => Self::Agent(agent.within(deadline)),
            Self::Direct(direct) => Self::Direct(direct),
        }
    }

    fn ask(&self, path: &str, request: &impl Serialize) -> Result<Vec<u8>, CniError> {
        let unwritten = |error| CniError::new(code::PLUGIN, "a request cannot be written").because(&error);
        match self {
            Self::Agent(agent) => agent.post(path, &serde_json::to_vec(request).map_err(unwritten)?),
            Self::Direct(direct) => direct.ask(path, serde_json::to_value(request).map_err(unwritten)?),
        }
    }

    /// Asks for addresses, and no more than that.
    ///
    /// # Errors
    /// The server's verdict, or code 11 when it does not answer.
    pub fn add(&self, request: &AddRequest) -> Result<AddReply, CniError> {
        understood(&self.ask("/v1/add", request)?)
    }

    /// Asks for addresses, for whom the server may take over those of an earlier sandbox of the pod: it is told which are gone.
    ///
    /// # Errors
    /// As [`Server::add`].
    pub fn attach(&self, mut call: AddCall) -> Result<Vec<String>, CniError> {
        let answer: AddAnswer = understood(&self.ask("/v1/add", &call)?)?;
        if answer.asked.is_empty() {
            return Ok(answer.addresses);
        }
        call.looks = false;
        call.gone = answer.asked.into_iter().filter(|sandbox| sandbox::is_gone(sandbox)).collect();
        let answer: AddAnswer = understood(&self.ask("/v1/add", &call)?)?;
        Ok(answer.addresses)
    }

    /// Gives addresses back.
    ///
    /// # Errors
    /// As [`Server::add`].
    pub fn del(&self, request: &DelRequest) -> Result<(), CniError> {
        self.ask("/v1/del", request).map(|_| ())
    }

    /// Asks whether addresses are still held as they were answered.
    ///
    /// # Errors
    /// As [`Server::add`].
    pub fn check(&self, request: &CheckRequest) -> Result<(), CniError> {
        self.ask("/v1/check", request).map(|_| ())
    }

    /// Has given back what no valid attachment holds.
    ///
    /// # Errors
    /// As [`Server::add`].
    pub fn gc(&self, request: &GcRequest) -> Result<GcReply, CniError> {
        understood(&self.ask("/v1/gc", request)?)
    }

    /// Asks whether such addresses can be given out.
    ///
    /// # Errors
    /// As [`Server::add`]; 50 or 51 when they cannot.
    pub fn status(&self, request: &StatusRequest) -> Result<(), CniError> {
        self.ask("/v1/status", request).map(|_| ())
    }
}

fn understood<T: DeserializeOwned>(body: &[u8]) -> Result<T, CniError> {
    serde_json::from_slice(body).map_err(|error| {
        let message = "an answer makes no sense; are plugin and agent of one release?";
        CniError::new(code::PLUGIN, message).because(&error)
    })
}
