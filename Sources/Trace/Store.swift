import CTraceSQLite
import Foundation
import GRDB
import Glibc

/// The SQLite file below a trace: opening it with suspicion, and turning every failure into a `TraceError`.
struct Store: Sendable {
    let path: String
    let queue: DatabaseQueue
    /// How pages and states are compressed.
    var packing = Packing()

    /// How long to wait for another process's lock, in seconds. A commit of the recorder takes milliseconds; someone
    /// who looks at a live trace with an SQLite tool may take longer, and shouldn't end the recording.
    private static let patience: (reading: TimeInterval, writing: TimeInterval) = (5, 60)

    // MARK: Creating

    /// Creates the file with its tables and `rows`, in one transaction.
    static func create(
        path: String, overwrite: Bool, version: Int32 = TraceFormat.recordedVersion, _ rows: (Store, Database) throws -> Void
    ) throws(TraceError) -> Store {
        try claim(path, overwrite: overwrite)
        do {
            let store = Store(path: path, queue: try DatabaseQueue(path: path, configuration: writing()))
            try store.write { db in
                try db.execute(sql: "PRAGMA application_id = \(TraceFormat.applicationID)")
                try db.execute(sql: "PRAGMA user_version = \(version)")
                for table in TraceFormat.schema { try db.execute(sql: table.sql) }
                try rows(store, db)
            }
            return store
        } catch {
            unlink(path)
            unlink(path + "-journal")
            throw translate(error, path: path, systemError: 0)
        }
    }

    /// Makes the empty file, in a way that two recordings can't both have it.
    private static func claim(_ path: String, overwrite: Bool) throws(TraceError) {
        if overwrite {
            var status = stat()
            if lstat(path, &status) == 0 {
                guard status.st_mode & S_IFMT == S_IFREG else {
                    throw .notATrace(path: path, reason: "it is no regular file, and isn't overwritten")
                }
                guard unlink(path) == 0 else { throw .io(path: path, code: errno, text: "can't be replaced") }
            }
        }
        let descriptor = Glibc.open(path, O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC, 0o644)
        guard descriptor >= 0 else {
            if errno == EEXIST { throw .exists(path: path) }
            if errno == ENOSPC || errno == EDQUOT { throw .full(path: path, reason: "the disk is full") }
            throw .io(path: path, code: errno, text: "can't be created")
        }
        _ = Glibc.close(descriptor)
        // A journal left by an earlier file of this name would be rolled back into this one.
        unlink(path + "-journal")
    }

    private static func writing() -> Configuration {
        var configuration = Configuration()
        configuration.label = "vmrr.trace.write"
        configuration.foreignKeysEnabled = false
        configuration.busyMode = .timeout(patience.writing)
        configuration.allowsUnsafeTransactions = true
        configuration.prepareDatabase { db in
            // The journal's room stays allocated between commits (PERSIST), so that the ending can be written to a
            // full disk. It is gone when the recording is finished.
            try db.execute(sql: """
                PRAGMA page_size = \(TraceFormat.databasePageBytes);
                PRAGMA journal_mode = PERSIST;
                PRAGMA journal_size_limit = \(TraceFormat.journalBytes);
                PRAGMA synchronous = NORMAL;
                PRAGMA secure_delete = OFF;
                PRAGMA temp_store = MEMORY;
                """)
        }
        return configuration
    }

    // MARK: Opening

    /// Opens a trace for reading and checks that it is one: regular file, header, version, schema.
    static func open(path: String) throws(TraceError) -> Store {
        let version = try checkHeader(path)
        var store: Store
        do {
            store = try openChecked(path)
        } catch TraceError.needsRecovery {
            try recover(path)
            store = try openChecked(path)
        }
        store.packing.isPacked = version == TraceFormat.packedVersion
        return store
    }

    private static func openChecked(_ path: String) throws(TraceError) -> Store {
        do {
            let store = Store(path: path, queue: try DatabaseQueue(path: path, configuration: reading()))
            try store.read { db in try checkSchema(db, path: path) }
            return store
        } catch {
            throw translate(error, path: path, systemError: 0)
        }
    }

    /// Reads the database header before SQLite does: what isn't a trace is never handed to it.
    ///
    /// - Returns: the version of the format.
    private static func checkHeader(_ path: String) throws(TraceError) -> Int32 {
        // A pipe must not block us, and what is checked must be what is read.
        let descriptor = Glibc.open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC)
        guard descriptor >= 0 else {
            if errno == ENOENT || errno == ENOTDIR { throw .notFound(path: path) }
            throw .io(path: path, code: errno, text: "can't be opened")
        }
        defer { _ = Glibc.close(descriptor) }
        var status = stat()
        guard fstat(descriptor, &status) == 0 else { throw .io(path: path, code: errno, text: "can't be examined") }
        switch status.st_mode & S_IFMT {
        case S_IFREG: break
        case S_IFDIR: throw .notATrace(path: path, reason: "it is a folder")
        default: throw .notATrace(path: path, reason: "it is no regular file")
        }
        guard status.st_size > 0 else { throw .notATrace(path: path, reason: "the file is empty") }
        var header = [UInt8](repeating: 0, count: 100)
        guard pread(descriptor, &header, 100, 0) == 100, header.starts(with: Array("SQLite format 3\0".utf8)) else {
            throw .notATrace(path: path, reason: "it has no SQLite header")
        }
        func word(_ offset: Int) -> Int32 {
            Int32(bitPattern: header[offset..<(offset + 4)].reduce(0) { $0 << 8 | UInt32($1) })
        }
        guard word(68) == TraceFormat.applicationID else {
            throw .notATrace(path: path, reason: "it is another program's SQLite file")
        }
        guard (1...TraceFormat.version).contains(word(60)) else {
            throw .unsupportedVersion(path: path, found: word(60))
        }
        guard header[18] == 1, header[19] == 1, word(56) == 1 else {
            throw .notATrace(path: path, reason: "its SQLite header asks for features that no trace uses")
        }
        return word(60)
    }

    private static func reading(readonly: Bool = true) -> Configuration {
        var configuration = Configuration()
        configuration.label = "vmrr.trace.read"
        configuration.readonly = readonly
        configuration.foreignKeysEnabled = false
        configuration.busyMode = .timeout(patience.reading)
        configuration.allowsUnsafeTransactions = true
        configuration.prepareDatabase { db in
            let connection = db.sqliteConnection!
            let settings: [(Int32, Int32)] = [
                (SQLITE_DBCONFIG_DEFENSIVE, 1), (SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0),
                (SQLITE_DBCONFIG_ENABLE_TRIGGER, 0), (SQLITE_DBCONFIG_ENABLE_VIEW, 0),
            ]
            for (option, value) in settings { _ = trace_sqlite_set_flag(connection, option, value) }
            let limits: [(Int32, Int32)] = [
                (SQLITE_LIMIT_LENGTH, Int32(TraceFormat.Limit.row)), (SQLITE_LIMIT_SQL_LENGTH, 16 << 10),
                (SQLITE_LIMIT_COLUMN, 64), (SQLITE_LIMIT_EXPR_DEPTH, 20), (SQLITE_LIMIT_ATTACHED, 0),
                (SQLITE_LIMIT_TRIGGER_DEPTH, 1), (SQLITE_LIMIT_VDBE_OP, 10_000),
            ]
            for (limit, value) in limits { _ = sqlite3_limit(connection, limit, value) }
            try db.execute(sql: """
                PRAGMA cell_size_check = ON;
                PRAGMA mmap_size = 0;
                PRAGMA automatic_index = OFF;
                PRAGMA temp_store = MEMORY;
                """)
        }
        return configuration
    }

    /// The tables must be ours to the letter: no view, trigger, index, generated column or virtual table.
    private static func checkSchema(_ db: Database, path: String) throws {
        var expected = Dictionary(uniqueKeysWithValues: TraceFormat.schema.map { ($0.name, $0.sql) })
        let rows = try Row.fetchCursor(db, sql: """
            SELECT CAST(type AS BLOB), CAST(name AS BLOB), CAST(sql AS BLOB) FROM sqlite_master LIMIT 100
            """)
        while let row = try rows.next() {
            let fields = Fields(row, place: "schema")
            guard try fields.text(0) == "table", let sql = expected.removeValue(forKey: try fields.text(1)),
                try fields.text(2) == sql
            else { throw TraceError.notATrace(path: path, reason: "it has other tables than a trace") }
        }
        guard expected.isEmpty else {
            throw TraceError.notATrace(path: path, reason: "it lacks tables, or its recording was killed at once")
        }
    }

    /// Rolls back the hot journal of a recording that was killed inside a commit.
    private static func recover(_ path: String) throws(TraceError) {
        let folder = (path as NSString).deletingLastPathComponent
        guard Glibc.access(path, W_OK) == 0, Glibc.access(folder.isEmpty ? "." : folder, W_OK) == 0 else {
            throw .needsRecovery(path: path)
        }
        // A journal that ends with the magic number names a "super-journal", and rolling back deletes that file: no
        // recording writes one, so whoever did wants a file of ours deleted.
        let magic: [UInt8] = [0xD9, 0xD5, 0x05, 0xF9, 0x20, 0xA1, 0x63, 0xD7]
        if let journal = FileHandle(forReadingAtPath: path + "-journal") {
            defer { try? journal.close() }
            let size = (try? journal.seekToEnd()) ?? 0
            if size >= 16, (try? journal.seek(toOffset: size - 8)) != nil,
                let end = try? journal.read(upToCount: 8), Array(end) == magic
            {
                throw .corrupt(what: "it names a file that no recording uses", place: "\(path)-journal")
            }
        }
        do {
            // Opening looks at the schema, and that rolls back.
            try DatabaseQueue(path: path, configuration: reading(readonly: false)).close()
        } catch {
            throw translate(error, path: path, systemError: 0)
        }
    }

    // MARK: Access

    /// Runs `body` outside a transaction; each of its queries sees one state of the file.
    func read<T>(_ body: (Database) throws -> T) throws(TraceError) -> T {
        try access { db in try body(db) }
    }

    /// Runs `body` so that all its queries see one state of the file.
    func readConsistently<T>(_ body: (Database) throws -> T) throws(TraceError) -> T {
        try access { db in
            try db.execute(sql: "BEGIN")
            defer { try? db.execute(sql: "ROLLBACK") }
            return try body(db)
        }
    }

    /// Runs `body` in one transaction. After an error nothing of it is in the file.
    func write<T>(_ body: (Database) throws -> T) throws(TraceError) -> T {
        try access { db in
            try db.execute(sql: "BEGIN IMMEDIATE")
            do {
                let result = try body(db)
                try db.execute(sql: "COMMIT")
                return result
            } catch {
                // The errno must be read before the rollback overwrites it.
                let translated = translate(error, db)
                if db.isInsideTransaction { try? db.execute(sql: "ROLLBACK") }
                throw translated
            }
        }
    }

    /// Bytes of the file that are in use; the rest of it SQLite will use again.
    func usedBytes() throws(TraceError) -> UInt64 {
        try read { db in
            let pages = try Int.fetchOne(db, sql: "PRAGMA page_count") ?? 0
            let free = try Int.fetchOne(db, sql: "PRAGMA freelist_count") ?? 0
            return UInt64(max(0, pages - free) * TraceFormat.databasePageBytes)
        }
    }

    /// Makes a copy of the file as it is, with `rows`, in a way that it appears under `path` when it is complete. No
    /// file of that name exists.
    func copy(to path: String, _ rows: (Database) throws -> Void) throws(TraceError) {
        let part = path + ".part"
        unlink(part)
        do {
            try read { db in try db.execute(sql: "VACUUM INTO ?", arguments: [part]) }
            let copy = Store(path: part, queue: try DatabaseQueue(path: part, configuration: Self.writing()))
            try copy.write { db in try rows(db) }
            // Without its journal it is one file.
            try copy.read { db in try db.execute(sql: "PRAGMA journal_mode = DELETE") }
            copy.close()
            let descriptor = Glibc.open(part, O_RDONLY | O_CLOEXEC)
            if descriptor >= 0 {
                fsync(descriptor)
                _ = Glibc.close(descriptor)
            }
            guard rename(part, path) == 0 else { throw TraceError.io(path: path, code: errno, text: "can't be created") }
        } catch {
            unlink(part)
            unlink(part + "-journal")
            throw Self.translate(error, path: path, systemError: 0)
        }
    }

    func close() {
        try? queue.close()
    }

    private func access<T>(_ body: (Database) throws -> T) throws(TraceError) -> T {
        do {
            return try queue.inDatabase { db in
                do { return try body(db) } catch { throw translate(error, db) }
            }
        } catch {
            throw Self.translate(error, path: path, systemError: 0)
        }
    }

    /// Runs `body` within what `read` or `write` is doing on `db`.
    func translating<T>(_ db: Database, _ body: () throws -> T) throws(TraceError) -> T {
        do { return try body() } catch { throw translate(error, db) }
    }

    private func translate(_ error: any Error, _ db: Database) -> TraceError {
        guard let connection = db.sqliteConnection else { return Self.translate(error, path: path, systemError: 0) }
        // The file remembers the errno of its last failed write; the connection's may be that of a later call.
        var code: Int32 = 0
        sqlite3_file_control(connection, "main", SQLITE_FCNTL_LAST_ERRNO, &code)
        if code == 0 { code = sqlite3_system_errno(connection) }
        return Self.translate(error, path: path, systemError: code)
    }

    private static func translate(_ error: any Error, path: String, systemError: Int32) -> TraceError {
        if let error = error as? TraceError { return error }
        guard let error = error as? DatabaseError else { return .io(path: path, code: 0, text: "\(error)") }
        if error.extendedResultCode == .SQLITE_READONLY_ROLLBACK { return .needsRecovery(path: path) }
        switch error.resultCode {
        case .SQLITE_FULL:
            return .full(path: path, reason: "the disk is full")
        case .SQLITE_BUSY, .SQLITE_LOCKED:
            return .locked(path: path)
        case .SQLITE_IOERR where systemError == ENOSPC || systemError == EDQUOT:
            return .full(path: path, reason: "the disk is full")
        case .SQLITE_IOERR where systemError == EFBIG:
            return .full(path: path, reason: "the file size limit is reached (ulimit -f)")
        case .SQLITE_IOERR, .SQLITE_CANTOPEN, .SQLITE_READONLY, .SQLITE_PERM, .SQLITE_NOMEM, .SQLITE_AUTH:
            if error.extendedResultCode == .SQLITE_IOERR_SHORT_READ {
                return .corrupt(what: "the file is cut short", place: path)
            }
            return .io(path: path, code: systemError, text: error.message ?? "input/output error")
        case .SQLITE_NOTADB:
            return .notATrace(path: path, reason: "it is no SQLite file")
        default:
            return .corrupt(what: error.message ?? "SQLite error \(error.extendedResultCode.rawValue)", place: path)
        }
    }
}

/// A row of an untrusted table: each field is of the expected type or the trace is damaged. Texts are selected as
/// BLOBs, for SQLite would convert them and GRDB would stop at a NUL.
struct Fields {
    let row: Row
    var place: String

    init(_ row: Row, place: String) {
        self.row = row
        self.place = place
    }

    private func wrong(_ column: Int, _ type: String) -> TraceError {
        .corrupt(what: "column \(column + 1) is no \(type)", place: place)
    }

    private func value(_ column: Int) -> DatabaseValue { row[column] }

    func int(_ column: Int) throws(TraceError) -> Int64 {
        guard case .int64(let value) = value(column).storage else { throw wrong(column, "integer") }
        return value
    }

    /// An integer from 0 to `limit`.
    func count(_ column: Int, atMost limit: Int = Int.max) throws(TraceError) -> Int {
        let value = try int(column)
        guard value >= 0, value <= Int64(limit) else {
            throw .corrupt(what: "column \(column + 1) is \(value), outside 0 to \(limit)", place: place)
        }
        return Int(value)
    }

    func blob(_ column: Int) throws(TraceError) -> Data {
        guard case .blob(let data) = value(column).storage else { throw wrong(column, "blob") }
        return data
    }

    func text(_ column: Int) throws(TraceError) -> String {
        guard let text = String(validatingUTF8: try blob(column)) else { throw wrong(column, "text") }
        return text
    }

    func isNull(_ column: Int) -> Bool { value(column).isNull }
}

extension String {
    /// nil where the bytes aren't UTF-8.
    init?(validatingUTF8 data: Data) { self.init(data: data, encoding: .utf8) }
}
