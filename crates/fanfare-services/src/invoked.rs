//! Configured services as services: what a program or a server is told beside the payload.

use async_trait::async_trait;
use bytes::Bytes;
use fanfare_protocol::Metadata;
use fanfare_worker::{Context, Result, Service, ServiceError};
use serde_json::value::RawValue;

use crate::{ExecService, HttpService};

#[async_trait]
impl Service for ExecService {
    async fn call(&self, context: Context, payload: &RawValue) -> Result<Box<RawValue>> {
        let names = [
            "FANFARE_CID",
            "FANFARE_RUN",
            "FANFARE_SOURCE",
            "FANFARE_CHANNEL",
            "FANFARE_MESSAGE_ID",
            "FANFARE_ATTEMPT",
            "FANFARE_KEY",
            "FANFARE_METADATA",
        ];
        let mut told = told(names, &context);
        told.push(("FANFARE_PAYLOAD_BYTES", payload.get().len().to_string()));
        self.run(bytes_of(payload), &told)
            .await
            .map_err(|error| if error.is_fatal() { ServiceError::fatal(error) } else { error.into() })
    }
}

#[async_trait]
impl Service for HttpService {
    async fn call(&self, context: Context, payload: &RawValue) -> Result<Box<RawValue>> {
        let names = [
            "fanfare-cid",
            "fanfare-run",
            "fanfare-source",
            "fanfare-channel",
            "fanfare-message-id",
            "fanfare-attempt",
            "fanfare-key",
            "fanfare-metadata",
        ];
        self.run(bytes_of(payload), &told(names, &context))
            .await
            .map_err(|error| if error.is_fatal() { ServiceError::fatal(error) } else { error.into() })
    }
}

fn bytes_of(payload: &RawValue) -> Bytes {
    Bytes::copy_from_slice(payload.get().as_bytes())
}

/// What the invocation is known by, under the given names. A final callback has no key; the caller's metadata is a JSON object, where
/// there is any.
fn told(names: [&'static str; 8], context: &Context) -> Vec<(&'static str, String)> {
    let values = [
        Some(context.cid().to_string()),
        Some(context.run().to_string()),
        Some(context.source().to_string()),
        Some(context.channel().to_string()),
        Some(context.message_id().to_owned()),
        Some(context.attempt().to_string()),
        context.key().map(ToString::to_string),
        Some(context.metadata()).filter(|metadata| !metadata.is_empty()).map(in_json),
    ];
    names.into_iter().zip(values).filter_map(|(name, value)| Some((name, value?))).collect()
}

fn in_json(metadata: &Metadata) -> String {
    serde_json::to_string(metadata).expect("a map of strings is JSON")
}
