//! Written next: a consumer of one queue that outlives its channels.

/// See the crate's documentation.
#[derive(Debug)]
pub struct Subscription;
/// See the crate's documentation.
#[derive(Debug)]
pub struct SubscriptionOptions;
