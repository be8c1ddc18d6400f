use std::collections::BTreeMap;
use std::sync::Weak;

use clap::ValueEnum;
use fanfare_protocol::{EndedBy, Fence, Message, QueueSpec, TargetResult, header};
use tokio::sync::mpsc;

use super::channel::Pipe;
use crate::oracle::Role;

/// A mistake that processes can be made to make, to see that the simulation finds it.
///
/// What is simulated are the real parts, which do not make it: their connection makes it for them, and does what the broker
/// would see of a process that has the defect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Defect {
    /// A worker acks a request when its result is sent, and does not wait until that is confirmed.
    AckBeforeConfirm,
    /// A publisher sends the manifest when the requests are sent, and does not wait until they are confirmed.
    ManifestBeforeConfirm,
    /// A publisher sends the manifest when the aggregation queue is declared, and does not wait until another is, or is deleted.
    DeclarationUnsettled,
    /// Whoever declares a service's queue, or one in which retries wait, declares nothing after it.
    DeclaredLast,
    /// A coordinator goes on when an on-target callback is sent, and does not wait until it is confirmed.
    FinalBeforeConfirm,
    /// A coordinator acks results when the checkpoint that holds them is sent, and does not wait until it is confirmed.
    CheckpointUnconfirmed,
    /// A coordinator takes a checkpoint's confirm for the proof that it is still the one that its queue's messages go to.
    ConfirmIsProof,
    /// A coordinator writes no checkpoints: results stay unacked until the end, in its window.
    NoCheckpoint,
    /// A coordinator that takes over writes no fence, and acts on the first thing it reads.
    NoFence,
    /// A coordinator takes what it was handed for what is on the broker's disk, and appends no mark to find out.
    HandedOutIsKept,
    /// A coordinator appends marks that are small, whose confirm tells nothing of large results.
    SmallMarks,
    /// A coordinator does not look for the sentinel, and takes a queue that was emptied for one that is still to be filled.
    NoSentinel,
    /// A coordinator counts results instead of keys: the second result of a target counts for another one.
    CountInsteadOfSet,
    /// A deadline counts where it passes, in one coordinator, and not in the order of the queue.
    DeadlineDecides,
    /// A coordinator acks the manifest before the aggregation queue is deleted.
    ManifestAckedFirst,
    /// A coordinator cancels its consumer before it deletes the aggregation queue.
    CancelBeforeDelete,
    /// A coordinator acks a manifest with `multiple`, and by that those of other fan-outs which came before it.
    MultipleAcrossFanOuts,
}

/// What a queue's name has that is declared after others for their sake.
const SETTLING: &str = ".settling.";

/// What a process does with a message that it is to publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sending {
    /// It waits for the confirm.
    Confirmed,
    /// It takes it for confirmed as soon as it is sent.
    Unconfirmed,
    /// It takes it for confirmed, and for read from its queue before all that is there.
    ToItself,
    /// It takes it for confirmed, and does not send it.
    Nowhere,
}

impl Defect {
    /// What a process with this defect makes of a message that it is to publish.
    pub(super) fn distort(self, message: &mut Message) {
        if self == Self::SmallMarks
            && is_mark(message)
            && let Ok(fence) = Fence::decode(message)
        {
            message.body = format!(r#"{{"token":"{}"}}"#, fence.token).into();
        }
    }

    /// Whether a process with this defect takes a queue for declared, and declares it when it needs it.
    pub(super) fn puts_off(self, role: Role, queue: &str, is_aggregation: bool) -> bool {
        match self {
            Self::DeclarationUnsettled => is_aggregation && role != Role::Coordinator,
            Self::DeclaredLast => queue.contains(SETTLING),
            _ => false,
        }
    }

    /// What a process with this defect does with a message.
    pub(super) fn sending(self, role: Role, message: &Message) -> Sending {
        match (self, role, message.kind()) {
            (Self::AckBeforeConfirm, Role::Worker, header::TYPE_RESULT | header::TYPE_RESULTS)
            | (Self::ManifestBeforeConfirm, _, header::TYPE_REQUEST)
            | (Self::CheckpointUnconfirmed, _, header::TYPE_CHECKPOINT) => Sending::Unconfirmed,
            (Self::FinalBeforeConfirm, _, header::TYPE_CALLBACK) if message.text(header::KEY).is_some() => {
                Sending::Unconfirmed
            }
            (Self::NoCheckpoint, _, header::TYPE_CHECKPOINT) => Sending::Nowhere,
            (Self::HandedOutIsKept, _, header::TYPE_FENCE) if is_mark(message) => Sending::Nowhere,
            (Self::NoFence, _, header::TYPE_FENCE) => Sending::ToItself,
            (Self::DeadlineDecides, Role::Coordinator, header::TYPE_RESULT) if is_by_deadline(message) => {
                Sending::ToItself
            }
            _ => Sending::Confirmed,
        }
    }
}

fn is_mark(fence: &Message) -> bool {
    fence.properties.message_id.as_ref().is_some_and(|id| id.contains("/mark/"))
}

fn is_by_deadline(result: &Message) -> bool {
    TargetResult::from_body(&result.body).is_ok_and(|result| result.ended_by == Some(EndedBy::Deadline))
}

/// What a process remembers because of its defect.
#[derive(Default)]
pub(super) struct Remembered {
    /// The way of messages to itself, by the queue that it takes them to come from.
    to_itself: BTreeMap<String, mpsc::UnboundedSender<Message>>,
    /// Aggregation queues that it takes for declared, and will declare when it needs them.
    put_off: BTreeMap<String, QueueSpec>,
    /// The latest delivery of each manifest, by its run.
    manifests: BTreeMap<String, (Weak<Pipe>, u64)>,
}

impl Remembered {
    /// Where messages come from that the process gives itself from now on, as if from this queue.
    pub(super) fn listen(&mut self, queue: &str) -> mpsc::UnboundedReceiver<Message> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.to_itself.insert(queue.to_owned(), sender);
        receiver
    }

    /// Gives the process a message as if from this queue.
    pub(super) fn say(&self, queue: &str, message: Message) {
        if let Some(sender) = self.to_itself.get(queue) {
            // Where nobody listens any more, there is nobody to mislead.
            let _ = sender.send(message);
        }
    }

    pub(super) fn put_off(&mut self, queue: QueueSpec) {
        self.put_off.insert(queue.name.clone(), queue);
    }

    /// The queue, where its declaration was put off until now.
    pub(super) fn take_up(&mut self, queue: &str) -> Option<QueueSpec> {
        self.put_off.remove(queue)
    }

    pub(super) fn hold(&mut self, run: String, channel: Weak<Pipe>, tag: u64) {
        self.manifests.insert(run, (channel, tag));
    }

    /// The channel and the tag of a manifest.
    pub(super) fn let_go(&mut self, run: &str) -> Option<(Weak<Pipe>, u64)> {
        self.manifests.remove(run)
    }
}
