import Foundation
import GRDB
import VMCore

/// A row of `meta` on its way to the table: a key and a value as JSON.
struct MetaRow: Sendable {
    let key: String
    let json: String

    /// A caller's row.
    init(key: String, value: some Encodable) throws(TraceError) {
        guard !TraceFormat.Key.all.contains(key) else { throw .invalid("the meta key \"\(key)\" is the format's own") }
        try self.init(format: key, value: value)
    }

    /// A row of another trace.
    init(key: String, json: String) { (self.key, self.json) = (key, json) }

    /// A row of the format's own.
    init(format key: String, value: some Encodable) throws(TraceError) {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
        do {
            json = String(decoding: try encoder.encode(value), as: UTF8.self)
        } catch {
            throw .invalid("the meta value \"\(key)\" can't be written as JSON: \(error)")
        }
        guard key.utf8.count + json.utf8.count <= TraceFormat.Limit.text else {
            throw .invalid("the meta value \"\(key)\" is longer than 4 MiB")
        }
        self.key = key
    }

    func upsert(_ db: Database) throws {
        try db.cachedStatement(sql: "INSERT OR REPLACE INTO meta(key, value) VALUES (?, ?)")
            .execute(arguments: [key, json])
    }

    static func insertReserve(_ db: Database) throws {
        try db.cachedStatement(sql: "INSERT OR REPLACE INTO meta(key, value) VALUES (?, zeroblob(?))")
            .execute(arguments: [TraceFormat.Key.reserve, TraceFormat.reserveBytes])
    }

    static func deleteReserve(_ db: Database) throws {
        try db.execute(sql: "DELETE FROM meta WHERE key = ?", arguments: [TraceFormat.Key.reserve])
    }

    static func insertDictionary(_ bytes: [UInt8], _ db: Database) throws {
        try db.execute(sql: "INSERT INTO meta(key, value) VALUES (?, ?)",
                       arguments: [TraceFormat.Key.dictionary, Data(bytes)])
    }

    /// The dictionary of a packed trace; nil where it has none.
    static func dictionary(_ db: Database) throws -> Data? {
        guard let row = try Row.fetchOne(
            db, sql: "SELECT value FROM meta WHERE key = ?", arguments: [TraceFormat.Key.dictionary])
        else { return nil }
        let place = "meta \"\(TraceFormat.Key.dictionary)\""
        let bytes = try Fields(row, place: place).blob(0)
        guard bytes.count <= TraceFormat.Limit.dictionary else {
            throw TraceError.corrupt(what: "it is longer than 1 MiB", place: place)
        }
        return bytes
    }

    /// All values but the reserve and the dictionary, as JSON.
    static func all(_ db: Database) throws -> [String: String] {
        let rows = try Row.fetchCursor(
            db, sql: """
                SELECT CAST(key AS BLOB), CAST(value AS BLOB) FROM meta
                WHERE key NOT IN (?, ?) AND length(value) + length(key) <= ? LIMIT 10000
                """, arguments: [TraceFormat.Key.reserve, TraceFormat.Key.dictionary, TraceFormat.Limit.text])
        var all: [String: String] = [:]
        var bytes = 0
        while let row = try rows.next() {
            let fields = Fields(row, place: "meta")
            let (key, value) = (try fields.text(0), try fields.text(1))
            bytes += key.utf8.count + value.utf8.count
            guard bytes <= TraceFormat.Limit.row else { throw TraceError.corrupt(what: "too much text", place: "meta") }
            all[key] = value
        }
        return all
    }

    /// The value of `json`, which stands under `key`.
    static func decode<T: Decodable>(_ json: String, _ key: String, as type: T.Type) throws(TraceError) -> T {
        do {
            return try JSONDecoder().decode(type, from: Data(json.utf8))
        } catch {
            throw .corrupt(what: "its value isn't what this vmrr expects", place: "meta \"\(key)\"")
        }
    }
}

/// A remark at an exit.
public struct TraceNote: Hashable, Codable, Sendable {
    public var exit: ExitNumber
    /// Who says it: a short word such as `input`, `chaos`, `mark`.
    public var kind: String
    public var text: String

    public init(exit: ExitNumber, kind: String, text: String) {
        self.exit = exit
        self.kind = kind
        self.text = text
    }
}

/// A row of `note` on its way to the table.
struct NoteRow: Sendable {
    let note: TraceNote

    init(exit: ExitNumber, kind: String, text: String) throws(TraceError) {
        guard kind.utf8.count + text.utf8.count <= TraceFormat.Limit.text else {
            throw .invalid("a note is longer than 4 MiB")
        }
        note = TraceNote(exit: exit, kind: kind, text: text)
    }

    func insert(_ db: Database) throws {
        // As BLOBs made texts, for GRDB would end them at a NUL.
        let sql = "INSERT INTO note(exit, kind, text) VALUES (?, CAST(? AS TEXT), CAST(? AS TEXT))"
        let arguments: StatementArguments = [
            Int64(bitPattern: note.exit.rawValue), Data(note.kind.utf8), Data(note.text.utf8),
        ]
        try db.cachedStatement(sql: sql).execute(arguments: arguments)
    }

    /// Calls `body` for all notes in the order in which they were made.
    static func each(_ db: Database, _ body: (TraceNote) throws -> Void) throws {
        let rows = try Row.fetchCursor(
            db, sql: "SELECT id, exit, CAST(kind AS BLOB), CAST(text AS BLOB) FROM note ORDER BY id")
        while let row = try rows.next() {
            var fields = Fields(row, place: "note")
            fields.place = "note \(try fields.int(0))"
            try body(TraceNote(
                exit: ExitNumber(UInt64(try fields.count(1))), kind: try fields.text(2), text: try fields.text(3)))
        }
    }
}
