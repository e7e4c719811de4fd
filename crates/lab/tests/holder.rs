//! The holder with real namespaces: what it keeps, and that nothing is left of it.
//!
//! Started with `lab holder` as its first arguments this program is the holder; otherwise it tests it.

#![expect(clippy::unwrap_used, reason = "a test")]
#![expect(clippy::print_stdout, reason = "says what it ran, as the usual harness does")]

use lab::holder::{
    Client, Endpoint, ListenSpec, NamespaceSpec, Network, ProcessSpec, ProcessState, RefusalKind, Running,
    Streams,
};
use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if arguments.get(1).is_some_and(|first| first == "lab") {
        let value = |name: &str| {
            let position = arguments.iter().position(|argument| argument == name)?;
            arguments.get(position + 1).cloned()
        };
        let options = lab::holder::Options {
            directory: PathBuf::from(value("--dir").unwrap()),
            inside: arguments.iter().any(|argument| argument == "--inside"),
            owner: None,
        };
        // The reason has been told to whoever waits.
        let _ = lab::holder::run(options);
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    // Open for whatever this process starts, as a shell's own descriptors are.
    let open = std::fs::File::create(directory.path().join("open")).unwrap();
    rustix::io::fcntl_setfd(&open, rustix::io::FdFlags::empty()).unwrap();
    let running = match lab::holder::start(&std::env::current_exe().unwrap(), directory.path(), None) {
        Ok(running) => running,
        Err(error) => {
            println!("skipped: no namespaces here: {error:#}");
            return;
        }
    };
    assert_eq!(Running::find(directory.path()), Some(running));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let outcome = std::panic::catch_unwind(|| runtime.block_on(holds(directory.path())));
    running.end().unwrap();
    assert_eq!(Running::find(directory.path()), None);
    if let Err(panic) = outcome {
        print!("{}", std::fs::read_to_string(directory.path().join("logs/holder.log")).unwrap_or_default());
        std::panic::resume_unwind(panic);
    }
    println!("ok: the holder keeps namespaces, listeners and processes");
}

async fn holds(directory: &Path) {
    let client = Client::connect(directory).await.unwrap();
    networks_are_wired(&client).await;
    pods_cannot_write_to_the_host(&client, directory).await;
    pods_cannot_reach_the_lab_through_its_processes(&client, directory).await;
    streams_and_exit_codes_come_back(&client).await;
    listeners_are_handed_over(&client).await;
    ends_are_told_to_watchers(&client).await;
}

async fn networks_are_wired(client: &Client) {
    let set = |name: &str, network: Network| NamespaceSpec {
        name: name.into(),
        hostname: name.rsplit('/').next().unwrap().into(),
        network,
        files: BTreeMap::from([(
            PathBuf::from("/etc/hosts"),
            "127.0.0.1 localhost\n172.18.0.2 two\n".into(),
        )]),
        confined: false,
        hide: Vec::new(),
    };
    let bridge = Network::Bridge {
        name: "br-kind".into(),
        addresses: vec!["172.18.0.1/16".parse().unwrap(), "fc00:f853:ccd:e793::1/64".parse().unwrap()],
    };
    client.create_namespaces(set("underlay", bridge)).await.unwrap();
    for (name, address) in [("one", "172.18.0.3/16"), ("two", "172.18.0.2/16")] {
        let uplink = Network::Uplink {
            underlay: "underlay".into(),
            bridge: "br-kind".into(),
            port: format!("veth-{name}"),
            addresses: vec![address.parse().unwrap()],
            gateways: vec!["172.18.0.1".parse().unwrap()],
        };
        client.create_namespaces(set(&format!("node/{name}"), uplink)).await.unwrap();
    }
    let again = client.create_namespaces(set("node/one", Network::Empty)).await.unwrap_err();
    assert_eq!(again.kind(), Some(RefusalKind::Exists));
    assert_eq!(client.namespaces("node/").await.unwrap(), ["node/one", "node/two"]);

    let in_one = |command: &str| shell("node/one", command);
    assert_eq!(
        run(client, in_one("cat /proc/sys/net/ipv4/ip_forward; hostname; tail -1 /etc/hosts")).await.1,
        "1\none\n172.18.0.2 two\n"
    );
    let (state, output) = run(client, in_one("ping -c1 -W2 172.18.0.2 && ping -c1 -W2 172.18.0.1")).await;
    assert_eq!(code(&state), Some(0), "{output}");
    let (state, output) = run(client, in_one("ls /run/tortie/netns; ip route")).await;
    assert_eq!(code(&state), Some(0), "{output}");
    assert!(output.starts_with("one\ntwo\nunderlay\n"), "{output}");
    assert!(output.contains("default via 172.18.0.1 dev eth0"), "{output}");
    // A second face of a node: same network, other mounts.
    client
        .create_namespaces(set("pod/host-network", Network::SameAs(Some("node/one".into()))))
        .await
        .unwrap();
    let (_, output) = run(client, shell("pod/host-network", "ip -o addr show eth0")).await;
    assert!(output.contains("172.18.0.3/16"), "{output}");
    client.delete_namespaces("pod/host-network").await.unwrap();
    assert!(client.namespaces("pod/").await.unwrap().is_empty());
}

async fn pods_cannot_write_to_the_host(client: &Client, directory: &Path) {
    // Outside of /tmp, which a pod has to itself anyway.
    let secret = tempfile::Builder::new().tempfile_in("/var/tmp").unwrap();
    std::fs::write(secret.path(), "secret").unwrap();
    let spec = NamespaceSpec {
        name: "pod/0-1-2".into(),
        hostname: "web".into(),
        network: Network::Empty,
        files: BTreeMap::from([(PathBuf::from("/etc/resolv.conf"), "nameserver 10.96.0.10\n".into())]),
        confined: true,
        hide: vec![directory.to_owned(), secret.path().to_owned()],
    };
    client.create_namespaces(spec).await.unwrap();
    let (state, output) = run(client, shell("pod/0-1-2", &format!("cat {}", secret.path().display()))).await;
    assert_eq!((code(&state), output.as_str()), (Some(0), ""));
    let (_, output) =
        run(client, shell("pod/0-1-2", "hostname; cat /etc/resolv.conf; ls /run/tortie /sys/class/net"))
            .await;
    assert!(output.starts_with("web\nnameserver 10.96.0.10\n"), "{output}");
    assert!(!output.contains("netns"), "{output}");
    assert!(output.ends_with("lo\n"), "{output}");
    let directory = directory.display();
    for forbidden in [
        "touch /etc/tortie-was-here",
        "touch /usr/tortie-was-here",
        "mount -o remount,rw /",
        "mknod /tmp/disk b 8 0",
        "echo x > /proc/sys/kernel/hostname",
        &format!("ls {directory}/holder.sock"),
    ] {
        let (state, output) = run(client, shell("pod/0-1-2", forbidden)).await;
        assert_ne!(code(&state), Some(0), "{forbidden}: {output}");
    }
    let (state, output) = run(
        client,
        shell("pod/0-1-2", "echo x >/tmp/x && echo y >/run/y && echo z >/dev/null && ping -c1 127.0.0.1"),
    )
    .await;
    assert_eq!(code(&state), Some(0), "{output}");
    client.delete_namespaces("pod/0-1-2").await.unwrap();
}

async fn pods_cannot_reach_the_lab_through_its_processes(client: &Client, directory: &Path) {
    let spec = NamespaceSpec {
        name: "pod/3-4-5".into(),
        hostname: "web".into(),
        network: Network::Empty,
        files: BTreeMap::new(),
        confined: true,
        hide: vec![directory.to_owned()],
    };
    client.create_namespaces(spec).await.unwrap();
    for forbidden in ["ls /proc/1/root/", "readlink /proc/1/fd/0", "cat /proc/1/environ", "ls /proc/1/cwd/"] {
        let (state, output) = run(client, shell("pod/3-4-5", forbidden)).await;
        assert_ne!(code(&state), Some(0), "{forbidden}: {output}");
    }
    let (_, output) = run(client, shell("pod/3-4-5", "for f in /proc/$$/fd/*; do readlink $f; done")).await;
    assert!(!output.contains(&*directory.to_string_lossy()), "a descriptor of the caller's: {output}");
    // The first process of the lab is not the pod's.
    run(client, shell("pod/3-4-5", "kill -TERM 1")).await;
    client.list("").await.unwrap();

    // A program that the pod does not see runs, and cannot be changed by who runs it.
    let program = directory.join("program");
    std::fs::copy("/bin/sh", &program).unwrap();
    let before = std::fs::read(&program).unwrap();
    let attack = "exec sh -c 'echo changed >/proc/self/fd/9'";
    let mut spec = shell("pod/3-4-5", &format!("exec 9</proc/$$/exe; {attack}"));
    spec.argv[0] = program.display().to_string();
    let (state, output) = run(client, spec).await;
    assert_ne!(code(&state), Some(0), "{output}");
    assert!(output.contains("/proc/self/fd/9"), "the program itself did run: {output}");
    assert!(std::fs::read(&program).unwrap() == before, "a pod changed a file of the host");
    client.delete_namespaces("pod/3-4-5").await.unwrap();
}

async fn streams_and_exit_codes_come_back(client: &Client) {
    let missing = ProcessSpec {
        id: "exec/missing".into(),
        argv: vec!["no-such-program".into()],
        ..ProcessSpec::default()
    };
    let refused = client.spawn(missing).await.unwrap_err();
    assert_eq!(refused.kind(), Some(RefusalKind::NotRunnable), "{refused}");

    let spec = ProcessSpec {
        id: "exec/echo".into(),
        ..shell("node/one", "read line; echo \"<$line>\"; echo oops >&2; exit 7")
    };
    let mut watch = client.watch("exec/echo").await.unwrap();
    let attached = client.spawn_attached(spec, Streams { stdin: true, terminal: None }).await.unwrap();
    std::fs::File::from(attached.stdin.unwrap()).write_all(b"hello\n").unwrap();
    assert_eq!(drain(attached.stdout), "<hello>\n");
    assert_eq!(drain(attached.stderr.unwrap()), "oops\n");
    assert_eq!(code(&ended(&mut watch).await), Some(7));

    let spec = ProcessSpec { id: "exec/terminal".into(), ..shell("node/one", "tty >/dev/null && stty size") };
    let mut watch = client.watch("exec/terminal").await.unwrap();
    let attached =
        client.spawn_attached(spec, Streams { stdin: true, terminal: Some((132, 43)) }).await.unwrap();
    assert!(attached.stdin.is_none() && attached.stderr.is_none());
    assert_eq!(code(&ended(&mut watch).await), Some(0));
    let mut text = [0; 64];
    let length = std::fs::File::from(attached.stdout).read(&mut text).unwrap();
    assert_eq!(String::from_utf8_lossy(&text[..length]).trim(), "43 132");
}

async fn listeners_are_handed_over(client: &Client) {
    let endpoint =
        Endpoint::Tcp { address: "0.0.0.0:6443".parse().unwrap(), namespaces: Some("node/one".into()) };
    let spec = ListenSpec { name: "apiserver/node".into(), endpoint };
    assert_eq!(client.listen(spec.clone()).await.unwrap(), "0.0.0.0:6443");
    assert_eq!(client.listen(spec).await.unwrap(), "0.0.0.0:6443");
    let host = ListenSpec {
        name: "apiserver/host".into(),
        endpoint: Endpoint::Tcp { address: "127.0.0.1:0".parse().unwrap(), namespaces: None },
    };
    let address = client.listen(host).await.unwrap();
    // On the host's loopback: this process, outside of the lab, reaches it.
    std::net::TcpStream::connect(&address).unwrap();
    let agent = ListenSpec {
        name: "ipam/one".into(),
        endpoint: Endpoint::Unix { path: PathBuf::from("/run/tortie/ipam/one.sock") },
    };
    client.listen(agent).await.unwrap();
    assert_eq!(client.listeners().await.unwrap().len(), 3);
    let spec = ProcessSpec {
        id: "server".into(),
        listeners: vec!["apiserver/host".into(), "ipam/one".into()],
        ..shell(
            "node/one",
            "echo $LISTEN_FDS $LISTEN_FDNAMES; readlink /proc/self/fd/3 /proc/self/fd/4 | cut -c1-7; test ! -e /proc/self/fd/5",
        )
    };
    let (state, output) = run(client, spec).await;
    assert_eq!(output, "2 apiserver/host:ipam/one\nsocket:\nsocket:\n");
    assert_eq!(code(&state), Some(0));
}

async fn ends_are_told_to_watchers(client: &Client) {
    let mut watch = client.watch("sleeper").await.unwrap();
    let spec = ProcessSpec {
        id: "sleeper".into(),
        labels: BTreeMap::from([("container".into(), "abc".into())]),
        ..shell("node/two", "sleep 600 & exec sleep 600")
    };
    let pid = client.spawn(spec.clone()).await.unwrap();
    let running = watch.next().await.unwrap();
    assert!(running.is_running() && running.pid == pid && running.labels["container"] == "abc");
    assert_eq!(client.spawn(spec).await.unwrap_err().kind(), Some(RefusalKind::Exists));
    client.signal("sleeper", 9).await.unwrap();
    assert_eq!(ended(&mut watch).await.exit.unwrap().signal, Some(9));
    assert_eq!(client.signal("sleeper", 9).await.unwrap_err().kind(), Some(RefusalKind::NotFound));
    assert_eq!(client.list("sleeper").await.unwrap().len(), 1);
    client.forget("sleeper").await.unwrap();
    assert!(client.list("sleeper").await.unwrap().is_empty());
}

fn shell(set: &str, command: &str) -> ProcessSpec {
    ProcessSpec {
        id: "exec/shell".into(),
        argv: ["sh", "-c", command].map(str::to_owned).to_vec(),
        namespaces: Some(set.into()),
        ..ProcessSpec::default()
    }
}

async fn run(client: &Client, mut spec: ProcessSpec) -> (ProcessState, String) {
    spec.argv[2] = format!("{{ {}\n}} 2>&1", spec.argv[2]);
    let id = spec.id.clone();
    let attached = client.spawn_attached(spec, Streams::default()).await.unwrap();
    let output = drain(attached.stdout);
    let mut watch = client.watch(&id).await.unwrap();
    let state = ended(&mut watch).await;
    client.forget(&id).await.unwrap();
    (state, output)
}

async fn ended(watch: &mut lab::holder::Watch) -> ProcessState {
    loop {
        let state = watch.next().await.unwrap();
        if !state.is_running() {
            return state;
        }
    }
}

fn drain(stream: std::os::fd::OwnedFd) -> String {
    let mut text = String::new();
    std::fs::File::from(stream).read_to_string(&mut text).unwrap();
    text
}

fn code(state: &ProcessState) -> Option<i32> {
    state.exit.and_then(|exit| exit.code)
}
