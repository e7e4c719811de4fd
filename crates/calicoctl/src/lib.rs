//! The commands of calicoctl, as a library: the same words, tables and exit codes over Tortie's datastore drivers.
//!
//! Each command is a pure rendering of values over a thin reader, so that tables are tested without a server.

mod arguments;
mod check;
mod configure;
mod connection;
pub mod copy;
mod failure;
mod get;
mod migrate;
mod number;
mod output;
mod release;
mod show;
mod table;
mod version;

use arguments::{Arguments, Command, DatastoreCommand, Ipam};
use clap::Parser as _;
use failure::Failure;
use ipam::Clock;
use jiff::Timestamp;
use std::ffi::OsString;
use std::process::ExitCode;

/// Runs calicoctl with these words, the program's own name first, and says how it went.
///
/// Success is 0; any failure is 1 with one sentence on stderr, a refused argument included.
pub fn main(words: Vec<OsString>) -> ExitCode {
    let arguments = match Arguments::try_parse_from(words) {
        Ok(arguments) => arguments,
        // Help is asked for and goes to stdout; a group without command shows its help and succeeds as well.
        Err(refusal) => {
            let asked = !refusal.use_stderr()
                || refusal.kind() == clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;
            let _ = refusal.print();
            return if asked { ExitCode::SUCCESS } else { ExitCode::FAILURE };
        }
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return output::failed(&format!("no event loop can be set up: {error}")),
    };
    match runtime.block_on(run(arguments)) {
        Ok(text) => output::print(&text),
        Err(failure) => {
            output::print(failure.printed());
            output::failed(&failure.sentence())
        }
    }
}

/// Runs one command and returns what it prints.
async fn run(arguments: Arguments) -> Result<String, Failure> {
    let connect = || connection::connect(arguments.config.as_deref());
    match arguments.command {
        Command::Ipam { command: Ipam::Show(options) } => {
            show::run(&connect().await?, &SystemClock, &options).await
        }
        Command::Ipam { command: Ipam::Check(options) } => check::run(&connect().await?, &options).await,
        Command::Ipam { command: Ipam::Release(options) } => {
            release::run(&connect().await?, &SystemClock, &options).await
        }
        Command::Ipam { command: Ipam::Configure(options) } => {
            configure::run(&connect().await?, &options).await
        }
        Command::Datastore { command: DatastoreCommand::Migrate { command } } => {
            migrate::run(&connect().await?, &command).await
        }
        Command::Get(options) => get::run(&connect().await?, &options).await,
        Command::Version(options) => version::run(arguments.config.as_deref(), &options).await,
    }
}

/// The machine's clock.
struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::{IpamConfig, Node, Owner, Pool};
    use datastore::memory::Memory;
    use datastore::{Datastore as _, Record, Write};
    use futures::executor::block_on;
    use std::error::Error;

    fn parsed(words: &str) -> Result<Arguments, clap::Error> {
        Arguments::try_parse_from(words.split(' '))
    }

    async fn store() -> Result<Memory, Box<dyn Error>> {
        let store = Memory::new();
        let pool = Pool::with_defaults("p", "10.0.0.0/24".parse()?);
        let node = Node { name: "n".to_owned(), ..Node::default() };
        store.commit(&[], &[Write::Create(Record::Pool(pool)), Write::Create(Record::Node(node))]).await?;
        let request = ipam::plan::AddressRequest {
            attributes: [("node".to_owned(), "n".to_owned())].into(),
            ..ipam::plan::AddressRequest::new(Owner::host("n"), "10.0.0.5".parse()?, Some("h"))
        };
        ipam::assign_address::assign_address(&store, &SystemClock, &request).await?;
        Ok(store)
    }

    #[test]
    fn the_words_of_the_lesson_are_understood() {
        for words in [
            "calicoctl ipam show",
            "calicoctl ipam show --show-blocks -c f",
            "calicoctl --allow-version-mismatch ipam show --ip=10.0.0.1",
            "calicoctl ipam check --show-problem-ips",
            "calicoctl ipam release --ip 10.0.0.1",
            "calicoctl ipam configure --strictaffinity=true --ip-cooldown-seconds=-1",
            "calicoctl get ippools -o wide",
            "calicoctl get node a b -o yaml",
            "calicoctl version --client",
        ] {
            assert!(parsed(words).is_ok(), "{words}");
        }
    }

    #[test]
    fn a_group_without_command_shows_its_help_and_an_unknown_word_is_refused() {
        let help = clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;
        assert_eq!(parsed("calicoctl ipam").err().map(|error| error.kind()), Some(help));
        assert_eq!(main(vec!["calicoctl".into(), "ipam".into()]), ExitCode::SUCCESS);
        assert_eq!(main(vec!["calicoctl".into(), "frobnicate".into()]), ExitCode::FAILURE);
    }

    #[test]
    fn a_released_address_is_not_assigned_any_more() -> Result<(), Box<dyn Error>> {
        block_on(async {
            let store = store().await?;
            let ask = arguments::Show { ip: Some("10.0.0.5".to_owned()), ..arguments::Show::default() };
            let shown = show::run(&store, &SystemClock, &ask).await;
            assert!(shown.is_ok_and(|text| text.starts_with("IP 10.0.0.5 is in use\nHandle ID: h\n")));
            let order = arguments::Release { ip: Some("10.0.0.5".to_owned()) };
            let done = release::run(&store, &SystemClock, &order).await;
            assert_eq!(done.ok().as_deref(), Some("Successfully released IP address 10.0.0.5\n"));
            let again = release::run(&store, &SystemClock, &order).await;
            assert_eq!(
                again.err().map(|failure| failure.sentence()).as_deref(),
                Some("IP address 10.0.0.5 is not assigned")
            );
            let shown = show::run(&store, &SystemClock, &ask).await;
            assert_eq!(shown.ok().as_deref(), Some("10.0.0.5 is not assigned\n"));
            Ok(())
        })
    }

    #[test]
    fn configuring_creates_the_configuration_and_then_changes_it() -> Result<(), Box<dyn Error>> {
        block_on(async {
            let store = store().await?;
            for seconds in [30, 60] {
                let order = arguments::Configure {
                    ip_cooldown_seconds: Some(seconds),
                    ..arguments::Configure::default()
                };
                assert!(configure::run(&store, &order).await.is_ok());
                let config = ipam::seen::config(&store).await?;
                assert_eq!(i64::from(config.ip_cooldown_seconds), seconds);
                assert_eq!(IpamConfig { ip_cooldown_seconds: 0, ..config }, IpamConfig::default());
            }
            Ok(())
        })
    }
}
