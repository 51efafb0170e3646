import Foundation
import GRDB
import Testing
import VMCore

@testable import Trace

/// A trace with something in every table, small enough to read thousands of times.
private func sample(at path: String) throws -> Data {
    var random = Seeded(100)
    let writer = try TraceWriter(path: path, metadata: ["machine": ["memory": 64]], options: .init(overwrite: true))
    var parent: CheckpointID?
    for round in 0..<3 {
        for _ in 0..<200 { try Event.random(&random, identities: 40).append(to: writer) }
        try writer.flush()
        let page = random.bytes(4096)
        let half = [UInt8](repeating: UInt8(round + 1), count: 4096)
        parent = try writer.writeCheckpoint(
            NewCheckpoint(exit: writer.exits, parent: parent, cpu: Data(random.bytes(30)), devices: Data(count: 100))
        ) { emit in
            for (number, bytes) in [(UInt64(round), page), (5, half), (6, half), (UInt64(100 + round), half)] {
                try bytes.withUnsafeBytes { try emit(number, $0.baseAddress!) }
            }
        }
        try writer.addNote(exit: writer.exits, kind: "mark", text: "round \(round)")
    }
    try writer.finish(meta: ["ending": "done"])
    return FileManager.default.contents(atPath: path)!
}

/// The most memory this process has used, in bytes.
private func peakMemory() -> Int {
    var usage = rusage()
    getrusage(__rusage_who_t(RUSAGE_SELF.rawValue), &usage)
    return usage.ru_maxrss * 1024
}

@Suite(.serialized) struct HostileTests {
    let folder = Folder()

    // MARK: Other files

    @Test func whatIsNoTraceIsSaidToBeNone() throws {
        func reason(_ path: String) throws -> String {
            guard case .notATrace(_, let reason)? = try readEverything(path) else { return "?" }
            return reason
        }
        let path = folder("x.vmrr")
        #expect(try readEverything(path) == .notFound(path: path))
        #expect(try reason(folder.path) == "it is a folder")
        try put(Data(), at: path)
        #expect(try reason(path) == "the file is empty")
        try put(Data("hello".utf8), at: path)
        #expect(try reason(path) == "it has no SQLite header")
        try put(Data(repeating: 7, count: 9000), at: path)
        #expect(try reason(path) == "it has no SQLite header")
        #expect(try reason("/dev/zero") == "it is no regular file")
        mkfifo(folder("pipe"), 0o600)
        #expect(try reason(folder("pipe")) == "it is no regular file")
        let other = folder("other.db")
        try DatabaseQueue(path: other).write { try $0.execute(sql: "CREATE TABLE t(a)") }
        #expect(try reason(other) == "it is another program's SQLite file")
    }

    @Test func anotherVersionIsNamed() throws {
        let path = folder("a.vmrr")
        _ = try sample(at: path)
        try edit(path) { try $0.execute(sql: "PRAGMA user_version = 99") }
        #expect(try readEverything(path) == .unsupportedVersion(path: path, found: 99))
        #expect(try readEverything(path)?.exitStatus == 65)
    }

    @Test(arguments: [
        "CREATE VIEW v AS SELECT 1", "CREATE TRIGGER t AFTER INSERT ON note BEGIN DELETE FROM note; END",
        "CREATE INDEX i ON chunk(raw)", "CREATE TABLE t(a)", "DROP TABLE note", "ALTER TABLE note ADD COLUMN x",
        "CREATE VIRTUAL TABLE f USING fts5(x)",
        "DROP TABLE note; CREATE VIEW note AS SELECT 1 AS id, 2 AS exit, 'a' AS kind, 'b' AS text",
        "PRAGMA journal_mode = WAL",
    ]) func otherSchemasAreRefused(sql: String) throws {
        let path = folder("a.vmrr")
        _ = try sample(at: path)
        try edit(path) { try $0.execute(sql: sql) }
        guard case .notATrace? = try readEverything(path) else {
            Issue.record("accepted: \(sql)")
            return
        }
    }

    @Test func aFolderOneMayNotWriteToIsNoObstacle() throws {
        let path = folder("a.vmrr")
        _ = try sample(at: path)
        chmod(path, 0o444)
        chmod(folder.path, 0o555)
        defer { chmod(folder.path, 0o755) }
        // Of this thread alone: root may write anywhere.
        let setfsuid = unsafeBitCast(dlsym(nil, "setfsuid"), to: (@convention(c) (UInt32) -> Int32).self)
        let before = setfsuid(65534)
        defer { _ = setfsuid(UInt32(before)) }
        #expect(try readEverything(path) == nil)
    }

    @Test func aHotJournalThatNamesAnotherFileIsRefused() throws {
        let path = folder("a.vmrr")
        _ = try sample(at: path)
        var journal = Data([0xD9, 0xD5, 0x05, 0xF9, 0x20, 0xA1, 0x63, 0xD7])
        journal.append(Data(repeating: 0, count: 2000))
        journal.append(Data([0xD9, 0xD5, 0x05, 0xF9, 0x20, 0xA1, 0x63, 0xD7]))
        try put(journal, at: path + "-journal")
        #expect(try readEverything(path) != nil)
        #expect(FileManager.default.fileExists(atPath: path + "-journal"))
    }

    // MARK: Mutations

    private func edit(_ path: String, _ body: (Database) throws -> Void) throws {
        var configuration = Configuration()
        configuration.allowsUnsafeTransactions = true
        let queue = try DatabaseQueue(path: path, configuration: configuration)
        try queue.inDatabase(body)
        try queue.close()
    }

    /// Counts outcomes, and checks that no reading took more memory or time than its due.
    private func survive(_ count: Int, _ name: String, mutate: (Int) throws -> String) throws {
        let before = peakMemory()
        var refused = 0
        for round in 0..<count {
            let path = try mutate(round)
            let start = Date()
            if try readEverything(path) != nil { refused += 1 }
            let took = Date().timeIntervalSince(start)
            if took > 20 { Issue.record("\(name) \(round) took \(took) s") }
        }
        let growth = peakMemory() - before
        print("\(name): \(count) mutations, \(refused) refused, \(growth >> 20) MiB more at the peak")
        #expect(growth < 512 << 20)
    }

    @Test func damagedFilesNeverCrash() throws {
        let original = try sample(at: folder("a.vmrr"))
        var random = Seeded(101)
        try survive(2500, "file") { _ in
            var bytes = original
            switch random.below(5) {
            case 0: bytes[random.below(bytes.count)] ^= 1 << random.below(8)
            case 1: for _ in 0..<20 { bytes[random.below(bytes.count)] = UInt8(random.below(256)) }
            case 2: bytes = bytes.prefix(random.below(bytes.count))
            case 3:
                let length = 1 + random.below(2000)
                let (from, to) = (random.below(bytes.count - length), random.below(bytes.count - length))
                bytes.replaceSubrange(to..<(to + length), with: original[from..<(from + length)])
            default:
                // The header's and the b-tree pages' own fields.
                let page = random.below(bytes.count / 1024) * 1024
                for _ in 0..<3 { bytes[page + random.below(16)] = [0, 1, 255, 127, 128, 13, 5][random.below(7)] }
            }
            let path = folder("m.vmrr")
            try put(bytes, at: path)
            return path
        }
    }

    @Test func hostileColumnsNeverCrash() throws {
        let original = try sample(at: folder("a.vmrr"))
        var random = Seeded(102)
        let columns = [
            "chunk": ["id", "first_exit", "exits", "events", "raw", "digest", "data"],
            "checkpoint": [
                "id", "exit", "event", "parent", "wall_ns", "guest_ns", "pause_ns", "pages_dirtied", "bytes_stored",
                "state_digest", "position", "digest", "cpu", "devices", "pages",
            ],
            "extent": ["id", "pages", "digest", "data"], "note": ["id", "exit", "kind", "text"],
            "meta": ["key", "value"],
        ]
        let values = [
            "NULL", "-1", "0", "1", "2", "65536", "65537", "9223372036854775807", "-9223372036854775808", "1.5e300",
            "'text'", "x''", "x'00'", "x'FFFFFFFFFFFFFFFFFF7F'", "zeroblob(1000000)", "zeroblob(70000000)",
            "CAST(x'FF00FF' AS TEXT)", "'{\"events\":1e400}'", "'\(String(repeating: "[", count: 5000))'",
            "x'28B52FFD'",
        ]
        try survive(800, "columns") { _ in
            let path = folder("m.vmrr")
            try put(original, at: path)
            let table = columns.keys.sorted()[random.below(5)]
            let column = columns[table]![random.below(columns[table]!.count)]
            try edit(path) { db in
                let value = values[random.below(values.count)]
                let row = "rowid = (SELECT rowid FROM \(table) LIMIT 1 OFFSET \(random.below(3)))"
                let condition = table == "meta" ? "key = '\(["totals", "start", "machine"][random.below(3)])'" : row
                try? db.execute(sql: "UPDATE OR REPLACE \(table) SET \(column) = \(value) WHERE \(condition)")
            }
            return path
        }
    }

    /// Changes bytes, inserts large numbers, cuts and doubles parts.
    private func mutate(_ bytes: inout [UInt8], _ random: inout Seeded) {
        for _ in 0..<(1 + random.below(3)) where !bytes.isEmpty {
            // Heads and dictionaries stand at the front, and are where it hurts.
            let near = random.below(3) > 0 ? min(bytes.count, 64) : bytes.count
            let at = random.below(near)
            switch random.below(6) {
            case 0: bytes[at] ^= 1 << random.below(8)
            case 1: bytes[at] = [0, 1, 0x7F, 0x80, 0xFF, 0x82, 0x81][random.below(7)]
            case 2: bytes.insert(contentsOf: [0xFF, 0xFF, 0xFF, 0xFF, 0x0F], at: at)
            case 3: bytes.insert(contentsOf: [UInt8](repeating: 0xFF, count: 9) + [1], at: at)
            case 4: bytes.removeSubrange(at..<min(bytes.count, at + 1 + random.below(8)))
            default: bytes.insert(contentsOf: bytes[at..<min(bytes.count, at + 40)], at: at)
            }
        }
    }

    @Test func hostileChunksWithGoodDigestsNeverCrash() throws {
        let original = try sample(at: folder("a.vmrr"))
        let zstd = try ZstdCompressor(level: 1)
        var random = Seeded(103)
        try survive(1200, "chunks") { _ in
            let path = folder("m.vmrr")
            try put(original, at: path)
            try edit(path) { db in
                let row = try Row.fetchOne(db, sql: "SELECT id, raw, data FROM chunk LIMIT 1")!
                var raw = try ZstdDecompressor().decompress([UInt8](row[2] as Data), size: row[1])
                mutate(&raw, &random)
                var data = try zstd.compress(raw)
                if random.below(8) == 0 { mutate(&data, &random) }
                try db.execute(
                    sql: "UPDATE chunk SET raw = ?, data = ?, digest = ? WHERE id = ?",
                    arguments: [
                        raw.count, Data(data), Int64(bitPattern: data.withUnsafeBytes { digest64($0) }),
                        row[0] as Int64,
                    ])
            }
            return path
        }
    }

    @Test func hostilePageMapsAndExtentsWithGoodDigestsNeverCrash() throws {
        let original = try sample(at: folder("a.vmrr"))
        let zstd = try ZstdCompressor(level: 1)
        var random = Seeded(104)
        try survive(800, "maps") { round in
            let path = folder("m.vmrr")
            try put(original, at: path)
            try edit(path) { db in
                if round % 4 == 0 {
                    var content = try readExtent(1, db)
                    mutate(&content, &random)
                    try db.execute(
                        sql: "UPDATE extent SET pages = ?, data = ?, digest = ? WHERE id = 1",
                        arguments: [1 + random.below(17), Data(content), Data(ContentDigest(content).canonical)])
                    return
                }
                let id = CheckpointID(Int64(1 + random.below(3)))
                let blobs = try CheckpointRow.blobs(id, db)
                var map = try Box.open(blobs.pages)
                mutate(&map, &random)
                var pages = try Box.close(map, zstd)
                if random.below(4) == 0 { mutate(&pages, &random) }
                let digest = blobs.cpu.withUnsafeBytes { cpu in
                    blobs.devices.withUnsafeBytes { devices in pages.withUnsafeBytes { digest64(cpu, devices, $0) } }
                }
                try db.execute(
                    sql: "UPDATE checkpoint SET pages = ?, digest = ? WHERE id = ?",
                    arguments: [Data(pages), Int64(bitPattern: digest), id.rawValue])
            }
            return path
        }
    }

    @Test func lostAndDoubledChunksAreNoticed() throws {
        var random = Seeded(105)
        let path = folder("a.vmrr")
        try record((0..<30_000).map { _ in Event.random(&random, identities: 5) }, at: path, flushEvery: 9000)
        let original = FileManager.default.contents(atPath: path)!
        let ids = try TraceReader(path: path).chunks.map(\.firstEvent)
        #expect(ids.count == 4)
        for id in ids {
            try put(original, at: path)
            try edit(path) { try $0.execute(sql: "DELETE FROM chunk WHERE id = \(id)") }
            guard case .corrupt? = try readEverything(path) else {
                Issue.record("the loss of chunk \(id) went unnoticed")
                return
            }
        }
    }
}
