//! A lab of a test's own: hosts with kernels, disks and power of their own, driven from this machine (tests/lab/README.md).
//!
//! The lab goes with the test, however that ends: a keeper outlives it by as long as it takes to clear up.

use std::collections::HashSet;
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::inventory::{Inventory, LOOK};
use super::{Csi, eventually, within};

static LABS: AtomicU32 = AtomicU32::new(0);

/// Waits until nobody holds its stdin any more, then ends what runs in the lab, and the lab.
const KEEPER: &str = r#"
cat
for process in $(ip netns pids "$LAB_NAME"); do kill -KILL "$process" 2>/dev/null; done
while [ -n "$(ip netns pids "$LAB_NAME")" ]; do sleep 0.02; done
"$1" down
rm -rf "$2"
"#;

/// Hosts on a network of their own, which end with this value.
pub struct Lab {
    // the connections end before their hosts
    hosts: Vec<Host>,
    keeper: Keeper,
    site: Arc<Site>,
}

/// What a lab's hosts have in common.
struct Site {
    /// The lab's name, which is that of its network namespace.
    name: String,
    net: String,
    /// Sockets, logs and ssh's configuration; on this machine, and below /host in a host.
    directory: PathBuf,
}

/// Sees to it that the lab ends.
struct Keeper(Child);

/// A host of a lab. A copy of it is the same host.
#[derive(Clone)]
pub struct Host {
    name: String,
    address: String,
    site: Arc<Site>,
    connection: Arc<Mutex<Option<Connection>>>,
}

/// The one ssh connection that all commands of a host share; it ends with its stdin.
struct Connection {
    ssh: Child,
    _stdin: ChildStdin,
    /// Sockets that lead through it.
    ways: HashSet<PathBuf>,
}

/// Something that is held open in a host.
pub struct Held(Child);

impl Drop for Held {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

impl Lab {
    /// Boots these hosts, each with disks of these sizes (`"4G,1G"`: /dev/ubdb and /dev/ubdc).
    pub fn up(hosts: &[(&str, &str)]) -> Lab {
        let (process, number) = (std::process::id(), LABS.fetch_add(1, Ordering::Relaxed));
        let name = format!("cistern-test-{process}-{number}");
        let directory = std::env::temp_dir().join(&name);
        fs::create_dir_all(&directory).unwrap();
        // labs do not see each other, but what a person sees of them should differ
        let net = format!("10.{}.{}", 100 + process % 100, number % 256);
        let site = Arc::new(Site { name, net, directory: directory.canonicalize().unwrap() });
        let mut lab = Lab { keeper: Keeper::start(&site), hosts: Vec::new(), site };
        let specs: Vec<String> = hosts.iter().map(|(name, disks)| format!("{name}={disks}")).collect();
        lab.site.lab(&[&["up"], &*specs.iter().map(String::as_str).collect::<Vec<_>>()].concat());
        fs::write(lab.site.ssh_config(), lab.site.lab(&["ssh-config"])).unwrap();
        lab.hosts = lab.site.lab(&["ls"]).lines().map(|line| Host::connect(line, &lab.site)).collect();
        lab
    }

    /// The host of this name.
    pub fn host(&self, name: &str) -> Host {
        let found = self.hosts.iter().find(|host| host.name == name);
        found.unwrap_or_else(|| panic!("the lab has no host {name}")).clone()
    }

    /// Its name, which is that of its network namespace.
    pub fn name(&self) -> &str {
        &self.site.name
    }

    /// Where it keeps sockets and logs on this machine.
    pub fn directory(&self) -> &Path {
        &self.site.directory
    }

    /// A script of tests/lab for this lab.
    pub fn script(&self, name: &str) -> Command {
        self.site.script(name)
    }

    /// A program of this machine that runs on the lab's network, where this machine is [`Lab::gateway`].
    pub fn enter(&self, program: &str) -> Command {
        self.site.enter(program)
    }

    /// This machine's address on the lab's network.
    pub fn gateway(&self) -> String {
        format!("{}.1", self.site.net)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for host in &self.hosts {
                eprintln!("the end of cistern's log in {}:\n{}", host.name, tail(&host.log(), 60));
            }
        }
        for host in &self.hosts {
            host.disconnect();
        }
        drop(self.keeper.0.stdin.take());
        let _ = self.keeper.0.wait();
    }
}

impl Keeper {
    fn start(site: &Site) -> Keeper {
        let mut keeper = Command::new("sh");
        keeper.args(["-c", KEEPER, "keeper", Site::LAB]).arg(&site.directory).envs(site.variables());
        keeper.stdin(Stdio::piped()).stdout(Stdio::null());
        // whoever ends the test's group does not end the keeper
        std::os::unix::process::CommandExt::process_group(&mut keeper, 0);
        Keeper(keeper.spawn().unwrap())
    }
}

impl Site {
    const LAB: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/lab/lab");

    fn variables(&self) -> [(&str, &str); 2] {
        [("LAB_NAME", &self.name), ("LAB_NET", &self.net)]
    }

    fn script(&self, name: &str) -> Command {
        let mut script = Command::new(Path::new(Self::LAB).with_file_name(name));
        script.envs(self.variables());
        script
    }

    /// A command of tests/lab/lab, which must succeed; answers what it printed.
    fn lab(&self, arguments: &[&str]) -> String {
        let done = self.script("lab").args(arguments).output().unwrap();
        succeeded(&format!("lab {arguments:?}"), done)
    }

    fn enter(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]);
        command
    }

    fn ssh_config(&self) -> PathBuf {
        self.directory.join("ssh_config")
    }
}

impl Host {
    /// `line` is one of `lab ls`: name, address and state.
    fn connect(line: &str, site: &Arc<Site>) -> Host {
        let mut words = line.split(' ');
        let (name, address) = (words.next().unwrap().to_owned(), words.next().unwrap().to_owned());
        let host = Host { name, address, site: Arc::clone(site), connection: Arc::default() };
        host.reconnect();
        host
    }

    fn ssh(&self) -> Command {
        let mut ssh = self.site.enter("ssh");
        ssh.arg("-F").arg(self.site.ssh_config()).arg("-S").arg(self.site.directory.join(format!("{}.ssh", self.name)));
        ssh
    }

    fn reconnect(&self) {
        let connection = eventually("ssh's connection is there", || self.try_connect());
        *self.connection() = Some(connection);
    }

    /// On a busy machine a host may take longer to answer than ssh waits.
    fn try_connect(&self) -> Option<Connection> {
        let mut ssh = self.ssh();
        ssh.args(["-o", "StreamLocalBindUnlink=yes", "-M", &self.name, "echo; exec cat"]);
        let mut ssh = ssh.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let stdin = ssh.stdin.take().unwrap();
        let is_there = ssh.stdout.as_mut().unwrap().read(&mut [0]).unwrap() == 1;
        let mut connection = Connection { ssh, _stdin: stdin, ways: HashSet::new() };
        if !is_there {
            connection.ssh.wait().unwrap();
        }
        is_there.then_some(connection)
    }

    fn connection(&self) -> MutexGuard<'_, Option<Connection>> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn disconnect(&self) {
        if let Some(mut connection) = self.connection().take() {
            // asked, not killed: it takes its sockets along
            let _ = self.ssh().args(["-O", "exit", &self.name]).output();
            let _ = connection.ssh.kill();
            let _ = connection.ssh.wait();
        }
    }

    /// Its address on the lab's network.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where the host sees a file of this machine.
    pub fn path_of(&self, here: impl AsRef<Path>) -> PathBuf {
        Path::new("/host").join(here.as_ref().strip_prefix("/").unwrap())
    }

    // --- commands

    /// Runs a program that must succeed; answers what it printed.
    pub fn run(&self, argv: &[&str]) -> String {
        succeeded(&format!("{}: {argv:?}", self.name), self.try_run(argv))
    }

    /// Runs a program; answers how it ended.
    pub fn try_run(&self, argv: &[&str]) -> Output {
        self.command(argv).stdin(Stdio::null()).output().unwrap()
    }

    /// Runs a shell script that must succeed, and stops where it does not.
    pub fn sh(&self, script: &str) -> String {
        self.run(&["sh", "-euc", script])
    }

    fn command(&self, argv: &[&str]) -> Command {
        let mut ssh = self.ssh();
        // the host's shell takes it apart
        ssh.arg(&self.name).arg(argv.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" "));
        ssh
    }

    // --- power and cable

    /// The power fails: what the host had not written to its disks is lost.
    pub fn kill(&self) {
        self.site.lab(&["kill", &self.name]);
        self.disconnect();
    }

    /// Boots again, with the same disks.
    pub fn up(&self) {
        self.site.lab(&["up", &self.name]);
        self.reconnect();
    }

    /// Shuts down in order, and boots again.
    pub fn reboot(&self) {
        // the connection ends with it
        let _ = self.try_run(&["systemctl", "poweroff"]);
        self.disconnect();
        let is_down =
            || self.site.lab(&["ls"]).lines().any(|line| line == format!("{} {} down", self.name, self.address));
        within(Duration::from_secs(180), "the host has shut down", || is_down().then_some(()));
        self.up();
    }

    /// Another machine in its place, with empty disks of these sizes: its name and address are all that stays.
    pub fn replace(&self, disks: &str) {
        self.disconnect();
        self.site.lab(&["down", &self.name]);
        self.site.lab(&["up", &format!("{}={disks}", self.name)]);
        self.reconnect();
    }

    /// Takes its network cable out: it hears nothing, and is not heard.
    pub fn cut(&self) {
        self.site.lab(&["cut", &self.name]);
    }

    /// Puts the cable back.
    pub fn mend(&self) {
        self.site.lab(&["mend", &self.name]);
    }

    /// What its kernel said, over all its boots.
    pub fn console(&self) -> String {
        self.site.lab(&["console", &self.name])
    }

    // --- files

    /// Writes the bytes into a file or device, and brings them to the disk.
    pub fn write(&self, path: impl AsRef<Path>, offset: u64, bytes: &[u8]) {
        self.try_write(path, offset, bytes).unwrap_or_else(|error| panic!("{}: {error}", self.name));
    }

    /// The same; says what failed.
    pub fn try_write(&self, path: impl AsRef<Path>, offset: u64, bytes: &[u8]) -> Result<(), String> {
        self.try_dd(path.as_ref(), offset, bytes, "conv=notrunc,fsync")
    }

    /// Writes the bytes and leaves it to the kernel when they reach the disk. Those of a device do when nobody has it open
    /// any more: see [`Host::hold`].
    pub fn try_write_unsynced(&self, path: impl AsRef<Path>, offset: u64, bytes: &[u8]) -> Result<(), String> {
        self.try_dd(path.as_ref(), offset, bytes, "conv=notrunc")
    }

    fn try_dd(&self, path: &Path, offset: u64, bytes: &[u8], conv: &str) -> Result<(), String> {
        let (to, seek) = (format!("of={}", path.display()), format!("seek={offset}"));
        let how = ["bs=1M", "iflag=fullblock", "oflag=seek_bytes", conv];
        let mut dd = self.command(&[&["dd", "status=none"], &how[..], &[&to, &seek]].concat());
        let mut dd = dd.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        // one that has ended already says why below
        let _ = dd.stdin.take().unwrap().write_all(bytes);
        let done = dd.wait_with_output().unwrap();
        said_well(&format!("dd {to}"), done).map(|_| ())
    }

    /// Has it open until the answer is dropped, as a guest does.
    pub fn hold(&self, path: impl AsRef<Path>) -> Result<Held, String> {
        let script = r#"exec 3<"$0"; echo; exec cat >/dev/null"#;
        let mut sh = self.command(&["sh", "-ec", script, path.as_ref().to_str().unwrap()]);
        let mut held = Held(sh.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap());
        let mut line = [0];
        let read = held.0.stdout.as_mut().unwrap().read(&mut line).unwrap();
        if read == 1 { Ok(held) } else { Err(format!("{} cannot be held", path.as_ref().display())) }
    }

    /// Reads so many bytes of a file or device, or as many as there are.
    pub fn read(&self, path: impl AsRef<Path>, offset: u64, length: usize) -> Vec<u8> {
        self.try_read(path, offset, length).unwrap_or_else(|error| panic!("{}: {error}", self.name))
    }

    /// The same; says what failed.
    pub fn try_read(&self, path: impl AsRef<Path>, offset: u64, length: usize) -> Result<Vec<u8>, String> {
        let (from, skip) = (format!("if={}", path.as_ref().display()), format!("skip={offset}"));
        let (how, count) = ("iflag=fullblock,skip_bytes,count_bytes", format!("count={length}"));
        said_well(&format!("dd {from}"), self.try_run(&["dd", "status=none", "bs=1M", how, &from, &skip, &count]))
    }

    /// A whole file of the host.
    pub fn pull(&self, path: impl AsRef<Path>) -> Vec<u8> {
        let path = path.as_ref().to_str().unwrap();
        said_well("cat", self.try_run(&["cat", path])).unwrap_or_else(|error| panic!("{}: {error}", self.name))
    }

    /// All that is below a path and can be left over, seen by the host's own tools.
    pub fn inventory(&self, root: impl AsRef<Path>) -> Inventory {
        let root = root.as_ref();
        Inventory::parse(root, &self.run(&["sh", "-c", LOOK, "look", root.to_str().unwrap()]))
    }

    // --- cistern

    /// Starts the tests' own cistern as a unit of the host's systemd, with these arguments and variables.
    pub fn start_cistern(&self, arguments: &[&str], variables: &[(&str, &str)]) {
        self.try_start_cistern(arguments, variables).unwrap_or_else(|error| panic!("{}: {error}", self.name));
    }

    /// The same; says what failed.
    pub fn try_start_cistern(&self, arguments: &[&str], variables: &[(&str, &str)]) -> Result<(), String> {
        let program = self.path_of(env!("CARGO_BIN_EXE_cistern"));
        // not on the host's disk, so that a power cut does not cost it
        let log = format!("append:{}", self.path_of(self.log_file()).display());
        let (out, error) = (format!("StandardOutput={log}"), format!("StandardError={log}"));
        let properties =
            ["Type=exec", "KillMode=process", &out, &error].map(|property| format!("--property={property}"));
        let variables: Vec<String> = variables.iter().map(|(name, value)| format!("--setenv={name}={value}")).collect();
        let mut argv = vec!["systemd-run", "--quiet", "--collect", "--unit=cistern"];
        argv.extend(properties.iter().chain(&variables).map(String::as_str));
        argv.push(program.to_str().unwrap());
        argv.extend(arguments);
        said_well("systemd-run", self.try_run(&argv)).map(drop)
    }

    /// SIGTERM to cistern, and its end.
    pub fn stop_cistern(&self) {
        self.run(&["systemctl", "stop", "cistern"]);
    }

    /// SIGKILL to cistern alone, and its end.
    pub fn kill_cistern(&self) {
        self.run(&["systemctl", "kill", "--kill-whom=main", "--signal=KILL", "cistern"]);
        eventually("cistern has ended", || (!self.runs_cistern()).then_some(()));
    }

    /// Whether cistern runs.
    pub fn runs_cistern(&self) -> bool {
        self.try_run(&["systemctl", "is-active", "--quiet", "cistern"]).status.success()
    }

    /// What cistern logged in this host, over all its boots.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    fn log_file(&self) -> PathBuf {
        self.site.directory.join(format!("{}.log", self.name))
    }

    /// A socket of this machine that leads to one in the host, until the host's power fails: then it is to be asked for
    /// again.
    pub fn socket(&self, there: &str) -> PathBuf {
        self.try_socket(there).unwrap_or_else(|error| panic!("{}: {error}", self.name))
    }

    fn try_socket(&self, there: &str) -> Result<PathBuf, String> {
        let name = there.trim_start_matches('/').replace('/', "-");
        let here = self.site.directory.join(format!("{}.{name}", self.name));
        let way = format!("{}:{there}", here.display());
        let mut connection = self.connection();
        let connection = connection.as_mut().ok_or("there is no connection")?;
        if connection.ways.insert(here.clone()) {
            let forwarded = self.ssh().args(["-O", "forward", "-L", &way, &self.name]).output().unwrap();
            said_well(&format!("ssh -L {way}"), forwarded)?;
        }
        Ok(here)
    }

    /// A client of the server on this socket in the host, once it answers.
    pub fn client(&self, socket: &str) -> Csi {
        self.try_client(socket).unwrap_or_else(|error| panic!("{}: {error}", self.name))
    }

    /// The same, unless cistern ends, or the host.
    pub fn try_client(&self, socket: &str) -> Result<Csi, String> {
        let here = self.try_socket(socket)?;
        let connected = eventually("cistern answers in the host", || match Csi::try_connect(&here) {
            Some(csi) => Some(Ok(csi)),
            None => (!self.runs_cistern()).then(|| Err(format!("cistern has ended:\n{}", tail(&self.log(), 40)))),
        });
        connected.map(|csi| csi.far(self.clone()))
    }

    /// A file of this machine for host and test, and its path in the host.
    pub fn shared(&self, name: &str) -> (PathBuf, String) {
        let here = self.site.directory.join(format!("{}.{name}", self.name));
        let there = self.path_of(&here).to_str().unwrap().to_owned();
        (here, there)
    }
}

/// The last lines of a text.
pub fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// What a program printed, or why it failed.
fn said_well(what: &str, done: Output) -> Result<Vec<u8>, String> {
    if done.status.success() {
        return Ok(done.stdout);
    }
    let (said, error) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    Err(format!("{what}: {}\n{said}{error}", done.status))
}

/// What a program printed, which must have succeeded.
pub fn succeeded(what: &str, done: Output) -> String {
    let said = said_well(what, done).unwrap_or_else(|error| panic!("{error}"));
    String::from_utf8_lossy(&said).into_owned()
}

/// A word as a shell takes it: whole.
pub fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}
