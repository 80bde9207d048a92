//! Stands between the tools and an object store, counts what is asked, and on demand is slow, cuts,
//! refuses, or lies.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A request as the proxy sees it.
#[derive(Clone, Debug)]
pub struct Request {
    /// The method.
    pub method: String,
    /// `BUCKET/KEY`, or the bucket alone.
    pub path: String,
    /// What stands behind the question mark.
    pub query: String,
}

impl Request {
    /// What it is: a listing, the beginning, a part or the completion of an upload in parts, or the
    /// method alone.
    pub fn kind(&self) -> &str {
        match self.method.as_str() {
            "GET" if self.query.contains("list-type=2") => "LIST",
            "POST" if self.query.starts_with("uploads") => "BEGIN",
            "PUT" if self.query.contains("partNumber=") => "PART",
            "POST" if self.query.contains("uploadId=") => "COMPLETE",
            "POST" if self.query.starts_with("delete") => "DELETE",
            other => other,
        }
    }

    /// Whether it is of this kind and its key ends so.
    pub fn is(&self, kind: &str, end: &str) -> bool {
        self.kind() == kind && self.path.ends_with(end)
    }
}

/// What happens to a request.
#[derive(Clone, Debug)]
pub enum Fault {
    /// It is passed on after a while.
    Delay(Duration),
    /// It is answered with this status and this word of S3's; the store does not see it.
    Refuse(u16, &'static str),
    /// The connection is cut before all of it has come; the store does not see it.
    CutRequest,
    /// So many bytes of the answer's body come, then the connection is cut.
    CutAnswer(usize),
    /// The store does it, and the answer never comes.
    LoseAnswer,
    /// One bit of the answer's body is another.
    FlipBit,
    /// The answer's body lacks its last byte, and says nothing of it.
    Shorten,
    /// What was answered to the same request the first time comes again.
    Repeat,
    /// It waits until the test lets it go; the store sees it then.
    Hold(SyncSender<()>, Arc<Mutex<Receiver<()>>>),
}

type Matches = Box<dyn Fn(&Request) -> bool + Send>;

/// A fault, and for which requests.
struct Rule {
    matches: Matches,
    /// So many are passed on before.
    skip: usize,
    /// So many it happens to.
    times: usize,
    fault: Fault,
}

#[derive(Default)]
struct State {
    log: Vec<Request>,
    rules: Vec<Rule>,
    answers: BTreeMap<String, Answer>,
}

/// A store's answer, with its whole body.
#[derive(Clone)]
struct Answer {
    head: String,
    body: Vec<u8>,
}

/// A proxy at work until the test ends.
pub struct Proxy {
    port: u16,
    state: Arc<Mutex<State>>,
}

/// The hand on requests that are held.
pub struct Held {
    arrived: Receiver<()>,
    go: SyncSender<()>,
}

impl Held {
    /// Waits until a request has come.
    pub fn wait(&self) {
        self.arrived.recv_timeout(Duration::from_secs(60)).expect("the request never came");
    }

    /// Lets it go.
    pub fn release(&self) {
        // Who sent it may be dead.
        let _ = self.go.try_send(());
    }
}

impl Proxy {
    /// Starts one in front of a port of this machine.
    pub fn start(upstream: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state: Arc<Mutex<State>> = Arc::default();
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let state = Arc::clone(&shared);
                // A connection that breaks is its client's matter.
                std::thread::spawn(move || serve(client, upstream, &state).ok());
            }
        });
        Proxy { port, state }
    }

    /// Its address.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Has a fault happen to `times` requests that match, behind the first `skip` of them.
    pub fn on(
        &self,
        matches: impl Fn(&Request) -> bool + Send + 'static,
        skip: usize,
        times: usize,
        fault: Fault,
    ) {
        let rule = Rule { matches: Box::new(matches), skip, times, fault };
        self.state.lock().unwrap().rules.push(rule);
    }

    /// Holds the first request that matches behind `skip` others.
    pub fn hold(&self, matches: impl Fn(&Request) -> bool + Send + 'static, skip: usize) -> Held {
        let (arrive, arrived) = sync_channel(1);
        let (go, leave) = sync_channel(1);
        self.on(matches, skip, 1, Fault::Hold(arrive, Arc::new(Mutex::new(leave))));
        Held { arrived, go }
    }

    /// Is honest again, with an empty log and nothing remembered.
    pub fn clear(&self) {
        let mut state = self.state.lock().unwrap();
        state.rules.clear();
        state.log.clear();
        state.answers.clear();
    }

    /// How many requests of a kind have come whose key ends so.
    pub fn count(&self, kind: &str, end: &str) -> usize {
        self.state.lock().unwrap().log.iter().filter(|request| request.is(kind, end)).count()
    }

    /// The faults that have not happened as often as they should, if at all.
    pub fn faults_left(&self) -> Vec<Fault> {
        let state = self.state.lock().unwrap();
        let is_left = |rule: &&Rule| rule.times > 0 && rule.times < usize::MAX / 2;
        state.rules.iter().filter(is_left).map(|rule| rule.fault.clone()).collect()
    }

    /// How many requests have come at all.
    pub fn total(&self) -> usize {
        self.state.lock().unwrap().log.len()
    }
}

/// Serves one request of a connection.
fn serve(mut client: TcpStream, upstream: u16, state: &Mutex<State>) -> std::io::Result<()> {
    let (head, mut body) = read_head(&mut client)?;
    let request = parse(&head);
    let fault = {
        let mut state = state.lock().unwrap();
        state.log.push(request.clone());
        state.fault(&request)
    };
    if matches!(fault, Some(Fault::CutRequest)) {
        return client.shutdown(Shutdown::Both);
    }
    let length = header(&head, "content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
    let mut rest = vec![0; length - body.len()];
    client.read_exact(&mut rest)?;
    body.append(&mut rest);
    match &fault {
        Some(Fault::Delay(time)) => std::thread::sleep(*time),
        Some(Fault::Refuse(status, code)) => {
            let body = format!("<Error><Code>{code}</Code><Message>because</Message></Error>");
            let body = if request.method == "HEAD" { String::new() } else { body };
            let length = body.len();
            let head = format!("HTTP/1.1 {status} Odd\r\nContent-Length: {length}\r\n");
            return write!(client, "{head}Connection: close\r\n\r\n{body}");
        }
        Some(Fault::Hold(arrived, go)) => {
            arrived.send(()).unwrap();
            go.lock().unwrap().recv().unwrap();
        }
        _ => {}
    }
    let mut answer = ask(upstream, &head, &body, request.method == "HEAD")?;
    let name = format!("{} {}?{}", request.method, request.path, request.query);
    let first = state.lock().unwrap().answers.entry(name).or_insert_with(|| answer.clone()).clone();
    match fault {
        Some(Fault::LoseAnswer) => return client.shutdown(Shutdown::Both),
        Some(Fault::CutAnswer(bytes)) => {
            let length = answer.body.len();
            write!(client, "{}Content-Length: {length}\r\n\r\n", answer.head)?;
            client.write_all(&answer.body[..bytes.min(length)])?;
            return client.shutdown(Shutdown::Both);
        }
        Some(Fault::FlipBit) => {
            let middle = answer.body.len() / 2;
            answer.body[middle] ^= 1;
        }
        Some(Fault::Shorten) => drop(answer.body.pop()),
        Some(Fault::Repeat) => answer = first,
        _ => {}
    }
    if request.method == "HEAD" {
        return write!(client, "{}\r\n", answer.head);
    }
    write!(client, "{}Content-Length: {}\r\n\r\n", answer.head, answer.body.len())?;
    client.write_all(&answer.body)
}

impl State {
    fn fault(&mut self, request: &Request) -> Option<Fault> {
        let rule = self.rules.iter_mut().find(|rule| rule.times > 0 && (rule.matches)(request))?;
        if rule.skip > 0 {
            rule.skip -= 1;
            return None;
        }
        rule.times -= 1;
        Some(rule.fault.clone())
    }
}

/// Reads up to the empty line; returns what came behind it, too.
fn read_head(stream: &mut TcpStream) -> std::io::Result<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            let body = bytes.split_off(end + 4);
            bytes.truncate(end + 2);
            return Ok((String::from_utf8(bytes).unwrap(), body));
        }
        let read = stream.read(&mut buffer)?;
        if read == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        bytes.extend_from_slice(&buffer[..read]);
    }
}

fn parse(head: &str) -> Request {
    let mut words = head.split(' ');
    let method = words.next().unwrap().to_owned();
    let target = words.next().unwrap();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    Request { method, path: path.trim_matches('/').to_owned(), query: query.to_owned() }
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let line = head.lines().find(|line| {
        line.split_once(':').is_some_and(|(found, _)| found.eq_ignore_ascii_case(name))
    })?;
    Some(line.split_once(':')?.1.trim())
}

/// Asks the store, and reads the whole answer. Its length and how it came are taken out of its head.
fn ask(upstream: u16, head: &str, body: &[u8], is_head: bool) -> std::io::Result<Answer> {
    let mut stream = TcpStream::connect(("127.0.0.1", upstream))?;
    write!(stream, "{head}Connection: close\r\n\r\n")?;
    // A store that refuses may not wait for the whole of it.
    let _ = stream.write_all(body);
    let (head, mut body) = read_head(&mut stream)?;
    stream.read_to_end(&mut body)?;
    if header(&head, "transfer-encoding").is_some() {
        body = unchunked(&body);
    }
    let keeps = |line: &&str| {
        let name = line.split(':').next().unwrap().to_ascii_lowercase();
        let is_length = name == "content-length" && !is_head;
        !is_length && name != "transfer-encoding" && name != "connection"
    };
    let lines: Vec<&str> = head.lines().filter(keeps).collect();
    Ok(Answer { head: lines.join("\r\n") + "\r\nConnection: close\r\n", body })
}

/// A body without the lengths between its pieces.
fn unchunked(mut bytes: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let end = bytes.windows(2).position(|two| two == b"\r\n").unwrap();
        let text = std::str::from_utf8(&bytes[..end]).unwrap();
        let length = usize::from_str_radix(text, 16).unwrap();
        if length == 0 {
            return body;
        }
        body.extend_from_slice(&bytes[end + 2..][..length]);
        bytes = &bytes[end + 2 + length + 2..];
    }
}
