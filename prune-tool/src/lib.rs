//! `bk-prune`.
