// The one SQLite call that Swift can't make: sqlite3_db_config is variadic.
#ifndef TRACE_SQLITE_H
#define TRACE_SQLITE_H

#include <sqlite3.h>

/// sqlite3_db_config for the options that take a flag and report it. Returns an SQLite result code.
static inline int trace_sqlite_set_flag(sqlite3 *db, int option, int on) {
    return sqlite3_db_config(db, option, on, (int *)0);
}

#endif
