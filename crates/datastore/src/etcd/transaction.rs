//! A commit as one transaction: checks and conditions of writes are its comparisons, and where one fails its other
//! branch reads the keys compared, which tells whose fault it was.

use super::messages::{
    self, Compare, DeleteRequest, Op, PutRequest, RangeRequest, RequestOp, TxnRequest, TxnResponse, Wanted,
};
use crate::{Key, Revision, Version, Write};

/// What a key must be like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Condition {
    /// There is none.
    Absent,
    /// Last changed at this revision.
    At(Revision),
}

/// What a write does to its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Put(String),
    Delete,
}

/// A key with what is asked of it and done to it.
#[derive(Clone, Debug)]
pub(super) struct Step {
    pub(super) key: Key,
    pub(super) path: String,
    pub(super) condition: Condition,
    /// `None`: only the condition is asked.
    pub(super) change: Option<Change>,
}

/// The condition that a write brings with it.
pub(super) fn condition_of(write: &Write) -> Condition {
    match write {
        Write::Create(_) | Write::Pass { seen: None, .. } => Condition::Absent,
        Write::Update(_, version) | Write::Delete(_, version) | Write::Pass { seen: Some(version), .. } => {
            Condition::At(version.revision)
        }
    }
}

/// The transaction of `steps`.
pub(super) fn request(steps: &[Step]) -> TxnRequest {
    let mut request = TxnRequest::default();
    for step in steps {
        let key = step.path.clone().into_bytes();
        let (target, wanted) = match step.condition {
            Condition::Absent => (Compare::VERSION, Wanted::Version(0)),
            Condition::At(revision) => {
                (Compare::MOD_REVISION, Wanted::ModRevision(messages::wire_revision(revision)))
            }
        };
        request.compare.push(Compare { target, key: key.clone(), wanted: Some(wanted) });
        let look = RangeRequest { key: key.clone(), keys_only: true, ..RangeRequest::default() };
        request.failure.push(RequestOp { op: Some(Op::Range(look)) });
        if let Some(change) = &step.change {
            let op = match change {
                Change::Put(value) => Op::Put(PutRequest { key, value: value.clone().into_bytes() }),
                Change::Delete => Op::Delete(DeleteRequest { key }),
            };
            request.success.push(RequestOp { op: Some(op) });
        }
    }
    request
}

/// More than one transaction takes, of what must be in one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooMany {
    /// Operations that belong together.
    pub(super) together: usize,
}

/// Cuts a commit into transactions of at most `limit` steps, one where that is enough.
///
/// Only handles are taken apart from the rest: those written before everything else, because a handle that counts
/// too much hurts nobody until a collector mends it, and those written or deleted after everything else, because by
/// then what they counted is gone. That is the order in which a store without transactions makes them too
/// (architecture D3). The handles that go ahead do so only while everything else still looks as it must.
pub(super) fn parts(checks: Vec<Step>, changes: Vec<Step>, limit: usize) -> Result<Vec<Vec<Step>>, TooMany> {
    let all = checks.len() + changes.len();
    if all <= limit {
        return Ok(vec![checks.into_iter().chain(changes).collect()]);
    }
    let is_handle = |step: &Step| matches!(step.key, Key::Handle(_));
    let is_put = |step: &Step| matches!(step.change, Some(Change::Put(_)));
    let ahead = changes.iter().take_while(|step| is_handle(step) && is_put(step)).count();
    let behind = changes[ahead..].iter().rev().take_while(|step| is_handle(step)).count();
    let core = &changes[ahead..changes.len() - behind];
    let together = checks.len() + core.len();
    let guards: Vec<Step> =
        checks.iter().chain(core).map(|step| Step { change: None, ..step.clone() }).collect();
    let room = limit.saturating_sub(together);
    if together > limit || (room == 0 && (ahead > 0 || (core.is_empty() && behind > 0))) {
        return Err(TooMany { together: together.max(1) });
    }
    let guarded = |chunk: &[Step]| guards.iter().chain(chunk).cloned().collect::<Vec<Step>>();
    let mut parts: Vec<Vec<Step>> = changes[..ahead].chunks(room.max(1)).map(guarded).collect();
    let last = &changes[changes.len() - behind..];
    if core.is_empty() {
        parts.extend(last.chunks(room.max(1)).map(guarded));
    } else {
        parts.push(checks.iter().chain(core).cloned().collect());
        parts.extend(last.chunks(limit).map(<[Step]>::to_vec));
    }
    Ok(parts)
}

/// The first key that was not as it must be; `None` for an answer that does not tell.
pub(super) fn culprit(steps: &[Step], answer: &TxnResponse) -> Option<Key> {
    steps.iter().zip(&answer.responses).find_map(|(step, response)| {
        let found = response.range.as_ref()?.kvs.first().map(|found| messages::revision(found.mod_revision));
        let wanted = match step.condition {
            Condition::Absent => None,
            Condition::At(revision) => Some(revision),
        };
        (found != wanted).then(|| step.key.clone())
    })
}

/// The version that `write` left, made at `revision`.
pub(super) fn version_of(write: &Write, revision: Revision) -> Version {
    match write {
        Write::Delete(_, version) => version.clone(),
        Write::Create(_) | Write::Update(..) | Write::Pass { .. } => Version { revision, uid: None },
    }
}

#[cfg(test)]
mod tests {
    use super::super::messages::{KeyValue, RangeResponse, ResponseOp};
    use super::*;

    fn step(path: &str, condition: Condition, change: Option<Change>) -> Step {
        Step { key: Key::Handle(path.to_owned()), path: path.to_owned(), condition, change }
    }

    fn found(revision: Option<i64>) -> ResponseOp {
        let kvs = revision.map(|mod_revision| KeyValue { mod_revision, ..KeyValue::default() });
        ResponseOp {
            range: Some(RangeResponse { kvs: kvs.into_iter().collect(), ..RangeResponse::default() }),
        }
    }

    #[test]
    fn every_step_is_compared_and_only_changes_are_made() {
        let steps = [
            step("guard", Condition::At(Revision(7)), None),
            step("new", Condition::Absent, Some(Change::Put("{}".to_owned()))),
            step("old", Condition::At(Revision(5)), Some(Change::Delete)),
        ];
        let request = request(&steps);
        assert_eq!(request.compare.len(), 3);
        assert_eq!(request.compare[1].wanted, Some(Wanted::Version(0)));
        assert_eq!(request.compare[2].wanted, Some(Wanted::ModRevision(5)));
        assert!(matches!(request.success[0].op, Some(Op::Put(_))));
        assert!(matches!(request.success[1].op, Some(Op::Delete(_))));
        assert_eq!(request.failure.len(), 3);
    }

    #[test]
    fn the_first_key_that_differs_is_the_culprit() {
        let steps = [step("a", Condition::At(Revision(7)), None), step("b", Condition::Absent, None)];
        let answer = |a, b| TxnResponse { responses: vec![found(a), found(b)], ..TxnResponse::default() };
        assert_eq!(culprit(&steps, &answer(Some(7), Some(9))), Some(Key::Handle("b".to_owned())));
        assert_eq!(culprit(&steps, &answer(None, None)), Some(Key::Handle("a".to_owned())));
        assert_eq!(culprit(&steps, &answer(Some(7), None)), None);
    }

    fn handles(count: usize, change: &Change) -> Vec<Step> {
        (0..count).map(|at| step(&format!("h{at}"), Condition::Absent, Some(change.clone()))).collect()
    }

    fn block() -> Step {
        let key = Key::Block("10.0.0.0/26".parse().unwrap());
        Step { key, ..step("b", Condition::At(Revision(3)), Some(Change::Put("{}".to_owned()))) }
    }

    fn put() -> Change {
        Change::Put("{}".to_owned())
    }

    #[test]
    fn a_commit_that_fits_is_one_transaction() {
        let mut changes = handles(6, &put());
        changes.push(block());
        let check = step("guard", Condition::Absent, None);
        let parts = parts(vec![check], changes, 8).unwrap();
        assert_eq!(parts.iter().map(Vec::len).collect::<Vec<_>>(), [8]);
    }

    #[test]
    fn handles_that_do_not_fit_go_ahead_of_the_block_under_its_conditions() {
        let mut changes = handles(5, &put());
        changes.push(block());
        let check = step("guard", Condition::Absent, None);
        let parts = parts(vec![check], changes, 5).unwrap();
        assert_eq!(parts.len(), 3);
        for part in &parts {
            assert!(part.len() <= 5);
            assert!(part.iter().any(|step| step.condition == Condition::At(Revision(3))));
        }
        let changed = |part: &[Step]| part.iter().filter(|step| step.change.is_some()).count();
        assert_eq!(parts.iter().map(|part| changed(part)).collect::<Vec<_>>(), [3, 2, 1]);
        assert_eq!(parts[2].last().unwrap().key, block().key);
    }

    #[test]
    fn handles_deleted_after_the_block_follow_it_and_never_go_ahead() {
        let mut changes = vec![block()];
        changes.extend(handles(5, &Change::Delete));
        let after = parts(Vec::new(), changes, 4).unwrap();
        assert_eq!(after[0].len(), 1);
        assert_eq!(after[0][0].key, block().key);
        assert_eq!(after.iter().map(Vec::len).sum::<usize>(), 6);
        let mut changes = handles(5, &Change::Delete);
        changes.push(block());
        assert_eq!(parts(Vec::new(), changes, 4).unwrap_err(), TooMany { together: 6 });
    }

    #[test]
    fn what_belongs_together_is_not_cut() {
        let blocks: Vec<Step> = (0..5).map(|_| block()).collect();
        assert_eq!(parts(Vec::new(), blocks, 4).unwrap_err(), TooMany { together: 5 });
    }
}
