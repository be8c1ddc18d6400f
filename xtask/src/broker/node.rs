//! A private RabbitMQ node of the installed package, run as whoever runs this, in a folder of its own.

use std::fmt::Display;
use std::fs::{self, File};
use std::io::Write;
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::{End, Instance};
use crate::process::{self, Group};
use crate::{environment, interrupt, say};

/// Where packages put the server. The command of the same name on the path is no use: it switches users.
const FOLDERS: [&str; 3] = ["/usr/lib/rabbitmq/bin", "/opt/homebrew/sbin", "/usr/local/sbin"];

const REMEDY: &str = "install the package rabbitmq-server (Debian, Ubuntu) or rabbitmq (Homebrew)";

/// The time in which a stopping node finishes what it writes, as a container's engine would give it.
const STOP_GRACE: Duration = Duration::from_secs(5);

/// What one of RabbitMQ's own tools may take, which start an Erlang machine each.
const TOOL_LIMIT: Duration = Duration::from_secs(60);

/// The file of its folder that a node is set up by.
const SETTINGS: &str = "rabbitmq.conf";

/// The file that lists a node's plugins.
const PLUGINS: &str = "enabled_plugins";

/// The file in which a node tells its process.
const PID: &str = "pid";

/// The file that holds what a node must know to be let in by another. The first to start writes one.
const SECRET: &str = ".erlang.cookie";

const PORT_MAPPER_LIMIT: Duration = Duration::from_secs(10);

/// The installed package.
pub(super) struct Package {
    folder: PathBuf,
}

/// A node with its own port mapper, which it shares with the others of its cluster. Both end, and the folder goes, when
/// this is dropped.
///
/// The fields are dropped in this order: the node while it can still sign off, and the folder when nobody
/// writes to it any more.
pub(super) struct Node {
    server: Group,
    port_mapper: Arc<Group>,
    place: Place,
}

/// Where a node lives, which stays the same when it restarts.
struct Place {
    tools: PathBuf,
    folder: Folder,
    port: u16,
    /// None where the management API does not run.
    management: Option<u16>,
    distribution_port: u16,
    port_mapper_port: u16,
}

/// A folder that is removed when this is dropped.
struct Folder(PathBuf);

impl Package {
    /// Finds the package, or installs it where that is possible without asking anyone.
    pub(super) fn find() -> Result<Self> {
        if let Some(package) = Self::installed() {
            return Ok(package);
        }
        ensure!(environment::can_install(), "RabbitMQ is not installed: {REMEDY}");
        environment::install(&["rabbitmq-server"])?;
        Self::installed().with_context(|| format!("rabbitmq-server is not in any of {FOLDERS:?}"))
    }

    /// Whether it can be found without asking anyone.
    pub(super) fn can_be_had() -> bool {
        Self::installed().is_some() || environment::can_install()
    }

    fn installed() -> Option<Self> {
        let mut folders = FOLDERS.iter().map(PathBuf::from);
        folders.find(|folder| folder.join("rabbitmq-server").exists()).map(|folder| Self { folder })
    }

    /// `management` says whether it has the management API.
    pub(super) fn start(&self, management: bool) -> Result<Node> {
        let mut place = Place::create(self.folder.clone(), environment::free_port()?)?;
        if management {
            place.add_management()?;
        }
        // Started here and in the foreground: the node would start one that stays behind when the node ends.
        let port_mapper = Arc::new(place.start_port_mapper()?);
        Ok(Node { server: place.start_server()?, port_mapper, place })
    }
}

impl Display for Package {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a private node of the package in {}", self.folder.display())
    }
}

impl Node {
    /// Starts another node, which joins the cluster of this one as soon as it is there. This one must be ready.
    pub(super) fn start_another(&self) -> Result<Self> {
        let place = Place::create(self.place.tools.clone(), self.place.port_mapper_port)?;
        // They let one another in who know the same secret.
        fs::copy(self.place.folder.file(SECRET), place.folder.file(SECRET))
            .context("the first node of a cluster has left no secret")?;
        let first = format!("cluster_formation.classic_config.nodes.1 = {}\n", self.place.name());
        place.set(&first)?;
        Ok(Self { server: place.start_server()?, port_mapper: Arc::clone(&self.port_mapper), place })
    }
}

impl Place {
    fn create(tools: PathBuf, port_mapper_port: u16) -> Result<Self> {
        let (port, distribution_port) = (environment::free_port()?, environment::free_port()?);
        let folder = Folder::create()?;
        Ok(Self { tools, folder, port, management: None, distribution_port, port_mapper_port })
    }

    /// Adds lines to its settings.
    fn set(&self, settings: &str) -> Result<()> {
        let mut file = File::options().append(true).open(self.folder.file(SETTINGS))?;
        Ok(file.write_all(settings.as_bytes())?)
    }

    fn add_management(&mut self) -> Result<()> {
        let port = environment::free_port()?;
        self.set(&format!("management.tcp.ip = 127.0.0.1\nmanagement.tcp.port = {port}\n"))?;
        fs::write(self.folder.file(PLUGINS), "[rabbitmq_management].\n")?;
        self.management = Some(port);
        Ok(())
    }

    fn name(&self) -> String {
        format!("fanfare-{}@localhost", self.port)
    }

    /// What makes a node private. Whatever is not named here would be read from or written to the system's own.
    fn variables(&self) -> Vec<(&'static str, String)> {
        let path = |name: &str| self.folder.0.join(name).display().to_string();
        vec![
            ("HOME", path("")),
            ("ERL_EPMD_PORT", self.port_mapper_port.to_string()),
            ("RABBITMQ_CONF_ENV_FILE", "/dev/null".to_owned()),
            ("RABBITMQ_CONFIG_FILE", path(SETTINGS)),
            ("RABBITMQ_CONFIG_FILES", path("conf.d/*.conf")),
            ("RABBITMQ_ADVANCED_CONFIG_FILE", path("advanced.config")),
            ("RABBITMQ_GENERATED_CONFIG_DIR", path("generated")),
            ("RABBITMQ_ENABLED_PLUGINS_FILE", path(PLUGINS)),
            ("RABBITMQ_MNESIA_BASE", path("data")),
            ("RABBITMQ_LOG_BASE", path("log")),
            ("RABBITMQ_PID_FILE", path(PID)),
            ("RABBITMQ_NODENAME", self.name()),
            ("RABBITMQ_NODE_IP_ADDRESS", Ipv4Addr::LOCALHOST.to_string()),
            ("RABBITMQ_NODE_PORT", self.port.to_string()),
            ("RABBITMQ_DIST_PORT", self.distribution_port.to_string()),
            ("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "-kernel inet_dist_use_interface {127,0,0,1}".to_owned()),
        ]
    }

    fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Result<Command> {
        let log = File::options().create(true).append(true).open(self.output())?;
        let mut command = Command::new(program);
        command.current_dir(&self.folder.0).envs(self.variables());
        command.stderr(log.try_clone()?).stdout(log);
        Ok(command)
    }

    fn start_port_mapper(&self) -> Result<Group> {
        let port = self.port_mapper_port.to_string();
        let mut command = self.command("epmd")?;
        let group = Group::spawn(command.args(["-port", &port, "-address", "127.0.0.1"]))?;
        let started = Instant::now();
        while TcpStream::connect((Ipv4Addr::LOCALHOST, self.port_mapper_port)).is_err() {
            interrupt::check()?;
            ensure!(
                group.is_running() && started.elapsed() < PORT_MAPPER_LIMIT,
                "Erlang's port mapper does not start: {}",
                self.tail()
            );
            thread::sleep(process::POLL);
        }
        Ok(group)
    }

    fn start_server(&self) -> Result<Group> {
        Group::spawn(&mut self.command(self.tools.join("rabbitmq-server"))?)
    }

    fn output(&self) -> PathBuf {
        self.folder.0.join("output.log")
    }

    /// The last lines of what the server printed.
    fn tail(&self) -> String {
        let text = fs::read(self.output()).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<_> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }
}

impl Instance for Node {
    fn port(&self) -> u16 {
        self.place.port
    }

    fn management(&self) -> Option<u16> {
        self.place.management
    }

    fn check_running(&mut self) -> Result<()> {
        if self.server.is_running() {
            return Ok(());
        }
        bail!("the RabbitMQ node has ended by itself: {}", self.place.tail())
    }

    fn check_ports(&self) -> Result<()> {
        let mut command = self.place.command(self.place.tools.join("rabbitmq-diagnostics"))?;
        process::output(command.args(["-q", "check_port_connectivity"]), TOOL_LIMIT).map(drop)
    }

    fn end(&mut self, end: End) -> Result<()> {
        let grace = match end {
            End::Stopped => STOP_GRACE,
            End::Killed => Duration::ZERO,
        };
        self.server.stop(grace).map(drop)
    }

    fn start_again(&mut self) -> Result<()> {
        if self.server.is_running() {
            return Ok(());
        }
        self.server = self.place.start_server()?;
        Ok(())
    }

    fn control(&self) -> String {
        let variables = self.place.variables();
        let words = variables.iter().map(|(name, value)| format!("{name}='{value}'"));
        let tool = self.place.tools.join("rabbitmqctl");
        let words = words.chain(std::iter::once(format!("'{}'", tool.display())));
        format!("env {}", words.collect::<Vec<_>>().join(" "))
    }

    fn pid(&self) -> Option<u32> {
        fs::read_to_string(self.place.folder.file(PID)).ok()?.trim().parse().ok()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Asked to stop, its start script waits for the Erlang machine, which nobody might reap otherwise.
        let _ = self.server.stop(STOP_GRACE);
    }
}

impl Folder {
    fn create() -> Result<Self> {
        static CREATED: AtomicU32 = AtomicU32::new(0);
        let nth = CREATED.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("fanfare-node-{}-{nth}", std::process::id()));
        // It holds the secret that lets in whoever knows it, so it is for this user alone.
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .with_context(|| format!("cannot create {}", path.display()))?;
        let folder = Self(path);
        fs::write(folder.file(SETTINGS), "log.file.level = warning\n")?;
        fs::write(folder.file(PLUGINS), "[].\n")?;
        Ok(folder)
    }

    fn file(&self, name: &str) -> PathBuf {
        Path::new(&self.0).join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            say(format_args!("cannot remove {}: {error}", self.0.display()));
        }
    }
}
