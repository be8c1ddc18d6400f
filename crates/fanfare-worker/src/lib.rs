//! Runs services of Fanfare: a registry, a consumer loop and the context that a service sees.
