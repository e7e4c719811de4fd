//! `ipam release --ip`: gives an address back whatever holds it (calicoctl §4.1).

use crate::arguments::Release;
use crate::failure::Failure;
use crate::show;
use datastore::Datastore;
use ipam::Clock;
use ipam::release::release_addresses;

/// Runs the command. Without an address it does nothing and succeeds, as upstream.
pub(crate) async fn run<D: Datastore>(
    store: &D,
    clock: &dyn Clock,
    options: &Release,
) -> Result<String, Failure> {
    let Some(text) = &options.ip else { return Ok(String::new()) };
    let address = show::address(text)?;
    let wanted = ipam::block::Release { address, handle: None, sequence: None };
    let outcome = release_addresses(store, clock, &[wanted])
        .await
        .map_err(|error| Failure::new(format!("error: {error}")))?;
    if let Some((_, failure)) = outcome.failed.first() {
        return Err(Failure::new(format!("error: {failure}")));
    }
    if outcome.released.is_empty() {
        return Err(Failure::new(format!("IP address {address} is not assigned")));
    }
    Ok(format!("Successfully released IP address {address}\n"))
}
