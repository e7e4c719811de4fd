//! The requirements of the CNI specification 1.1, a test for each line, with the plugins and the agent that ship. The page
//! `docs/cni-conformance.md` is made of the table below: `TORTIE_BLESS=1 cargo test -p cni --test conformance` writes it anew.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

mod attach;
mod bench;
mod detach;
mod envelope;
#[path = "../../../datastore/tests/fake/mod.rs"]
mod fake;
mod look;
#[path = "../../../dataplane/tests/namespace/mod.rs"]
mod namespace;
mod pods;

use bench::Bench;
use namespace::alone;
use std::fmt::Write as _;
use std::path::Path;

/// Makes a test of each line, and the table of all.
macro_rules! lines {
    ($($section:literal { $($name:ident: $requirement:literal => $body:path;)* })*) => {
        /// Section, requirement, name of the test.
        const LINES: &[(&str, &str, &str)] = &[$($(($section, $requirement, stringify!($name)),)*)*];

        $($(
            #[test]
            fn $name() {
                alone(stringify!($name), || $body(&mut Bench::new()));
            }
        )*)*
    };
}

lines! {
    "Parameters" {
        unknown_verb_is_refused: "`CNI_COMMAND` is one of ADD, DEL, CHECK, GC, STATUS, VERSION; else code 4" => envelope::unknown_verb;
        missing_variables_are_named: "a verb's required variables: code 4 names every one that is missing" => envelope::missing_variables;
        malformed_container_is_refused: "`CNI_CONTAINERID` begins with a letter or digit, of letters, digits, `_`, `.`, `-`; else code 4" => envelope::malformed_container;
        malformed_interface_is_refused: "`CNI_IFNAME` has 1 to 15 bytes, is not `.` or `..`, without `/`, `:`, spaces; else code 4" => envelope::malformed_interface;
        malformed_arguments_are_refused: "`CNI_ARGS` is `K=V;K=V`; else code 4" => envelope::malformed_arguments;
        unknown_arguments_are_passed_over: "keys of `CNI_ARGS` that the plugin does not know change nothing" => envelope::unknown_arguments;
    }
    "Configuration" {
        configuration_that_is_no_json_is_refused: "standard input is JSON of the expected types; else code 6" => envelope::no_json;
        name_is_required: "`name` is there and well formed; else code 7" => envelope::name_required;
        unknown_version_is_refused: "`cniVersion` is one that VERSION lists; else code 1, naming both" => envelope::unknown_version;
        unknown_keys_are_passed_over: "keys that the plugin does not know change nothing" => envelope::unknown_keys;
        verbs_of_later_versions_are_refused: "CHECK needs 0.4.0, GC and STATUS 1.1.0; else code 1" => envelope::later_verbs;
    }
    "Errors" {
        errors_are_objects_on_standard_output: "an error is an object with `cniVersion`, `code`, `msg` on standard output, and the exit status is not 0" => envelope::errors_are_objects;
        what_may_be_retried_is_code_11: "code 11 where the same call may succeed later: agent away" => envelope::retry_is_11;
        refusals_for_good_are_codes_of_the_plugin: "a plugin's own codes are 100 and above" => envelope::own_codes;
    }
    "VERSION" {
        versions_are_listed: "`supportedVersions` lists 0.1.0 to 1.1.0, and `cniVersion` is the one asked in" => envelope::versions;
    }
    "ADD" {
        add_answers_in_the_version_of_the_configuration: "the result has the form and `cniVersion` of the configuration's version" => attach::every_version;
        add_makes_the_interface: "an interface `CNI_IFNAME` in `CNI_NETNS`, told with name, MAC, MTU and sandbox; `ips` point at it" => attach::makes_interface;
        address_result_names_no_interface: "the result of an address plugin has no `interfaces`, and no `ips[].interface`" => attach::address_result;
        add_again_is_the_same_address: "ADD repeated for the same network, container and interface does no harm: it answers the same address" => attach::again;
        each_interface_has_its_own_address: "state is kept by container and interface: a second interface has an address of its own" => attach::two_interfaces;
        failed_delegate_is_undone: "a delegated ADD that fails is followed by a delegated DEL" => attach::delegate_undone;
        delegate_gets_everything: "a delegate gets the same variables and the whole configuration, and its error is passed on as it is" => attach::delegate_gets_everything;
        missing_delegate_is_named: "a delegate is looked for in `CNI_PATH`; code 7 names one that is not there" => attach::missing_delegate;
        own_namespace_is_refused: "`CNI_NETNS` is not the plugin's own namespace: code 8, and nothing was assigned" => attach::own_namespace;
        missing_namespace_is_refused: "`CNI_NETNS` that does not exist: code 4, and nothing was assigned" => attach::missing_namespace;
        both_families_or_none: "an ADD that fails leaves nothing: without an IPv6 pool no IPv4 address is held either" => attach::both_or_none;
        add_without_datastore_is_refused_soon: "while the datastore is away: code 11 within 2 s" => attach::away;
    }
    "Pods of Kubernetes, as Calico has them" {
        particular_address_is_answered_alone: "`IP` of `CNI_ARGS`: exactly this address, as `/32`; taken by another, code 100" => pods::particular;
        annotations_choose_pools_and_addresses: "`cni.projectcalico.org/ipv4pools`, `ipv6pools`, `ipFamilies`, `ipAddrs`: the pod's before its namespace's" => pods::annotated;
        new_sandbox_takes_over: "a new sandbox of the same pod takes over the old one's address where the pod's UID matches and the old namespace is gone" => pods::takes_over;
        new_sandbox_gets_another_address_otherwise: "otherwise, another UID or a namespace that stands, it gets another address" => pods::does_not_take_over;
    }
    "DEL" {
        del_is_repeatable: "DEL succeeds when repeated, and for what was never added" => detach::repeatable;
        del_needs_no_namespace: "DEL succeeds without `CNI_NETNS`, and where the namespace is gone; the address is free" => detach::no_namespace;
        del_needs_no_earlier_result: "DEL succeeds without `prevResult`, and removes the interface" => detach::no_result;
        del_of_one_interface_keeps_the_other: "DEL releases what the interface holds, and nothing of another" => detach::one_interface;
        del_without_datastore_is_done_later: "DEL does what it can while the datastore is away: it succeeds, and the address is freed later" => detach::away;
    }
    "CHECK" {
        check_needs_the_earlier_result: "`prevResult` is required; else code 7" => look::check_needs_result;
        check_of_an_intact_attachment_is_silent: "nothing is printed, exit status 0, when everything is as it was added" => look::check_intact;
        check_compares_the_datastore: "an address that is no longer held is named: code 101" => look::check_datastore;
        check_compares_interfaces: "a missing interface, MAC address or MTU that differs is named: code 101" => look::check_interfaces;
        check_compares_addresses_and_routes: "a missing address or route, in the pod or on the node, is named: code 101" => look::check_routes;
    }
    "STATUS" {
        status_is_silent_when_pods_can_be_served: "exit status 0 and no word when ADD can be served, also through the main plugin" => look::status_well;
        status_without_agent_is_50: "agent away: code 50" => look::status_agent;
        status_without_datastore_is_51: "datastore away, so that what runs may suffer as well: code 51" => look::status_store;
        status_while_locked_is_50: "datastore locked while it is migrated: code 50" => look::status_locked;
        status_without_pool_is_50: "no pool of a wanted family can serve this node, or all are full: code 50 says which" => look::status_pools;
    }
    "GC" {
        gc_frees_exactly_what_is_not_valid: "what is not in `cni.dev/valid-attachments` is released, and nothing of what is" => detach::gc_exactly;
        gc_leaves_others_alone: "nothing of another network, another node or the node itself is touched" => detach::gc_others;
        gc_keeps_what_stands_in_a_namespace: "an address whose namespace still stands is kept, whoever knows it: another runtime may have it" => detach::gc_standing;
        gc_needs_the_valid_attachments: "without the list nothing is collected: code 7" => detach::gc_needs_list;
        gc_can_be_turned_off: "`disableGC` is honoured" => detach::gc_off;
        gc_is_delegated: "the main plugin passes GC on" => detach::gc_delegated;
    }
}

#[test]
fn the_page_is_what_these_tests_say() {
    let mut text = include_str!("cni-conformance.head.md").to_owned();
    let mut section = "";
    for (of, requirement, name) in LINES {
        if *of != section {
            section = of;
            write!(text, "\n## {section}\n\n| requirement | test |\n|---|---|\n").unwrap();
        }
        writeln!(text, "| {requirement} | `{name}` |").unwrap();
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/cni-conformance.md");
    if std::env::var_os("TORTIE_BLESS").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let kept = std::fs::read_to_string(path).unwrap_or_default();
    assert_eq!(kept, text, "make docs/cni-conformance.md anew: TORTIE_BLESS=1");
}
