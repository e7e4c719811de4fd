//! The commands of calicoctl, as a library: the same words, tables and exit codes over Tortie's datastore drivers.
//!
//! Each command is a pure rendering of values over a thin reader, so that tables are tested without a server.

mod arguments;
mod check;
mod configure;
mod connection;
mod failure;
mod get;
mod number;
mod output;
mod release;
mod show;
mod table;
mod version;

use arguments::{Arguments, Command, Ipam};
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
