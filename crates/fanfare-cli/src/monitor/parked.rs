//! `/api/parked`: what is kept for a person, and why. Looked at only where somebody asks for it.

use fanfare::{Operator, ParkedMessages, ParkedQuery};
use serde::Serialize;

/// Messages that are listed.
const MOST: usize = 200;

#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(super) enum Parked {
    Told(ParkedMessages),
    Untold {
        /// Why they cannot be looked at.
        problem: String,
    },
}

impl Parked {
    pub(super) async fn of(operator: &Operator) -> Self {
        match operator.parked(&ParkedQuery::default(), MOST).await {
            Ok(parked) => Self::Told(parked),
            Err(error) => Self::Untold { problem: error.to_string() },
        }
    }
}
