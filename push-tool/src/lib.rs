//! `bk-push`.
