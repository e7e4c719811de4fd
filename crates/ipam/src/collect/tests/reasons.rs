//! What is taken away is told with its reason, as a value.

use super::*;

/// What a pass has to say and to do, and the first of each.
fn effects(world: &World, collector: &mut Collector, minutes: i64) -> Vec<Effect> {
    let now = START + SignedDuration::from_mins(minutes);
    collector.step(now, Event::Begin { handles: false, grace: world.grace });
    collector.step(now, Event::Records(Arc::new(world.records.clone())));
    let mut effects = collector.step(now, Event::Cluster(world.cluster.clone()));
    if let Some(Effect::Ask(questions)) = effects.pop_if(|effect| matches!(effect, Effect::Ask(_))) {
        effects.extend(collector.step(now, Event::Answers(world.answers(&questions))));
    }
    effects
}

fn reasons(effects: &[Effect]) -> Vec<&str> {
    effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Note(Note::Condemned { reason, .. }) => Some(reason.as_str()),
            _ => None,
        })
        .collect()
}

#[test]
fn every_address_that_is_given_back_is_told_with_what_the_authority_said() {
    let mut world = World::of(&["a", "b"]);
    world.pod("went", "a");
    world.pod("moved", "a");
    world.remove_pod("went");
    world.cluster.pods.get_mut(&name("moved")).unwrap().node = "b".to_owned();
    let mut collector = Collector::default();
    assert!(reasons(&effects(&world, &mut collector, 0)).is_empty());
    let late = effects(&world, &mut collector, 16);
    let mut told = reasons(&late);
    told.sort_unstable();
    assert_eq!(told, ["pod default/moved is on another node", "pod default/went does not exist"]);
    world.cluster.nodes.remove("a");
    let late = effects(&world, &mut Collector::default(), 0);
    assert!(
        reasons(&late).iter().all(|reason| reason.starts_with("node a does not exist, pod ")),
        "{late:?}"
    );
}

#[test]
fn tasks_and_findings_are_plain_data() {
    let mut world = World::of(&["a"]);
    let address = world.pod("went", "a");
    world.remove_pod("went");
    let mut collector = Collector::default();
    effects(&world, &mut collector, 0);
    let late = effects(&world, &mut collector, 16);
    let [Effect::Note(note), Effect::Do(task)] = late.as_slice() else { panic!("{late:?}") };
    let note = serde_json::to_value(note).unwrap();
    assert_eq!((&note["kind"], &note["handle"]), (&"condemned".into(), &"went".into()));
    let task = serde_json::to_value(task).unwrap();
    assert_eq!((&task["task"], &task["releases"][0]), (&"release".into(), &address.to_string().into()));
    let lower = Task::LowerHandle {
        id: "h".to_owned(),
        blocks: ["10.0.0.0/28".parse().unwrap()].into(),
        revision: Revision(7),
    };
    let lower = serde_json::to_value(lower).unwrap();
    assert_eq!((&lower["blocks"][0], &lower["revision"]), (&"10.0.0.0/28".into(), &7.into()));
}
