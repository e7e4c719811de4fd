//! Where our answers differ from those of a kube-apiserver, and why that is accepted.

const WORDS: &str = "the message is in other words";
const NEWER: &str = "what 1.28, the version that is reported, does not have";
const EAGER: &str = "a definition is established before it is answered";
const LENIENT: &str = "an object that does not name its kind is of the path's kind";
const FIRST: &str = "of faults that follow from another only that one is told";

/// (step, place in the answer, reason). `*` stands for anything. The first that fits counts.
pub(crate) const ACCEPTED: &[(&str, &str, &str)] = &[
    ("*", "/body/columnDefinitions/*/description", "columns of tables have no descriptions"),
    ("*", "/body/columnDefinitions/*/type", "numbers in tables are called numbers"),
    ("*", "/body/resources/*/storageVersionHash", "kinds have no hash of their stored version"),
    ("*", "/body/metadata/generation", NEWER),
    ("*", "/body/rows/*/object/metadata/generation", NEWER),
    ("list by *", "/body/items/*/kind", "objects in lists name their kind"),
    ("list by *", "/body/items/*/apiVersion", "objects in lists name their kind"),
    ("*dry*", "/body/metadata/resourceVersion", "what is only tried has the present revision"),
    (
        "create with an unknown field*",
        "/body/metadata/resourceVersion",
        "what is only tried has the present revision",
    ),
    ("create with a revision", "*", "it is the client's mistake: 400, not 500"),
    ("create with a bad*", "/body/*message", WORDS),
    ("create a namespace with a bad name", "/body/*message", WORDS),
    ("create another kind than the path's", "/body/*message", WORDS),
    ("create in another version than the path's", "/body/*message", WORDS),
    ("create from*", "/body/message", WORDS),
    ("replace with another identity", "/body/message", WORDS),
    ("patch by RFC 6902*", "/body/message", WORDS),
    ("patch with an unknown media type", "/body/*", WORDS),
    ("apply without a kind", "/body/message", WORDS),
    ("list by a field that there is not", "/body/message", NEWER),
    ("list with a bad*", "/body/message", WORDS),
    ("list at no number", "/body/message", WORDS),
    ("list as nothing we have", "/body/*", WORDS),
    ("a headless service", "/body/spec/ipFam*", "services have addresses of one family"),
    ("change the address of a service", "/body/*message", WORDS),
    ("a secret that is not base64", "/body/message", WORDS),
    ("*", "/body/spec/serviceAccount*", "the real one ran without the controller that makes accounts"),
    ("change what cannot change of a pod", "/body/*message", WORDS),
    ("*a deployment*", "/body/status", "a workload has no status before its controller wrote one"),
    ("a deployment without a selector", "/body/*", FIRST),
    ("no finalizer is added then", "/body/*", FIRST),
    ("change what a binding binds", "/body/*message", WORDS),
    ("may somebody", "/body/status/reason", "reviews do not say by which role"),
    ("who am I", "/body/status/userInfo/extra", "users have no further attributes"),
    ("a definition without a schema", "/body/*message", WORDS),
    ("a definition without a stored version", "/body/*", FIRST),
    ("a definition that is not structural", "/body/*", "the version whose schema it is is named"),
    ("create a definition", "/body/status/*", EAGER),
    ("create a definition", "/body/metadata/finalizers", EAGER),
    ("a custom object without a kind", "*", LENIENT),
    ("replace a custom object without a revision", "/body/*", "as 1.28 has it"),
];
