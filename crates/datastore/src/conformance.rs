//! The contract of a Datastore as tests that every driver runs.
