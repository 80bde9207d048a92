//! An object store of a test's own: Ceph's radosgw over a monitor and one object server in memory, in a
//! temporary folder, on free ports, gone with its test. It is asked by curl, as a stranger would.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::harness::{Ended, run};

/// The key by which it is reached.
const ACCESS_KEY: &str = "BKTESTACCESS";
/// Its secret.
const SECRET_KEY: &str = "bk/test+secret=";
/// What starting it, and stopping it, may take at most.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often the start is tried: another process may be given a port that was free.
const ATTEMPTS: u32 = 5;

/// The variables by which a store at this URL is reached.
pub fn variables(url: &str) -> Vec<(String, String)> {
    [
        ("BACKUP_S3_ENDPOINT", url),
        ("BACKUP_S3_SSL_ENABLED", "false"),
        ("BACKUP_S3_ACCESS_KEY", ACCESS_KEY),
        ("BACKUP_S3_SECRET_KEY", SECRET_KEY),
        ("BACKUP_S3_RETRY_DELAY", "5"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into()
}

/// A running store; dropped, it is stopped at once and removed.
pub struct Gateway {
    folder: tempfile::TempDir,
    port: u16,
    processes: Vec<Child>,
}

impl Gateway {
    /// Starts one, with the user of [`ACCESS_KEY`] and no bucket.
    pub fn start() -> Self {
        let mut left = ATTEMPTS;
        loop {
            match Gateway::try_start() {
                Ok(gateway) => return gateway,
                Err(log) if left == 0 => panic!("the object store did not start:\n{log}"),
                Err(_) => left -= 1,
            }
        }
    }

    fn try_start() -> Result<Self, String> {
        let folder = tempfile::Builder::new().prefix("bk-rgw-").tempdir().unwrap();
        let (monitor, port) = (free_port(), free_port());
        let id = fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap().trim().to_owned();
        let path = folder.path().to_str().unwrap();
        fs::write(folder.path().join("ceph.conf"), configuration(path, &id, monitor, port))
            .unwrap();
        let mut gateway = Gateway { folder, port, processes: Vec::new() };
        let address = format!("[v2:127.0.0.1:{monitor}]");
        gateway
            .run("monmaptool", &["--create", "--fsid", &id, "--addv", "a", &address, "monmap"])?;
        for name in ["mon", "osd", "rgw"] {
            fs::create_dir(gateway.folder.path().join(name)).unwrap();
        }
        gateway.run("ceph-mon", &["--mkfs", "-i", "a", "--monmap", "monmap"])?;
        gateway.spawn("ceph-mon", &["-f", "-i", "a"]);
        // Any new id: that it is known to the monitor is what counts.
        gateway.run("ceph", &["--connect-timeout", "20", "osd", "new", &id])?;
        gateway.run("ceph-osd", &["--mkfs", "-i", "0", "--osd-uuid", &id])?;
        gateway.spawn("ceph-osd", &["-f", "-i", "0"]);
        gateway.spawn("radosgw", &["-f", "-n", "client.rgw"]);
        gateway.wait_until_it_answers()?;
        let keys = [&format!("--access-key={ACCESS_KEY}")[..], &format!("--secret={SECRET_KEY}")];
        gateway.run(
            "radosgw-admin",
            &[&ADMIN[..], &["user", "create", "--display-name=bk"], &keys].concat(),
        )?;
        Ok(gateway)
    }

    fn wait_until_it_answers(&mut self) -> Result<(), String> {
        let since = Instant::now();
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            let has_ended =
                self.processes.iter_mut().any(|process| process.try_wait().unwrap().is_some());
            if has_ended || since.elapsed() > PATIENCE {
                let logs = ["ceph-mon", "ceph-osd", "radosgw"].map(|program| {
                    fs::read_to_string(self.folder.path().join(program).with_extension("err"))
                });
                return Err(logs.map(Result::unwrap_or_default).concat());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// One of its programs, which dies with the test.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig=KILL", program])
            .current_dir(self.folder.path())
            .env_clear()
            .env("PATH", "/usr/bin:/bin:/usr/sbin:/sbin")
            .env("LC_ALL", "C")
            .env("TZ", "UTC")
            .env("HOME", self.folder.path())
            .env("CEPH_CONF", self.folder.path().join("ceph.conf"));
        command
    }

    fn run(&self, program: &str, args: &[&str]) -> Result<String, String> {
        let ended = run(self.command(program).args(args), b"");
        let text = ended.text();
        if ended.code == 0 { Ok(text) } else { Err(format!("{program}: {text}{}", ended.stderr)) }
    }

    fn spawn(&mut self, program: &str, args: &[&str]) {
        let log = fs::File::create(self.folder.path().join(program).with_extension("err")).unwrap();
        let mut command = self.command(program);
        command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.processes.push(command.spawn().unwrap());
    }

    /// The port on which it speaks plain HTTP.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Changes what the user may do: `&["user", "suspend"]`, `&["quota", "enable"]`.
    #[track_caller]
    pub fn administer(&self, args: &[&str]) {
        self.run("radosgw-admin", &[&ADMIN[..], args].concat()).unwrap();
    }

    /// Sends a request: a method, `/BUCKET/KEY?QUERY` with its names in order, a body.
    pub fn request(&self, method: &str, path: &str, body: &[u8]) -> Ended {
        self.request_with(method, path, &[], body)
    }

    /// The same with more of curl's arguments, such as headers.
    pub fn request_with(&self, method: &str, path: &str, more: &[&str], body: &[u8]) -> Ended {
        let url = format!("http://127.0.0.1:{}{path}", self.port);
        let mut command = self.command("curl");
        // What a range, a brace or a bracket in a key would mean to curl does not count.
        command.args(["-sS", "-g", "--fail-with-body", "--aws-sigv4", "aws:amz:us-east-1:s3"]);
        command.args(["--user", &format!("{ACCESS_KEY}:{SECRET_KEY}")]);
        command.args(["-H", "x-amz-content-sha256: UNSIGNED-PAYLOAD", "-X", method, &url]);
        command.args(more);
        if method == "PUT" || method == "POST" {
            command.args(["--data-binary", "@-"]);
        }
        run(&mut command, body)
    }

    /// Makes a bucket.
    #[track_caller]
    pub fn make_bucket(&self, bucket: &str) {
        self.request("PUT", &format!("/{bucket}"), b"").expect(0);
    }

    /// All keys of a bucket below a prefix, in order.
    #[track_caller]
    pub fn keys(&self, bucket: &str, prefix: &str) -> Vec<String> {
        let (mut keys, mut last) = (Vec::new(), String::new());
        loop {
            let [prefix, after] = [prefix, &last].map(|value| value.replace('/', "%2F"));
            let path = format!("/{bucket}?list-type=2&prefix={prefix}&start-after={after}");
            let text = self.request("GET", &path, b"").expect(0).text();
            keys.extend(values(&text, "Key"));
            if !text.contains("<IsTruncated>true") {
                return keys;
            }
            last = keys.last().unwrap().clone();
        }
    }

    /// How many uploads in parts a bucket holds that were neither completed nor given up.
    #[track_caller]
    pub fn open_uploads(&self, bucket: &str) -> usize {
        let text = self.request("GET", &format!("/{bucket}?uploads="), b"").expect(0).text();
        values(&text, "UploadId").len()
    }

    /// The object's bytes.
    #[track_caller]
    pub fn read(&self, bucket: &str, key: &str) -> Vec<u8> {
        self.request("GET", &format!("/{bucket}/{key}"), b"").expect(0).stdout
    }

    /// Puts an object, over another one, too.
    #[track_caller]
    pub fn write(&self, bucket: &str, key: &str, bytes: &[u8]) {
        self.request("PUT", &format!("/{bucket}/{key}"), bytes).expect(0);
    }

    /// Removes an object.
    #[track_caller]
    pub fn remove(&self, bucket: &str, key: &str) {
        self.request("DELETE", &format!("/{bucket}/{key}"), b"").expect(0);
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // Who depends on whom does not matter: their data is thrown away with them.
        for process in self.processes.iter_mut().rev() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// Whom radosgw-admin is about.
const ADMIN: [&str; 3] = ["-n", "client.rgw", "--uid=bk"];

/// What stands between the tags of a name, in order.
fn values(xml: &str, tag: &str) -> Vec<String> {
    let (open, close) = (format!("<{tag}>"), format!("</{tag}>"));
    let parts = xml.split(&open).skip(1);
    parts.map(|part| part.split(&close).next().unwrap().to_owned()).collect()
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// The smallest cluster there is: no keys between its parts, no manager, one copy, in memory.
fn configuration(folder: &str, id: &str, monitor: u16, port: u16) -> String {
    format!(
        "[global]
fsid = {id}
mon_host = [v2:127.0.0.1:{monitor}/0]
mon_initial_members = a
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
ms_mon_client_mode = crc
ms_client_mode = crc
mon_data = {folder}/mon
osd_data = {folder}/osd
rgw_data = {folder}/rgw
run_dir = {folder}
crash_dir = {folder}
admin_socket =
pid_file =
log_file =
log_to_stderr = true
debug_rocksdb = 0
mon_cluster_log_to_file = false
mon_data_avail_warn = 0
mon_data_avail_crit = 0
mon_allow_pool_size_one = true
mon_max_pg_per_osd = 5000
paxos_propose_interval = 0.05
paxos_min_wait = 0.01
osd_objectstore = memstore
memstore_device_bytes = 4294967296
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 1
osd_pool_default_pgp_num = 1
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
rgw_frontends = beast endpoint=127.0.0.1:{port}
rgw_thread_pool_size = 32
rgw_dynamic_resharding = false
[mon.a]
host = localhost
"
    )
}

#[test]
fn the_store_of_the_tests_is_a_real_one() {
    let gateway = Gateway::start();
    gateway.make_bucket("backups");
    let key = "2026/04/28/backup-1/files/000001.tar.zst";
    gateway.write("backups", key, b"content");
    assert_eq!(gateway.keys("backups", "2026/"), [key]);
    assert_eq!(gateway.read("backups", key), b"content");
    assert_eq!(gateway.open_uploads("backups"), 0);
    gateway.request("POST", "/backups/parts?uploads=", b"").expect(0);
    assert_eq!(gateway.open_uploads("backups"), 1);
    gateway.administer(&["user", "suspend"]);
    assert_ne!(gateway.request("GET", "/backups/a", b"").code, 0);
    gateway.administer(&["user", "enable"]);
    gateway.remove("backups", key);
    assert_eq!(gateway.keys("backups", ""), [""; 0]);
}
