//! What this process is called.

use rustix::system::uname;

/// Its host and process, as operators are told.
pub(crate) fn name() -> String {
    format!("{}:{}", uname().nodename().to_string_lossy(), std::process::id())
}

/// The same with its role, as the broker is told: its connections have this name, and its consumers, each with a number after it.
pub(crate) fn at_the_broker(role: &str) -> String {
    format!("fanfare {role} {}", name())
}

/// The name of the process of a role that has a consumer with this tag.
pub(crate) fn of_consumer<'a>(tag: &'a str, role: &str) -> Option<&'a str> {
    let (process, _number) = tag.strip_prefix(&format!("fanfare {role} "))?.rsplit_once(' ')?;
    Some(process)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn process_is_known_by_the_tags_of_its_consumers() {
        let tag = format!("{} 17", at_the_broker("coordinator"));
        assert_eq!(of_consumer(&tag, "coordinator"), Some(&*name()));
        for tag in [&*tag.replace("coordinator", "worker"), "ctag-1.2", "fanfare coordinator", ""] {
            assert_eq!(of_consumer(tag, "coordinator"), None, "{tag}");
        }
    }
}
