//! The suite that every broker passes: what Fanfare relies on, one case for each promise.
//!
//! A [`Harness`] makes clients of the broker under test, and [`conformance_tests!`](crate::conformance_tests) turns every
//! case into a test:
//!
//! ```
//! use std::sync::Arc;
//!
//! use fanfare_broker::Broker;
//! use fanfare_broker::conformance::{Harness, Kill};
//! use fanfare_broker::memory::MemoryBroker;
//!
//! struct Memory(MemoryBroker);
//!
//! #[async_trait::async_trait]
//! impl Harness for Memory {
//!     async fn connect(&self) -> Arc<dyn Broker> {
//!         Arc::new(self.0.connect())
//!     }
//!
//!     fn user(&self) -> String {
//!         MemoryBroker::DEFAULT_USER.to_owned()
//!     }
//!
//!     async fn connect_mortal(&self) -> (Arc<dyn Broker>, Kill) {
//!         let client = Arc::new(self.0.connect());
//!         (Arc::clone(&client) as Arc<dyn Broker>, Box::new(move || client.isolate()))
//!     }
//! }
//!
//! fanfare_broker::conformance_tests!(Memory(MemoryBroker::new()));
//! ```
#![allow(clippy::unwrap_used, reason = "a case fails by panicking")]

mod bench;
mod consuming;
mod dead_letters;
mod exchanges;
mod publishing;
mod queues;
mod redelivery;

use std::sync::Arc;

use async_trait::async_trait;

use self::bench::Bench;
use crate::Broker;

/// Makes clients of the broker under test.
#[async_trait]
pub trait Harness: Send + Sync {
    /// Another client, with connections of its own, as another process would have them.
    async fn connect(&self) -> Arc<dyn Broker>;

    /// The user that all of these clients log in as.
    fn user(&self) -> String;

    /// Another client that can be killed.
    async fn connect_mortal(&self) -> (Arc<dyn Broker>, Kill);
}

/// Loses all connections of a client at once and for good, without a word of farewell to the broker, as the death of its
/// process does.
pub type Kill = Box<dyn FnOnce() + Send>;

/// Lists the cases, each once: whatever is not listed is dead code, which does not compile without a warning.
macro_rules! suite {
    ($dollar:tt $($file:ident: $($case:ident)*;)*) => {
        $($(
            #[doc = concat!("The case `", stringify!($case), "`, on queues of its own.")]
            pub async fn $case(harness: &dyn Harness) {
                let bench = Bench::new(harness).await;
                $file::$case(&bench).await;
                bench.finish().await;
            }
        )*)*

        /// Turns each case of the [conformance suite](crate::conformance) into a test of the broker that a harness makes
        /// clients of. The harness is an expression, evaluated in an async block for each test. The crate needs tokio with
        /// `macros` and `rt-multi-thread`.
        #[macro_export]
        macro_rules! conformance_tests {
            ($dollar harness:expr) => {
                $($(
                    #[::tokio::test(flavor = "multi_thread", worker_threads = 2)]
                    async fn $case() {
                        $dollar crate::conformance::$case(&$dollar harness).await;
                    }
                )*)*
            };
        }
    };
}

suite! { $
    publishing:
        a_message_arrives_as_it_was_published
        a_confirmed_message_is_in_its_queue
        messages_keep_the_order_in_which_they_were_published
        a_message_to_a_missing_queue_comes_back
        each_of_many_publishes_gets_its_own_outcome
        any_number_of_publishes_may_be_under_way
        a_message_that_comes_too_late_is_not_sent
        a_message_that_is_too_large_is_not_sent
        a_full_queue_refuses_messages
        a_user_id_that_is_not_the_publishers_login_is_refused;
    queues:
        declaring_again_changes_nothing
        declaring_with_other_arguments_is_refused
        a_missing_queue_is_none
        messages_and_consumers_are_counted
        a_deleted_queue_is_gone_with_what_it_held
        deleting_a_missing_queue_succeeds
        a_queue_declared_after_its_deletion_is_empty
        an_unused_queue_expires_and_a_consumed_one_does_not
        an_exclusive_queue_is_locked_for_others_who_may_publish_to_it
        an_exclusive_queue_goes_with_its_connection
        only_a_missing_queue_is_gone
        the_server_tells_what_it_is
        a_closed_handle_does_nothing_more;
    consuming:
        prefetch_bounds_what_is_unacked
        prefetch_counts_for_each_consumer
        prefetch_zero_is_refused
        consuming_a_missing_queue_ends_the_channel
        a_cancelled_consumer_ends_and_what_it_handed_out_stays_answerable
        a_dropped_consumer_lives_until_its_channel_ends
        consumers_of_a_queue_share_its_messages
        a_channel_carries_many_consumers
        next_loses_nothing_when_it_is_dropped
        deleting_on_the_consuming_channel_ends_the_stream_and_not_the_channel
        getting_takes_one_message_after_the_other_and_no_prefetch_counts_them
        getting_from_a_missing_queue_ends_the_channel
        deleting_elsewhere_ends_the_stream_and_not_the_channel
        a_channel_that_lives_answers
        a_channel_that_has_ended_does_not_answer
        only_the_first_single_active_consumer_is_served
        a_single_active_consumer_may_hold_five_thousand;
    redelivery:
        an_acked_message_never_comes_again
        an_ack_that_nobody_goes_on_with_holds_up_no_other
        a_requeued_message_comes_again_in_its_place
        a_closed_channel_gives_back_what_it_held
        a_closed_channel_gives_back_what_it_got
        a_dropped_channel_gives_back_what_it_held
        a_killed_client_gives_back_what_it_held
        answers_on_an_ended_channel_do_nothing
        a_standby_takes_over_from_a_killed_single_active_consumer_in_order
        a_standby_takes_over_from_a_closed_single_active_consumer_in_order
        a_quorum_queue_counts_what_killed_clients_were_handed;
    dead_letters:
        what_waited_too_long_is_dead_lettered
        a_message_expires_by_its_own_expiration
        what_came_back_too_often_is_dead_lettered;
    exchanges:
        every_queue_bound_to_an_exchange_takes_what_is_published_to_it
        declaring_an_exchange_again_keeps_its_bindings
        a_message_to_an_exchange_without_bindings_comes_back
        a_missing_exchange_is_told_and_hurts_no_other_message
        a_deleted_exchange_is_missing_and_hurts_no_message_to_a_queue
        binding_tells_what_is_missing
        an_exclusive_queue_is_bound_on_its_channel_and_by_nobody_else
        what_expires_behind_an_exchange_goes_to_the_queue_of_its_routing_key;
}
