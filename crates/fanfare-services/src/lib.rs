//! Stock services of Fanfare, and services that are configured instead of written.
