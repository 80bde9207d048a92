//! `bk-verify`.
