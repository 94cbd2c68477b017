//! A TCP proxy that can lose or hold what passes, by direction, and counts
//! HTTP requests.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU8, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Way {
    Pass,
    /// Taken and thrown away.
    Lose,
    /// Kept, and passed on later, even when the sender is gone.
    Hold,
    /// Passed on as something that is no JSON any more.
    Garble,
}

pub struct Proxy {
    pub port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    requests: AtomicU8,
    answers: AtomicU8,
    stopped: AtomicBool,
    streams: Mutex<Vec<TcpStream>>,
    paths: Mutex<Vec<String>>,
}

impl Proxy {
    pub fn before(target: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        let shared = Arc::new(Shared {
            requests: AtomicU8::new(Way::Pass as u8),
            answers: AtomicU8::new(Way::Pass as u8),
            stopped: AtomicBool::new(false),
            streams: Mutex::default(),
            paths: Mutex::default(),
        });
        let serving = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if serving.stopped.load(SeqCst) {
                    return;
                }
                serving.serve(client, target);
            }
        });
        Self { port, shared }
    }

    pub fn requests(&self, way: Way) {
        self.shared.requests.store(way as u8, SeqCst);
    }

    pub fn answers(&self, way: Way) {
        self.shared.answers.store(way as u8, SeqCst);
    }

    /// Ends all connections; new ones are taken.
    pub fn cut(&self) {
        for stream in self.shared.streams.lock().expect("no panic").drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// The paths of the requests since the last call.
    pub fn take_paths(&self) -> Vec<String> {
        std::mem::take(&mut *self.shared.paths.lock().expect("no panic"))
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.stopped.store(true, SeqCst);
        self.cut();
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

impl Shared {
    fn serve(self: &Arc<Self>, client: TcpStream, target: u16) {
        let Ok(server) = TcpStream::connect(("127.0.0.1", target)) else {
            return;
        };
        let clone = |stream: &TcpStream| stream.try_clone().expect("a descriptor");
        let mut streams = self.streams.lock().expect("no panic");
        streams.extend([clone(&client), clone(&server)]);
        let (from, to) = (clone(&client), clone(&server));
        let (asking, answering) = (Arc::clone(self), Arc::clone(self));
        thread::spawn(move || asking.pump(from, to, |shared| &shared.requests, true));
        thread::spawn(move || answering.pump(server, client, |shared| &shared.answers, false));
    }

    fn pump(
        &self,
        mut from: TcpStream,
        mut to: TcpStream,
        way: impl Fn(&Self) -> &AtomicU8,
        counts: bool,
    ) {
        let mut buffer = vec![0; 256 * 1024];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            if counts {
                self.count(&buffer[..count]);
            }
            while way(self).load(SeqCst) == Way::Hold as u8 && !self.stopped.load(SeqCst) {
                thread::sleep(Duration::from_millis(5));
            }
            let way = way(self).load(SeqCst);
            if way == Way::Garble as u8 {
                // HTTP has none, so that it stays sound.
                let braces = buffer[..count].iter_mut().filter(|byte| **byte == b'{');
                braces.for_each(|byte| *byte = b'[');
            }
            if way != Way::Lose as u8 && to.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Write);
    }

    fn count(&self, bytes: &[u8]) {
        let text = String::from_utf8_lossy(bytes);
        let found = text.split("POST ").skip(1);
        let found = found.filter_map(|rest| rest.split(' ').next().map(str::to_owned));
        self.paths.lock().expect("no panic").extend(found);
    }
}
