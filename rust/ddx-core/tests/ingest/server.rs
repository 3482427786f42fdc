//! A small HTTP server with good and bad manners.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;

/// What every good answer holds.
pub const BODY: &[u8] = b"a body of some bytes";

const GZIP: &str = "Content-Encoding: gzip\r\n";

fn gzip(body: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(body).unwrap();
    encoder.finish().unwrap()
}

pub struct Server {
    pub port: u16,
    hits: Arc<Mutex<HashMap<String, usize>>>,
    pub most_at_once: Arc<AtomicUsize>,
}

impl Server {
    /// Serves until the process ends.
    pub fn start(pictures: HashMap<String, Vec<u8>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let hits: Arc<Mutex<HashMap<String, usize>>> = Arc::default();
        let most_at_once = Arc::new(AtomicUsize::new(0));
        let (counts, pictures) = (hits.clone(), Arc::new(pictures));
        let crowd = Arc::new(Crowd { now: AtomicUsize::new(0), most: most_at_once.clone() });
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (counts, pictures, crowd) = (counts.clone(), pictures.clone(), crowd.clone());
                std::thread::spawn(move || {
                    // A client that hangs up early is part of the tests.
                    let _ = answer(stream, port, &counts, &crowd, &pictures);
                });
            }
        });
        Self { port, hits, most_at_once }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}/{path}", self.port)
    }

    pub fn hits(&self, path: &str) -> usize {
        self.hits.lock().unwrap().get(path).copied().unwrap_or(0)
    }
}

fn wait_for_ever() -> ! {
    loop {
        std::thread::park();
    }
}

/// Requests for `slow-ok` that wait for their answer.
struct Crowd {
    now: AtomicUsize,
    most: Arc<AtomicUsize>,
}

fn answer(
    mut stream: TcpStream,
    port: u16,
    counts: &Mutex<HashMap<String, usize>>,
    crowd: &Crowd,
    pictures: &HashMap<String, Vec<u8>>,
) -> std::io::Result<()> {
    let mut request = BufReader::new(stream.try_clone()?);
    if request.fill_buf()?.first() == Some(&0x16) {
        return Ok(()); // somebody who wants TLS; the rest of it may hold no line's end
    }
    let mut line = String::new();
    request.read_line(&mut line)?;
    let path = line.split(' ').nth(1).unwrap_or("/").trim_start_matches('/').to_owned();
    while line.trim() != "" {
        line.clear();
        request.read_line(&mut line)?;
    }
    let hits = {
        let mut counts = counts.lock().unwrap();
        let hits = counts.entry(path.clone()).or_default();
        *hits += 1;
        *hits
    };
    let head = |status: &str, more: &str| format!("HTTP/1.1 {status}\r\nConnection: close\r\n{more}\r\n");
    let sized = |status: &str, more: &str, body: &[u8]| {
        let mut bytes = head(status, &format!("Content-Length: {}\r\n{more}", body.len())).into_bytes();
        bytes.extend_from_slice(body);
        bytes
    };
    match path.as_str() {
        "slow-ok" => {
            crowd.most.fetch_max(crowd.now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(100));
            crowd.now.fetch_sub(1, Ordering::SeqCst); // before the answer: after it, the next one may be here already
            stream.write_all(&sized("200 OK", "", BODY))
        }
        "flaky" if hits <= 2 => stream.write_all(&sized("503 Busy", "", b"")),
        "patient" if hits == 1 => stream.write_all(&sized("429 Slow Down", "Retry-After: 1\r\n", b"")),
        "ok" | "flaky" | "patient" => stream.write_all(&sized("200 OK", "", BODY)),
        "always-503" => stream.write_all(&sized("503 Busy", "", b"")),
        "away" => stream.write_all(&sized("503 Busy", "Retry-After: 3600\r\n", b"")),
        "endless" => {
            stream.write_all(head("200 OK", "").as_bytes())?;
            loop {
                stream.write_all(&[b'x'; 8192])?;
            }
        }
        "drip" => {
            stream.write_all(head("200 OK", "").as_bytes())?;
            loop {
                stream.write_all(b"x")?;
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        "stall" => {
            stream.write_all(head("200 OK", "Content-Length: 100\r\n").as_bytes())?;
            stream.write_all(b"half")?;
            wait_for_ever()
        }
        "silent" => wait_for_ever(),
        "huge" => stream.write_all(head("200 OK", "Content-Length: 999999999999\r\n").as_bytes()),
        "cut" => stream.write_all(&[head("200 OK", "Content-Length: 100\r\n").as_bytes(), b"half"].concat()),
        // Nobody asked for gzip.
        "gzip" => stream.write_all(&sized("200 OK", GZIP, &gzip(BODY))),
        "gzip-silent" => stream.write_all(&sized("200 OK", "", &[&gzip(BODY)[..], b"behind it"].concat())),
        "gzip-chunked" => {
            stream.write_all(head("200 OK", &format!("{GZIP}Transfer-Encoding: chunked\r\n")).as_bytes())?;
            for byte in gzip(BODY) {
                stream.write_all(&[b'1', b'\r', b'\n', byte, b'\r', b'\n'])?;
            }
            stream.write_all(b"0\r\n\r\n")
        }
        "gzip-untrue" => stream.write_all(&sized("200 OK", GZIP, BODY)),
        "gzip-bomb" => stream.write_all(&sized("200 OK", GZIP, &gzip(&vec![0; 5 << 20]))),
        "gzip-cut" => stream.write_all(&sized("200 OK", GZIP, &gzip(BODY)[..20])),
        "noai" => stream.write_all(&sized("200 OK", "X-Robots-Tag: noindex, noai\r\n", BODY)),
        "to-ok" => stream.write_all(&sized("302 Found", "Location: /ok\r\n", b"")),
        "to-name" => {
            let location = format!("Location: http://localhost:{port}/ok\r\n");
            stream.write_all(&sized("301 Moved", &location, b""))
        }
        "to-metadata" => stream.write_all(&sized("302 Found", "Location: http://169.254.169.254/latest\r\n", b"")),
        "to-file" => stream.write_all(&sized("302 Found", "Location: file:///etc/passwd\r\n", b"")),
        "loop" => stream.write_all(&sized("302 Found", "Location: /loop\r\n", b"")),
        _ => match pictures.get(&path) {
            Some(picture) => stream.write_all(&sized("200 OK", "", picture)),
            None => stream.write_all(&sized("404 Not Found", "", b"")),
        },
    }
}
