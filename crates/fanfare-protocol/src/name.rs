//! Names and ids, parsed once at the edge and trusted from then on.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize, Serializer};
use smol_str::SmolStr;
use uuid::Uuid;

use crate::{limits, quoted};

/// A value is not allowed as a name; says which value, which rule, and what would do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {} is not allowed: {rule}", quoted(.value))]
pub struct InvalidName {
    /// What the value was meant to be, such as "service name".
    pub what: &'static str,
    /// The value as it was given.
    pub value: String,
    /// The rule that it breaks.
    pub rule: String,
}

fn check_name(what: &'static str, value: &str, max: usize) -> Result<(), InvalidName> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | ':' | '-');
    let rule = if value.is_empty() {
        format!("it is empty; give 1 to {max} characters")
    } else if let Some(c) = value.chars().find(|c| !allowed(*c)) {
        format!("{c:?} is not one of A-Z a-z 0-9 . _ : -")
    } else if value.len() > max {
        format!("it has {} characters, and {max} is the most", value.len())
    } else {
        return Ok(());
    };
    Err(InvalidName { what, value: value.to_owned(), rule })
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
        #[serde(try_from = "SmolStr")]
        pub struct $name(SmolStr);

        impl $name {
            /// Checks the value against the rule for this kind of name.
            ///
            /// # Errors
            /// [`InvalidName`] names the value and the rule that it breaks.
            pub fn new(value: impl AsRef<str>) -> Result<Self, InvalidName> {
                Self::try_from(SmolStr::new(value))
            }

            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;
            fn from_str(value: &str) -> Result<Self, InvalidName> {
                Self::new(value)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl TryFrom<SmolStr> for $name {
            type Error = InvalidName;
            fn try_from(value: SmolStr) -> Result<Self, InvalidName> {
                let check: fn(&'static str, &str) -> Result<(), InvalidName> = $check;
                check($what, &value)?;
                Ok(Self(value))
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;
            fn try_from(value: String) -> Result<Self, InvalidName> {
                Self::new(value)
            }
        }

        impl TryFrom<&str> for $name {
            type Error = InvalidName;
            fn try_from(value: &str) -> Result<Self, InvalidName> {
                Self::new(value)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0.into()
            }
        }

        impl From<&$name> for SmolStr {
            fn from(name: &$name) -> Self {
                name.0.clone()
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

name!(
    /// The name of a service: 1 to 100 characters of `A-Z a-z 0-9 . _ : -`.
    ///
    /// ```
    /// use fanfare_protocol::ServiceName;
    ///
    /// assert!(ServiceName::new("price.quote").is_ok());
    /// let error = ServiceName::new("price quote").unwrap_err();
    /// assert_eq!(error.to_string(), r#"service name "price quote" is not allowed: ' ' is not one of A-Z a-z 0-9 . _ : -"#);
    /// ```
    ServiceName, "service name", |what, value| check_name(what, value, limits::NAME_CHARS)
);
name!(
    /// Who issued a fan-out: a service or a program. The same rule as for [`ServiceName`].
    Source, "source", |what, value| check_name(what, value, limits::NAME_CHARS)
);
name!(
    /// A correlation ID, given by the caller or drawn. The same rule as for [`ServiceName`].
    Cid, "CID", |what, value| check_name(what, value, limits::NAME_CHARS)
);
name!(
    /// The start of every queue name, `fanfare` by default: 1 to 32 characters of `A-Z a-z 0-9 . _ : -`.
    Prefix, "prefix", |what, value| check_name(what, value, limits::PREFIX_CHARS)
);
name!(
    /// What a target is known by in its fan-out: 1 to 255 bytes of UTF-8 without control characters.
    TargetKey, "target key", |what, value| {
        let rule = if value.is_empty() {
            "it is empty; give 1 to 255 bytes".to_owned()
        } else if let Some(c) = value.chars().find(|c| c.is_control()) {
            format!("it holds the control character {c:?}")
        } else if value.len() > limits::KEY_BYTES {
            format!("it has {} bytes, and {} is the most", value.len(), limits::KEY_BYTES)
        } else {
            return Ok(());
        };
        Err(InvalidName { what, value: value.to_owned(), rule })
    }
);

impl Default for Prefix {
    fn default() -> Self {
        Self(SmolStr::new_static("fanfare"))
    }
}

impl From<ServiceName> for TargetKey {
    /// A target's key is its service's name unless the caller gives another.
    fn from(service: ServiceName) -> Self {
        Self(service.0)
    }
}

impl From<ServiceName> for Source {
    /// A service that issues a fan-out is its source.
    fn from(service: ServiceName) -> Self {
        Self(service.0)
    }
}

impl From<Uuid> for Cid {
    /// A drawn CID is the UUID as 32 hexadecimal digits.
    fn from(id: Uuid) -> Self {
        Self(id.simple().to_string().into())
    }
}

/// One invocation: tells two fan-outs with the same CID apart. On the wire, 32 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(try_from = "String")]
pub struct RunId(Uuid);

impl From<Uuid> for RunId {
    fn from(id: Uuid) -> Self {
        Self(id)
    }
}

impl RunId {
    /// The id that lies so many after this one: for whoever draws one and needs several.
    #[must_use]
    pub fn after(self, places: u64) -> Self {
        Self(Uuid::from_u128(self.0.as_u128().wrapping_add(places.into())))
    }

    /// Whether this is how the run is written.
    pub(crate) fn is_written(self, text: &str) -> bool {
        self.0.simple().encode_lower(&mut Uuid::encode_buffer()) == text
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.simple().fmt(f)
    }
}

impl Serialize for RunId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl FromStr for RunId {
    type Err = InvalidName;
    fn from_str(value: &str) -> Result<Self, InvalidName> {
        let invalid = || InvalidName {
            what: "run",
            value: value.to_owned(),
            rule: "a run is a UUID, written as 32 hexadecimal digits".to_owned(),
        };
        if value.len() != 32 {
            return Err(invalid());
        }
        Uuid::try_parse(value).map(Self).map_err(|_| invalid())
    }
}

/// Reads what has a run's form and names something else, such as a coordinator: an error is not to call it a run.
pub(crate) fn id<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<RunId, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(|InvalidName { value, .. }: InvalidName| {
        let rule = "give a UUID, written as 32 hexadecimal digits".to_owned();
        serde::de::Error::custom(InvalidName { what: "id", value, rule })
    })
}

impl TryFrom<String> for RunId {
    type Error = InvalidName;
    fn try_from(value: String) -> Result<Self, InvalidName> {
        value.parse()
    }
}

impl From<RunId> for SmolStr {
    fn from(run: RunId) -> Self {
        Self::new(run.0.simple().encode_lower(&mut Uuid::encode_buffer()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_keep_the_rule_and_say_which_one_is_broken() {
        assert!(ServiceName::new("A-z.0_9:x").is_ok());
        assert!(ServiceName::new("x".repeat(100)).is_ok());
        for (value, rule) in
            [("", "empty"), (&*"x".repeat(101), "101 characters"), ("a/b", "'/'"), ("ü", "'ü'")]
        {
            let error = ServiceName::new(value).unwrap_err().to_string();
            assert!(error.contains(rule), "{error}");
        }
    }

    #[test]
    fn keys_take_any_script_but_no_control_characters() {
        assert!(TargetKey::new("données/ファイル 1.txt").is_ok());
        assert!(TargetKey::new("ü".repeat(128)).is_err(), "256 bytes");
        assert!(TargetKey::new("a\nb").unwrap_err().to_string().contains("control character"));
    }

    #[test]
    fn a_run_is_32_hexadecimal_digits() {
        let run = RunId::from(Uuid::from_u128(7));
        assert_eq!(run.to_string(), "00000000000000000000000000000007");
        assert_eq!(run.to_string().parse::<RunId>(), Ok(run));
        assert!("00000000-0000-0000-0000-000000000007".parse::<RunId>().is_err());
    }

    #[test]
    fn a_long_value_is_cut_in_the_error() {
        let error = Cid::new("é".repeat(5000)).unwrap_err().to_string();
        assert!(error.len() < 600 && error.contains("10000 bytes"), "{error}");
    }
}
