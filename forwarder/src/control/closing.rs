//! The thread that closes what was detached. With a tap's last fd its link
//! goes, and the kernel lets the closer wait until nobody looks at the link
//! any more: some 20 ms in which no request would be answered.

use std::{
    io,
    sync::{
        Arc,
        mpsc::{self, Sender},
    },
    thread,
};

use weft_socket::confine::confine;

use crate::port::Port;

#[derive(Debug)]
pub struct Closing {
    ports: Sender<Arc<Port>>,
}

impl Closing {
    pub fn start() -> io::Result<Self> {
        let (ports, gone) = mpsc::channel();
        let (tell, confined) = mpsc::channel();
        thread::Builder::new()
            .name("weft-closing".to_owned())
            .spawn(move || {
                let result = confine();
                let may = result.is_ok();
                // The other end waits for it.
                let _ = tell.send(result);
                if may {
                    gone.iter().for_each(drop);
                }
            })?;
        let result = confined.recv().map_err(io::Error::other)?;
        result.map_err(io::Error::other)?;
        Ok(Self { ports })
    }

    /// `port` is in no table any more.
    pub fn close(&self, port: Option<Arc<Port>>) {
        if let Some(port) = port {
            // Without the thread the port is closed here and now.
            let _ = self.ports.send(port);
        }
    }
}
