use std::fmt;
use std::ops::Index;

use smol_str::SmolStr;

use crate::HeaderValue;

/// Headers by name, in the order of their names. A message has a handful, so they are a list: a map takes three times the memory.
#[derive(Clone, Default, PartialEq)]
pub struct Headers(Vec<(SmolStr, HeaderValue)>);

impl Headers {
    /// No headers, and room for so many.
    pub(crate) fn with_capacity(headers: usize) -> Self {
        Self(Vec::with_capacity(headers))
    }

    fn place(&self, name: &str) -> Result<usize, usize> {
        self.0.binary_search_by(|(other, _)| other.as_str().cmp(name))
    }

    /// The header of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&HeaderValue> {
        self.place(name).ok().map(|place| &self.0[place].1)
    }

    /// Whether there is a header of this name.
    #[must_use]
    pub fn contains_key(&self, name: &str) -> bool {
        self.place(name).is_ok()
    }

    /// Adds a header, and returns the one that it replaces.
    pub fn insert(&mut self, name: impl Into<SmolStr>, value: impl Into<HeaderValue>) -> Option<HeaderValue> {
        let (name, value) = (name.into(), value.into());
        match self.place(&name) {
            Ok(place) => Some(std::mem::replace(&mut self.0[place].1, value)),
            Err(place) => {
                self.0.insert(place, (name, value));
                None
            }
        }
    }

    /// Takes a header away.
    pub fn remove(&mut self, name: &str) -> Option<HeaderValue> {
        self.place(name).ok().map(|place| self.0.remove(place).1)
    }

    /// Takes away all headers that a question is not answered with yes for.
    pub fn retain(&mut self, mut keeps: impl FnMut(&str, &HeaderValue) -> bool) {
        self.0.retain(|(name, value)| keeps(name, value));
    }

    /// Names and values, in the order of the names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &HeaderValue)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value))
    }

    /// How many there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Index<&str> for Headers {
    type Output = HeaderValue;

    /// # Panics
    /// Where there is no header of this name.
    fn index(&self, name: &str) -> &HeaderValue {
        self.get(name).expect("no header of this name")
    }
}

impl<N: Into<SmolStr>> FromIterator<(N, HeaderValue)> for Headers {
    /// Of several with one name, the last counts.
    fn from_iter<I: IntoIterator<Item = (N, HeaderValue)>>(headers: I) -> Self {
        let mut headers: Vec<(SmolStr, HeaderValue)> =
            headers.into_iter().map(|(name, value)| (name.into(), value)).collect();
        headers.reverse();
        headers.sort_by(|(one, _), (other, _)| one.cmp(other));
        headers.dedup_by(|(one, _), (other, _)| one == other);
        Self(headers)
    }
}

impl<N: Into<SmolStr>, const COUNT: usize> From<[(N, HeaderValue); COUNT]> for Headers {
    fn from(headers: [(N, HeaderValue); COUNT]) -> Self {
        headers.into_iter().collect()
    }
}

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(all: &[(&str, i64)]) -> Headers {
        all.iter().map(|(name, value)| (*name, HeaderValue::Int(*value))).collect()
    }

    #[test]
    fn headers_are_found_by_name_and_come_in_the_order_of_their_names() {
        let mut found = headers(&[("b", 1), ("a", 2), ("c", 3), ("b", 4)]);
        assert_eq!(found, headers(&[("a", 2), ("b", 4), ("c", 3)]), "the last of a name counts");
        assert_eq!(found.insert("d", 5), None);
        assert_eq!(found.insert("a", 6), Some(HeaderValue::Int(2)));
        assert_eq!(found.remove("c"), Some(HeaderValue::Int(3)));
        assert_eq!((found.remove("c"), found.get("c"), found.contains_key("d")), (None, None, true));
        found.retain(|name, _| name != "b");
        assert_eq!(found, headers(&[("a", 6), ("d", 5)]));
        assert_eq!(format!("{found:?}"), r#"{"a": Int(6), "d": Int(5)}"#);
    }
}
