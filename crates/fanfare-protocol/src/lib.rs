//! Wire types, names and limits of Fanfare: what is on the wire, and nothing that does I/O.
