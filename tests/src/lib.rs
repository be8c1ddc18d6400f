//! End-to-end tests of Fanfare: what the tests share.
