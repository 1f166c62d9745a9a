//! `podctl users`: the accounts of the ring's users.

use std::path::PathBuf;

use super::ask::AskArgs;
use crate::look;

/// List the accounts, make, change or remove one
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    pub ask: AskArgs,
}

#[derive(clap::Subcommand)]
pub enum Command {
    /// List the accounts with their roles
    List(AskArgs),
    /// Make an account
    Add(AddArgs),
    /// Set another password
    Password(PasswordArgs),
    /// Show an account's roles, or change them
    Roles(RolesArgs),
    /// Remove an account; what the user wrote stays
    Remove(RemoveArgs),
}

/// Where a new password comes from; without any of them the variable ADEA_NEW_PASSWORD, or the terminal.
#[derive(clap::Args)]
pub struct NewPassword {
    /// A file with the new password; white space at its end doesn't count
    #[arg(long, value_name = "FILE", conflicts_with = "generate")]
    pub new_password_file: Option<PathBuf>,
    /// Make a password up and print it
    #[arg(long)]
    pub generate: bool,
}

#[derive(clap::Args)]
pub struct AddArgs {
    /// The name to log in with
    pub name: String,
    /// A role; may be given again, or several with commas
    #[arg(long = "role", value_name = "ROLE", value_delimiter = ',')]
    pub roles: Vec<String>,
    #[command(flatten)]
    pub password: NewPassword,
    #[command(flatten)]
    pub ask: AskArgs,
}

#[derive(clap::Args)]
pub struct PasswordArgs {
    /// Whose
    pub name: String,
    #[command(flatten)]
    pub password: NewPassword,
    #[command(flatten)]
    pub ask: AskArgs,
}

#[derive(clap::Args)]
pub struct RolesArgs {
    /// Whose
    pub name: String,
    /// These roles and no others; '' is none
    #[arg(long, value_name = "ROLE,...", value_delimiter = ',')]
    pub set: Option<Vec<String>>,
    /// Add a role
    #[arg(long, value_name = "ROLE", value_delimiter = ',')]
    pub add: Vec<String>,
    /// Take a role away
    #[arg(long, value_name = "ROLE", value_delimiter = ',')]
    pub remove: Vec<String>,
    #[command(flatten)]
    pub ask: AskArgs,
}

#[derive(clap::Args)]
pub struct RemoveArgs {
    /// Whose
    pub name: String,
    /// Don't ask
    #[arg(long)]
    pub yes: bool,
    #[command(flatten)]
    pub ask: AskArgs,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    ::adea::logging::init("warn");
    super::block_on(look::users::run(&args))
}
