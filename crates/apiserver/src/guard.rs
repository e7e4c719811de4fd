//! Guards: what somebody may change of a kind, where that depends on the object and not on the kind alone.
//!
//! Roles say who may write a kind. A guard looks at one change of one object, and at others that it relies on; those must
//! still be as they were when the change is made.

use crate::error::Status;
use crate::escalation;
use crate::identity::User;
use crate::objects;
use crate::resource::Resource;
use crate::server::Server;
use jiff::Timestamp;
use serde_json::Value;
use std::cell::RefCell;
use std::fmt::Debug;
use storage::Check;

/// A change that a user asks for.
#[derive(Clone, Copy, Debug)]
pub struct Change<'a> {
    /// Who asks.
    pub user: &'a User,
    /// API group; empty for core.
    pub group: &'a str,
    /// Plural of the kind.
    pub resource: &'a str,
    /// Empty for cluster-scoped kinds.
    pub namespace: &'a str,
    /// Of the object.
    pub name: &'a str,
    /// The object as it is; none when it is to be created.
    pub old: Option<&'a Value>,
    /// The object as it is to be; none when it is to be deleted.
    pub new: Option<&'a Value>,
    /// The time.
    pub now: Timestamp,
}

/// Other objects that a guard looks at.
pub trait Others {
    /// The cluster-scoped object of this group, plural and name.
    fn get(&self, group: &str, resource: &str, name: &str) -> Option<Value>;
}

/// Judges changes.
pub trait Guard: Debug + Send + Sync {
    /// Whether the change may be made.
    ///
    /// # Errors
    /// Why not, as the end of the sentence that begins with the object and `is forbidden:`.
    fn judge(&self, change: &Change<'_>, others: &dyn Others) -> Result<(), String>;
}

struct Relied<'a> {
    server: &'a Server,
    on: RefCell<Vec<Check>>,
}

impl Others for Relied<'_> {
    fn get(&self, group: &str, resource: &str, name: &str) -> Option<Value> {
        let group = if group.is_empty() { "core" } else { group };
        let key = format!("/{group}/{resource}/{name}");
        let entry = self.server.store.get(&key);
        self.on.borrow_mut().push(match &entry {
            Some(entry) => Check::Revision(key, entry.revision),
            None => Check::Absent(key),
        });
        entry.map(|entry| objects::decode(&entry))
    }
}

impl Server {
    /// Asks all guards about a change from one state of an object to another. Returns what they relied on.
    pub(crate) fn guarded(
        &self,
        user: Option<&User>,
        resource: &Resource,
        namespace: &str,
        name: &str,
        (old, new): (Option<&Value>, Option<&Value>),
    ) -> Result<Vec<Check>, Status> {
        let Some(user) = user.filter(|user| !user.is_almighty()) else { return Ok(Vec::new()) };
        let relied = Relied { server: self, on: RefCell::default() };
        let change = Change {
            user,
            group: &resource.group,
            resource: &resource.plural,
            namespace,
            name,
            old,
            new,
            now: Timestamp::now(),
        };
        escalation::judge(&self.policy(), &change)
            .map_err(|why| Status::forbidden(&resource.group, &resource.plural, name, &why))?;
        for guard in &self.guards {
            guard
                .judge(&change, &relied)
                .map_err(|why| Status::forbidden(&resource.group, &resource.plural, name, &why))?;
        }
        Ok(relied.on.into_inner())
    }
}
