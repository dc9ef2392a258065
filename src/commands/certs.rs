//! `cistern certs`: the certificates of controllers, hosts and nodes, for those who have no authority of their own.

use std::fs::File;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;

use clap::Args;

use cistern::domain::error::chain;
use cistern::domain::{NodeName, Role};
use cistern::machine::file::{Lock, lock_exclusive_try};
use cistern::peer::certs::{Authority, days, make_directory};

const EXAMPLE: &str = "\
Example:
  cistern certs --dir certs main=controller a=host,node b=host

makes certs/ca.crt and certs/ca.key, and certs/main, certs/a and certs/b. Copy certs/a to the machine a, over a way that
nobody listens to (such as scp), and start its server with `--tls` and that directory:

  cistern host --tls /etc/cistern/tls ...

Keep certs/ca.key to yourself: whoever has it can be any machine. No machine needs it.

The same command again renews the certificates of the machines it names, and leaves all else. Servers read their files
again when they change.

A new authority takes over while all goes on, since ca.crt may have several in it, one after another:
  1. cistern certs --dir new; cat new/ca.crt >> certs/ca.crt
  2. cistern certs --dir certs NAME=ROLE ... for all machines, and copy: everybody believes both
  3. cp certs/ca.crt new/ca.crt
  4. cistern certs --dir new NAME=ROLE ... for all machines, and copy: everybody shows the new one's
  5. take the old one out of new/ca.crt, and do 4 again: the old one is believed no more

With an authority of your own (cert-manager, Vault, openssl) this command is not needed. A directory for `--tls` has
ca.crt, tls.crt and tls.key in it, in PEM; the certificate has for each role of its machine the DNS name
NAME.ROLE.cistern.internal, and its extended key usage, if it has one, is for clients, and for servers too on a host.";

/// The flags of `cistern certs`.
#[derive(Args)]
#[command(after_long_help = EXAMPLE)]
pub struct CertsArgs {
    /// The authority's directory: ca.crt, ca.key, and a directory for each machine. Made if it is not there
    #[arg(long)]
    dir: PathBuf,
    /// How many days the machines' certificates are good for
    #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=3650))]
    days: u32,
    /// The machines: a name, as in --node-id and hosts.yaml, and what it is: controller, host, node
    ///
    /// Without any, only the authority is made.
    #[arg(value_name = "NAME=ROLE[,ROLE]")]
    machines: Vec<Machine>,
}

/// A machine and its roles.
#[derive(Clone)]
struct Machine {
    name: NodeName,
    roles: Vec<Role>,
}

impl FromStr for Machine {
    type Err = String;

    fn from_str(text: &str) -> Result<Machine, String> {
        let (name, roles) = text.split_once('=').ok_or("write NAME=ROLE, for example a=host,node")?;
        let roles: Result<Vec<Role>, _> = roles.split(',').map(str::parse).collect();
        let mut roles = roles.map_err(|error| chain(&error))?;
        roles.sort_unstable();
        roles.dedup();
        Ok(Machine { name: name.parse().map_err(|error| chain(&error))?, roles })
    }
}

/// Carries the command out.
pub fn main(args: &CertsArgs) -> super::Done {
    if let Some(twice) = twice(&args.machines) {
        return Err(format!("{twice} stands twice: name each machine once, with all its roles").into());
    }
    make_directory(&args.dir)?;
    let _only_one = lock(args)?;
    let dir = args.dir.display();
    let authority = match Authority::open(&args.dir)? {
        Some(authority) => authority,
        None => {
            let authority = Authority::create(&args.dir)?;
            println!("{dir}/ca.crt, {dir}/ca.key: the authority, for ten years; keep ca.key to yourself");
            authority
        }
    };
    for Machine { name, roles } in &args.machines {
        let made = authority.equip(name, roles, days(args.days))?;
        let roles: Vec<&str> = roles.iter().map(|role| role.name()).collect();
        println!("{}: {} {name}, for {} days", made.display(), roles.join(" and "), args.days);
    }
    Ok(ExitCode::SUCCESS)
}

fn twice(machines: &[Machine]) -> Option<&NodeName> {
    let names: Vec<&NodeName> = machines.iter().map(|machine| &machine.name).collect();
    names.iter().enumerate().find(|(index, name)| names[..*index].contains(name)).map(|(_, name)| *name)
}

fn lock(args: &CertsArgs) -> Result<Lock, super::server::Failure> {
    let dir = File::open(&args.dir).map_err(|error| format!("{}: {error}", args.dir.display()))?;
    let lock = lock_exclusive_try(dir)?;
    Ok(lock.ok_or_else(|| format!("{}: another `cistern certs` works there", args.dir.display()))?)
}
