//! `bk-dump`.
