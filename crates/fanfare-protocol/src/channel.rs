use std::fmt;
use std::str::FromStr;

/// How a service was invoked. Callbacks are ordinary services and tell by it what they were given.
///
/// Displays as `FANOUT_CALL` and so on; [`Channel::as_header`] is the form on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Channel {
    /// A target of a fan-out: the payload is the caller's.
    FanoutCall,
    /// An on-target callback of a fan-out: the payload is one [`TargetResult`](crate::TargetResult).
    FanoutOnTarget,
    /// A final callback of a fan-out: the payload is a [`FinalPayload`](crate::FinalPayload).
    FanoutOnFinal,
    /// A target of a parallel execution: the payload is the caller's.
    ParallelExecCall,
    /// An on-target callback of a parallel execution: the payload is one [`TargetResult`](crate::TargetResult).
    ParallelExecOnTarget,
    /// A plain invocation, which nobody answers: the payload is the caller's.
    Invoke,
}

/// A header names a channel that this version does not know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("channel {0:?} is unknown")]
pub struct UnknownChannel(pub String);

impl Channel {
    const ALL: [Self; 6] = [
        Self::FanoutCall,
        Self::FanoutOnTarget,
        Self::FanoutOnFinal,
        Self::ParallelExecCall,
        Self::ParallelExecOnTarget,
        Self::Invoke,
    ];

    /// The value of header `fanfare-channel`.
    #[must_use]
    pub const fn as_header(self) -> &'static str {
        match self {
            Self::FanoutCall => "fanout-call",
            Self::FanoutOnTarget => "fanout-on-target",
            Self::FanoutOnFinal => "fanout-on-final",
            Self::ParallelExecCall => "parallel-exec-call",
            Self::ParallelExecOnTarget => "parallel-exec-on-target",
            Self::Invoke => "invoke",
        }
    }

    /// Whether a service invoked through this channel is a target, whose answer is a result.
    #[must_use]
    pub const fn is_call(self) -> bool {
        matches!(self, Self::FanoutCall | Self::ParallelExecCall)
    }
}

impl fmt::Display for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::FanoutCall => "FANOUT_CALL",
            Self::FanoutOnTarget => "FANOUT_ON_TARGET",
            Self::FanoutOnFinal => "FANOUT_ON_FINAL",
            Self::ParallelExecCall => "PARALLEL_EXEC_CALL",
            Self::ParallelExecOnTarget => "PARALLEL_EXEC_ON_TARGET",
            Self::Invoke => "INVOKE",
        })
    }
}

impl FromStr for Channel {
    type Err = UnknownChannel;
    fn from_str(header: &str) -> Result<Self, UnknownChannel> {
        Self::ALL
            .into_iter()
            .find(|channel| channel.as_header() == header)
            .ok_or_else(|| UnknownChannel(header.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_channel_survives_the_wire_and_displays_in_capitals() {
        for channel in Channel::ALL {
            assert_eq!(channel.as_header().parse(), Ok(channel));
            assert_eq!(channel.to_string(), channel.as_header().to_uppercase().replace('-', "_"));
        }
        assert!("fanout".parse::<Channel>().is_err());
    }
}
