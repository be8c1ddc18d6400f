use fanfare_protocol::ServiceName;

/// One name or a list of names, as callbacks are given.
///
/// ```
/// use fanfare_publisher::IntoNames;
///
/// assert_eq!("audit.log".into_names(), ["audit.log"]);
/// assert_eq!(["audit.log", "order.enriched"].into_names(), ["audit.log", "order.enriched"]);
/// ```
pub trait IntoNames {
    /// The names, in the given order and not yet checked.
    fn into_names(self) -> Vec<String>;
}

impl IntoNames for &str {
    fn into_names(self) -> Vec<String> {
        vec![self.to_owned()]
    }
}

impl IntoNames for String {
    fn into_names(self) -> Vec<String> {
        vec![self]
    }
}

impl IntoNames for &String {
    fn into_names(self) -> Vec<String> {
        vec![self.clone()]
    }
}

impl IntoNames for ServiceName {
    fn into_names(self) -> Vec<String> {
        vec![self.into()]
    }
}

impl IntoNames for &ServiceName {
    fn into_names(self) -> Vec<String> {
        vec![self.to_string()]
    }
}

impl<T: AsRef<str>, const N: usize> IntoNames for [T; N] {
    fn into_names(self) -> Vec<String> {
        self.as_slice().into_names()
    }
}

impl<T: AsRef<str>, const N: usize> IntoNames for &[T; N] {
    fn into_names(self) -> Vec<String> {
        self.as_slice().into_names()
    }
}

impl<T: AsRef<str>> IntoNames for Vec<T> {
    fn into_names(self) -> Vec<String> {
        self.as_slice().into_names()
    }
}

impl<T: AsRef<str>> IntoNames for &Vec<T> {
    fn into_names(self) -> Vec<String> {
        self.as_slice().into_names()
    }
}

impl<T: AsRef<str>> IntoNames for &[T] {
    fn into_names(self) -> Vec<String> {
        self.iter().map(|name| name.as_ref().to_owned()).collect()
    }
}

impl<T: IntoNames> IntoNames for Option<T> {
    fn into_names(self) -> Vec<String> {
        self.map(T::into_names).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_and_a_list_of_one_are_the_same() {
        let service = ServiceName::new("a").unwrap();
        for names in [
            "a".into_names(),
            "a".to_owned().into_names(),
            service.clone().into_names(),
            ["a"].into_names(),
            vec![service].into_names(),
            Some("a").into_names(),
        ] {
            assert_eq!(names, ["a"]);
        }
        assert!(None::<&str>.into_names().is_empty());
    }
}
