//! PostgreSQL, with a private server of the tests' own.
