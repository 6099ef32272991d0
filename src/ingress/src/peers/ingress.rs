//! Where links and slots meet.

use std::sync::Arc;

use bytes::Bytes;

use crate::Ingress;
use crate::lending::PeerEnd;
use crate::lending::link::Link;
use crate::lending::message::Message;
use crate::peers::{Lending, LinkEnd, Violation};

impl Lending for Ingress {
    type Link = Link;

    fn link(&self, peer: Arc<str>) -> Link {
        Self::link(self, peer)
    }

    fn forget(&self, peer: &str, end: PeerEnd) {
        self.forget_peer(peer, end);
    }
}

impl LinkEnd for Link {
    async fn next(&mut self) -> Bytes {
        Self::next(self).await.encode()
    }

    fn take(&mut self, message: Bytes) -> Result<(), Violation> {
        let taken = Message::decode(&message).and_then(|message| Self::take(self, message));
        taken.map_err(|error| Violation(error.0))
    }
}
