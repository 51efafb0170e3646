import Foundation
import GRDB
import Testing
import Trace
import VMCore

extension EndToEnd {
    /// Point 6: whatever is in a file, `info`, `events` and `replay` answer with a status and come to an end.
    ///
    /// Mutant `n` of seed `s` is always the same file, except that the recordings it is made from differ from run to
    /// run; a bad one is kept.
    @Suite(.needsKVM) struct MutatedTraces {
        /// The most memory a run may take.
        static let memoryLimit = 512 << 20
        /// A replay that hasn't ended by then hangs (status 1). A landing that can't succeed gives up after 20 s.
        static let patience = "60s"
        static let shards = max(1, min(ProcessInfo.processInfo.activeProcessorCount, Sizes.mutants))

        @Test(arguments: 0..<shards) func neverHarm(_ shard: Int) throws {
            let bases = try Base.all.get()
            var tally: [String: Int] = [:]
            for number in stride(from: shard, to: Sizes.mutants, by: Self.shards) {
                var random = Seeded(Sizes.seed &* 0x1_0000_0001 &+ UInt64(number))
                let base = bases[random.below(bases.count)]
                let path = Folder.current("mutant-\(number).vmrr")
                let mutation = Mutation.allCases[number % Mutation.allCases.count]
                try mutation.apply(to: base, among: bases, at: path, &random)
                let isGood = try judge(path, base, mutation, "seed \(Sizes.seed), mutant \(number)", &tally)
                if isGood {
                    try? FileManager.default.removeItem(atPath: path)
                    try? FileManager.default.removeItem(atPath: path + "-journal")
                }
                if number % 1000 == shard { print("mutant \(number) of \(Sizes.mutants)") }
            }
            let counts = tally.sorted { $0.key < $1.key }.map { "\($0.key): \($0.value)" }.joined(separator: ", ")
            print("mutated traces, seed \(Sizes.seed), part \(shard + 1) of \(Self.shards): \(counts)")
        }

        /// Times in a trace are hints. One of centuries is no reason to look for an anchor as long.
        @Test(arguments: [1 << 62, UInt64.max]) func hugeTimesDontHang(_ time: UInt64) throws {
            let base = try #require(try Base.all.get().first { $0.name == "lost-update" })
            var loose = try LooseTrace(base.path)
            let index = try #require(loose.events.firstIndex { $0.anchor != nil })
            loose.events[index].anchor?.registers ^= 1
            loose.events[index].anchor?.elapsed = Nanoseconds(time)
            loose.ending?.wall = Nanoseconds(time)
            let path = Folder.current("huge.vmrr")
            try loose.write(to: path)
            let output = try Child.run(
                [Vmrr.binary, "replay", path, "--json"], in: Folder.current.path, deadline: 60)
            Folder.current.note(output)
            #expect(output.insanity == nil && [3, 65].contains(output.status), "\(output)")
        }

        private func judge(
            _ path: String, _ base: Base, _ mutation: Mutation, _ name: String, _ tally: inout [String: Int]
        ) throws -> Bool {
            let what = "\(name): \(mutation) of \(base.name)"
            var isGood = true
            func complain(_ problem: String, _ output: Output) {
                isGood = false
                Issue.record("\(what): \(problem): \(output)")
            }
            for command in [["info", path, "--json"], ["events", path], ["replay", path, "--deadline", Self.patience, "--json"]] {
                let output = try Child.run([Vmrr.binary] + command, in: Folder.current.path, deadline: 90)
                tally["\(command[0]) \(output.status)", default: 0] += 1
                if let insanity = output.insanity { complain(insanity, output) }
                if output.peakMemory > Self.memoryLimit { complain("it took \(output.peakMemory >> 20) MiB", output) }
                switch (command[0], output.status) {
                case ("replay", 0), ("replay", 10), ("replay", 3):
                    if let problem = base.contradiction(in: output, mutation) { complain(problem, output) }
                case ("info", 0), ("events", 0): break
                // A CPU model or a state that this host can't run is the host's lack, as far as anyone can tell.
                case (_, 65), ("replay", 69):
                    if output.errors.split(separator: "\n").count != 1 { complain("not one line of explanation", output) }
                default: complain("status \(output.status)", output)
                }
            }
            return isGood
        }
    }
}

/// A good trace to be mutated.
struct Base {
    var name: String
    var path: String
    var bytes: Data
    var report: JSON

    private static let folder = Folder(name: "mutants-bases")

    /// Small traces with every kind of event between them.
    static let all = Result {
        atexit { try? FileManager.default.removeItem(atPath: Base.folder.path) }
        return try [("hello", ""), ("ticker", "ticks=20"), ("lost-update", "ticks=30"), ("clocks", "rounds=50")].map { name, append in
            let path = folder("\(name).vmrr")
            let output = try Child.run(
                [Vmrr.binary, "record", "--guest", name, "--append", append, "-o", path, "--json", "--deadline", "20s"],
                in: folder.path, deadline: 30)
            guard let bytes = FileManager.default.contents(atPath: path), [0, 10].contains(output.status) else {
                throw Child.Failure(description: "\(output)")
            }
            return Base(name: name, path: path, bytes: bytes, report: output.json)
        }
    }

    /// What is wrong in the report of a replay that found no damage.
    func contradiction(in output: Output, _ mutation: Mutation) -> String? {
        let replayed = output.json
        if output.status == 3 {
            return replayed["diverged"]["exit"].int == nil ? "a divergence without its exit" : nil
        }
        if !replayed["diverged"].isNull { return "a divergence with status \(output.status)" }
        // Everything that enters the guest is covered by digests, so blind damage can't lead to another end.
        guard mutation.isBlind, replayed["exits"] == report["exits"] else { return nil }
        for key in ["state_digest", "memory_digest"] where replayed[key] != report[key] {
            return "the damage went unnoticed: another \(key)"
        }
        return nil
    }
}

/// A way to spoil a trace.
enum Mutation: CaseIterable {
    // Blind: bytes of the file.
    case flips, truncation, overwriting, splice
    // Through SQL: rows that are what they claim to be, or don't.
    case hostileCounts, swappedBlobs, meta, schema
    // Through the writer: a good trace of what can't have happened. All digests fit.
    case events, processor, memory

    var isBlind: Bool {
        switch self {
        case .flips, .truncation, .overwriting, .splice: true
        default: false
        }
    }

    func apply(to base: Base, among bases: [Base], at path: String, _ random: inout Seeded) throws {
        switch self {
        case .flips, .truncation, .overwriting, .splice:
            try damaged(base.bytes, bases, &random).write(to: URL(fileURLWithPath: path))
        case .hostileCounts, .swappedBlobs, .meta, .schema:
            try base.bytes.write(to: URL(fileURLWithPath: path))
            let queue = try DatabaseQueue(path: path)
            // What SQLite itself refuses stays as it was.
            try? queue.writeWithoutTransaction { db in try change(db, bases, &random) }
            try queue.close()
        case .events, .processor, .memory:
            var loose = try LooseTrace(base.path)
            change(&loose, &random)
            try loose.write(to: path)
        }
    }

    // MARK: Bytes

    private func damaged(_ original: Data, _ bases: [Base], _ random: inout Seeded) -> Data {
        var data = [UInt8](original)
        switch self {
        case .truncation: data.removeLast(random.below(data.count))
        case .overwriting:
            let start = random.below(data.count)
            let junk = random.below(2) == 0 ? [UInt8](repeating: 0, count: 600) : random.bytes(600)
            for (index, byte) in junk.prefix(1 + random.below(600)).enumerated() where start + index < data.count {
                data[start + index] = byte
            }
        case .splice:
            let other = [UInt8](random.pick(bases).bytes)
            // Whole database pages, or any run of bytes.
            let unit = random.below(2) == 0 ? 1024 : 1
            let count = (1 + random.below(4096 / unit)) * unit
            let (from, to) = (random.below(other.count / unit) * unit, random.below(data.count / unit) * unit)
            for index in 0..<count where from + index < other.count && to + index < data.count {
                data[to + index] = other[from + index]
            }
        default:
            for _ in 0...random.below(8) { data[random.below(data.count)] ^= 1 << UInt8(random.below(8)) }
        }
        return Data(data)
    }

    // MARK: Rows

    private func change(_ db: Database, _ bases: [Base], _ random: inout Seeded) throws {
        switch self {
        case .hostileCounts:
            let columns = [
                ("chunk", ["id", "first_exit", "exits", "events", "raw"]),
                ("checkpoint", ["id", "exit", "event", "parent", "pages_dirtied", "bytes_stored"]),
                ("extent", ["id", "pages"]),
            ]
            let (table, names) = random.pick(columns)
            let name = random.pick(names)
            let change = random.below(3) == 0 ? "\(name) + \(1 - 2 * random.below(2))" : "\(random.hostile())"
            try db.execute(sql: "UPDATE \(table) SET \(name) = \(change)")
        case .swappedBlobs:
            try db.execute(sql: "ATTACH ? AS other", arguments: [random.pick(bases).path])
            let columns = random.pick([
                ("chunk", ["digest", "data"]), ("chunk", ["exits", "events", "raw", "digest", "data"]),
                ("checkpoint", ["digest", "cpu", "devices", "pages"]), ("checkpoint", ["cpu"]), ("extent", ["digest", "data"]),
                ("extent", ["pages", "digest", "data"]), ("meta", ["value"]),
            ])
            let key = columns.0 == "meta" ? "key" : "id"
            for name in columns.1 {
                try db.execute(sql: """
                    UPDATE \(columns.0) SET \(name) = (SELECT \(name) FROM other.\(columns.0) AS o
                    WHERE o.\(key) = \(columns.0).\(key))
                    """)
            }
        case .meta:
            let key = random.pick(["recording", "recording", "recording", "ending", "ending", "start", "totals"])
            guard let text = try String.fetchOne(db, sql: "SELECT value FROM meta WHERE key = ?", arguments: [key]),
                let value = try? JSONSerialization.jsonObject(with: Data(text.utf8), options: .fragmentsAllowed)
            else { return }
            let changed = Self.changed(value, &random)
            let bytes = try JSONSerialization.data(withJSONObject: changed, options: .fragmentsAllowed)
            try db.execute(sql: "UPDATE meta SET value = ? WHERE key = ?",
                           arguments: [String(decoding: bytes, as: UTF8.self), key])
        default:
            try db.execute(sql: random.pick([
                "DROP TABLE note", "DELETE FROM checkpoint", "DELETE FROM extent", "DELETE FROM chunk", "DELETE FROM meta",
                "CREATE VIEW v AS SELECT * FROM chunk", "CREATE INDEX i ON chunk(exits)", "ALTER TABLE note ADD COLUMN x",
                "CREATE TRIGGER t AFTER INSERT ON note BEGIN DELETE FROM chunk; END", "UPDATE chunk SET data = NULL",
                "UPDATE chunk SET data = zeroblob(60000000)", "UPDATE meta SET value = zeroblob(4000000)",
                "PRAGMA user_version = 2", "PRAGMA application_id = 7", "UPDATE checkpoint SET cpu = 'text'",
                "INSERT INTO chunk SELECT id + 100000, first_exit, exits, events, raw, digest, data FROM chunk",
                "UPDATE checkpoint SET parent = id", "UPDATE extent SET data = substr(data, 1, 3)",
            ]))
        }
    }

    /// Another value in one place of a JSON tree.
    private static func changed(_ value: Any, _ random: inout Seeded) -> Any {
        switch value {
        case var object as [String: Any]:
            guard !object.isEmpty else { return 0 }
            let key = random.pick(object.keys.sorted())
            if random.below(12) == 0 { object[key] = nil } else { object[key] = changed(object[key] ?? 0, &random) }
            return object
        case var array as [Any]:
            guard !array.isEmpty else { return [0] }
            let index = random.below(array.count)
            switch random.below(10) {
            case 0: array.remove(at: index)
            case 1: array += Array(repeating: array[index], count: 300)
            default: array[index] = changed(array[index], &random)
            }
            return array
        case is String: return random.below(2) == 0 ? String(repeating: "\u{1}é", count: random.below(3000)) : "trap"
        default:
            switch random.below(6) {
            case 0: return NSNull()
            case 1: return "text"
            case 2: return 1.5
            case 3: return NSNumber(value: random.next())
            default: return NSNumber(value: random.hostile())
            }
        }
    }

    // MARK: Events

    private func change(_ loose: inout LooseTrace, _ random: inout Seeded) {
        switch self {
        case .processor:
            for _ in 0...random.below(3) { loose.cpu[random.below(loose.cpu.count)] = UInt8(random.below(256)) }
            if random.below(5) == 0 { loose.cpu.removeLast(random.below(loose.cpu.count)) }
        case .memory:
            let number = random.pick(loose.pages.keys.sorted())
            for _ in 0...random.below(20) { loose.pages[number]?[random.below(4096)] = UInt8(random.below(256)) }
            if random.below(5) == 0 { loose.pages[UInt64(random.below(1 << 20))] = random.bytes(4096) }
        default:
            for _ in 0...random.below(3) { Self.changeEvent(&loose, &random) }
        }
    }

    private static func changeEvent(_ loose: inout LooseTrace, _ random: inout Seeded) {
        guard !loose.events.isEmpty else { return }
        let index = random.below(loose.events.count)
        switch random.below(9) {
        case 0: loose.events.remove(at: index)
        case 1: loose.events.insert(loose.events[index], at: random.below(loose.events.count))
        case 2: loose.events.swapAt(index, random.below(loose.events.count))
        case 3: loose.events[index].value = UInt64(bitPattern: random.hostile())
        case 4: loose.events[index].identity.address = UInt64(bitPattern: random.hostile())
        case 5: loose.events[index].identity.count = UInt32(truncatingIfNeeded: random.hostile())
        case 6: loose.events[index].identity.size = random.pick([0, 1, 2, 4, 8] as [UInt8])
        case 7: loose.events[index].anchor?.rip = UInt64(bitPattern: random.hostile())
        default:
            var event = loose.events[index]
            (event.payload, event.anchor) = (nil, nil)
            event.value = UInt64(bitPattern: random.hostile())
            let kind = random.pick(EventKind.allCases)
            event.identity = EventIdentity(
                kind: kind, size: random.pick([0, 1, 2, 4, 8] as [UInt8]), count: UInt32(random.below(3)),
                address: random.below(2) == 0 ? UInt64(random.below(256)) : UInt64(bitPattern: random.hostile()))
            if kind == .memoryWrite || random.below(6) == 0 {
                let bytes = random.bytes(random.below(9000))
                event.payload = bytes[...]
                event.identity.count = UInt32(bytes.count)
            }
            if kind.isAnchored {
                event.payload = nil
                event.anchor = Anchor(
                    rip: 0x100000 + UInt64(random.below(0x2000)), registers: random.next(), memory: random.next(),
                    instructions: 0, elapsed: Nanoseconds(UInt64(bitPattern: random.hostile())))
            }
            loose.events.insert(event, at: index)
        }
    }
}
