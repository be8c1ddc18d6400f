//! A way to the broker that can be cut.

use std::io;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

/// Listens all the time, and lets nobody through while it is cut.
pub(crate) struct Proxy {
    pub(crate) address: String,
    /// None while it is cut.
    streams: Arc<Mutex<Option<Vec<TcpStream>>>>,
}

impl Proxy {
    /// A proxy that is cut, before `broker`.
    pub(crate) fn cut_off(broker: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let streams = Arc::new(Mutex::new(None::<Vec<TcpStream>>));
        let shared = Arc::clone(&streams);
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Some(streams) = &mut *shared.lock().unwrap() else { continue };
                let server = TcpStream::connect(&broker).unwrap();
                for (from, to) in [(&client, &server), (&server, &client)] {
                    let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    streams.push(from.try_clone().unwrap());
                    thread::spawn(move || {
                        let _ = io::copy(&mut from, &mut to);
                        let _ = to.shutdown(Shutdown::Both);
                    });
                }
            }
        });
        Self { address, streams }
    }

    pub(crate) fn restore(&self) {
        *self.streams.lock().unwrap() = Some(Vec::new());
    }

    pub(crate) fn cut(&self) {
        let streams = self.streams.lock().unwrap().take();
        for stream in streams.into_iter().flatten() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}
