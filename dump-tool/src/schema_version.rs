//! Which version of an application's schema a database has: what the table says in which a migration
//! program notes what it has applied.
//!
//! The queries are data, in SQL that SQLite and PostgreSQL both take. Columns are qualified because
//! SQLite takes a bare quoted name that no column has for a text.

/// A migration program and how to ask its table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preset {
    /// The program, as its users call it.
    pub name: &'static str,
    /// Its table, without a schema.
    pub table: &'static str,
    /// Gives at most one row of one column: a text, or null where nothing was applied yet. A table of
    /// that name may be another program's: then the query fails, which says no more than that.
    pub query: &'static str,
}

/// The programs that are known, most telling first: the first one that gives a text is believed.
pub const PRESETS: &[Preset] = &[
    Preset {
        name: "Prisma",
        table: "_prisma_migrations",
        query: r#"SELECT m."migration_name" FROM "_prisma_migrations" AS m
            WHERE m."finished_at" IS NOT NULL AND m."rolled_back_at" IS NULL
            ORDER BY m."finished_at" DESC, m."migration_name" DESC LIMIT 1"#,
    },
    Preset {
        name: "Knex",
        table: "knex_migrations",
        query: r#"SELECT m."name" FROM "knex_migrations" AS m ORDER BY m."id" DESC LIMIT 1"#,
    },
    // Branches that were not merged yet have a head each.
    Preset {
        name: "Alembic",
        table: "alembic_version",
        query: r#"SELECT string_agg(m."version_num", ',' ORDER BY m."version_num")
            FROM "alembic_version" AS m"#,
    },
    // Every Django application numbers its migrations for itself: the one that was applied last
    // names the state, since all of them are applied in one order.
    Preset {
        name: "Django",
        table: "django_migrations",
        query: r#"SELECT m."app" || '.' || m."name" FROM "django_migrations" AS m
            ORDER BY m."id" DESC LIMIT 1"#,
    },
    // Repeatable migrations have no version.
    Preset {
        name: "Flyway",
        table: "flyway_schema_history",
        query: r#"SELECT m."version" FROM "flyway_schema_history" AS m
            WHERE m."success" AND m."version" IS NOT NULL
            ORDER BY m."installed_rank" DESC LIMIT 1"#,
    },
    // dbmate, Ecto and golang-migrate use the same table; some of them with numbers.
    Preset {
        name: "Rails",
        table: "schema_migrations",
        query: r#"SELECT CAST(max(m."version") AS text) FROM "schema_migrations" AS m"#,
    },
    // Its own rule for what is to be applied goes by this time; "id" is null on SQLite.
    Preset {
        name: "Drizzle",
        table: "__drizzle_migrations",
        query: r#"SELECT CAST(max(m."created_at") AS text) FROM "__drizzle_migrations" AS m"#,
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use rusqlite::Connection;

    fn preset(name: &str) -> Preset {
        *PRESETS.iter().find(|preset| preset.name == name).unwrap()
    }

    fn ask(preset: Preset, setup: &str) -> rusqlite::Result<Option<String>> {
        let database = Connection::open_in_memory().unwrap();
        database.execute_batch(setup).unwrap();
        let mut statement = database.prepare(preset.query)?;
        let mut rows = statement.query([])?;
        rows.next()?.map_or(Ok(None), |row| row.get(0))
    }

    #[test]
    fn each_program_is_asked_in_its_own_way() {
        for (name, columns, rows, version) in [
            (
                "Prisma",
                "migration_name, finished_at, rolled_back_at",
                "('20260101_init', 1, NULL), ('20260201_more', 2, NULL), \
                 ('20260301_failed', NULL, NULL), ('20260401_undone', 4, 5)",
                "20260201_more",
            ),
            ("Knex", "id, name", "(2, '2026_b.js'), (10, '2026_a.js'), (9, 'c')", "2026_a.js"),
            ("Alembic", "version_num", "('b2'), ('a1')", "a1,b2"),
            ("Django", "id, app, name", "(1, 'auth', '0012'), (2, 'blog', '0003')", "blog.0003"),
            (
                "Flyway",
                "installed_rank, version, success",
                "(1, '1', 1), (2, '2.1', 1), (3, '3', 0), (4, NULL, 1)",
                "2.1",
            ),
            ("Rails", "version", "('20250101000000'), ('20260101000000')", "20260101000000"),
            ("Rails", "version, dirty", "(7, 0)", "7"),
            ("Drizzle", "id, hash, created_at", "(NULL, 'x', 5), (NULL, 'y', 17)", "17"),
        ] {
            let preset = preset(name);
            let table = format!("CREATE TABLE {} ({columns});", preset.table);
            let filled = format!("{table} INSERT INTO {} VALUES {rows};", preset.table);
            assert_eq!(ask(preset, &filled).unwrap().as_deref(), Some(version), "{name}");
            assert_eq!(ask(preset, &table).unwrap(), None, "{name}: nothing was applied yet");
        }
    }

    #[test]
    fn a_table_of_another_program_is_no_version() {
        for preset in PRESETS {
            let other =
                format!("CREATE TABLE {0} (other); INSERT INTO {0} VALUES ('x');", preset.table);
            assert!(ask(*preset, &other).is_err(), "{}", preset.name);
        }
    }
}
