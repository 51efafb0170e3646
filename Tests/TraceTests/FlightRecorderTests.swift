import Foundation
import Testing
import VMCore

@testable import Trace

/// Checkpoints that come while events go on, and files that keep their tail only.
@Suite struct FlightRecorderTests {
    let folder = Folder()

    private typealias Memory = [UInt64: [UInt8]]
    private static let pages = 400

    /// What a recording wrote: memory at each checkpoint, by its exit.
    private struct Written {
        var memory: [ExitNumber: Memory] = [:]
        var exits: UInt64 = 0
        var largest: UInt64 = 0
    }

    /// Records `checkpoints` of them, 50 events apart; `look` is called after each.
    private func record(
        _ path: String, checkpoints: Int, keep: Retention?, seed: UInt64, look: (TraceWriter) throws -> Void = { _ in }
    ) throws -> Written {
        var random = Seeded(seed)
        var written = Written()
        var memory: Memory = [:]
        let writer = try TraceWriter(
            path: path, options: .init(keep: keep), first: NewCheckpoint(exit: .start, cpu: Data(), devices: Data()))
        written.memory[.start] = memory
        var known: [[UInt8]] = []
        for number in 1...checkpoints {
            for _ in 0..<50 { try writer.append(EventIdentity(kind: .portRead, size: 8, address: 1), value: random.next()) }
            try writer.addNote(exit: writer.exits, kind: "test", text: "\(number)")
            var dirty: Set<UInt64> = []
            for _ in 0..<random.below(40) {
                // A few pages change all the time, the others seldom; some contents come again.
                let page = UInt64(random.below(random.below(3) == 0 ? Self.pages : 20))
                switch random.below(6) {
                case 0: memory[page] = nil
                case 1 where !known.isEmpty: memory[page] = known[random.below(known.count)]
                default:
                    memory[page] = random.bytes(4096)
                    known.append(memory[page]!)
                    if known.count > 50 { known.removeFirst() }
                }
                dirty.insert(page)
            }
            for page in dirty.sorted() {
                try (memory[page] ?? [UInt8](repeating: 0, count: 4096)).withUnsafeBytes {
                    try writer.addPage(page, $0.baseAddress!)
                }
            }
            try writer.addCheckpoint(
                NewCheckpoint(exit: writer.exits, cpu: Data([7]), devices: Data([8]),
                              wall: .milliseconds(UInt64(number) * 100)),
                event: writer.events)
            written.memory[writer.exits] = memory
            try look(writer)
        }
        written.exits = writer.exits.rawValue
        try writer.finish(meta: ["ending": "done"])
        return written
    }

    /// Every checkpoint in the file has the memory that it had; the events go from the first one to the end.
    private func check(_ path: String, _ written: Written, finished: Bool = true) throws -> TraceReader {
        let reader = try TraceReader(path: path)
        for checkpoint in reader.checkpoints {
            var loaded: Memory = [:]
            try reader.loadPages(checkpoint.id, pageLimit: UInt64(Self.pages)) { page, bytes in
                if let bytes { loaded[page] = Array(bytes) }
            }
            let expected = try #require(written.memory[checkpoint.exit])
            #expect(loaded == expected, "checkpoint \(checkpoint.id) at exit \(checkpoint.exit)")
        }
        let oldest = try #require(reader.checkpoints.first)
        #expect(oldest.parent == nil)
        var cursor = reader.cursor()
        try cursor.seek(toEvent: oldest.event)
        #expect(cursor.sequence == oldest.event && cursor.exit == oldest.exit)
        var exit = oldest.exit
        while let event = try cursor.next() { exit = event.exit }
        #expect(exit == reader.lastExit && reader.isFinished == finished)
        if finished { #expect(exit.rawValue == written.exits) }
        return reader
    }

    @Test func checkpointsGoAlongWithTheEvents() throws {
        let path = folder("a.vmrr")
        let written = try record(path, checkpoints: 140, keep: nil, seed: 1)
        let reader = try check(path, written)
        #expect(reader.checkpoints.count == 141 && reader.firstExit == .start)
        // Now and then one names all pages again, so that no chain gets long.
        let complete = reader.checkpoints.filter { $0.parent == nil }
        #expect(complete.count == 1 + 140 / CheckpointWriter.chain)
    }

    @Test(arguments: [UInt64(1), 2, 3]) func aFileOfBoundedSizeKeepsItsTail(seed: UInt64) throws {
        let path = folder("a.vmrr")
        let bound: UInt64 = 2 << 20
        var largest: UInt64 = 0
        let written = try record(path, checkpoints: 250, keep: .bytes(bound), seed: seed) { writer in
            largest = max(largest, writer.fileBytes)
            #expect(!writer.exceedsBound)
        }
        let reader = try check(path, written)
        // 40 pages that don't compress are the most that a checkpoint adds.
        #expect(largest > bound * 3 / 4 && largest <= bound + 40 * 5000, "seed \(seed): \(largest)")
        #expect(reader.firstExit > .start && reader.checkpoints.count > 3)
        #expect(try reader.notes().allSatisfy { $0.exit >= reader.firstExit })
        // Nothing is stored that no checkpoint names.
        var named: Set<Int64> = []
        for checkpoint in reader.checkpoints {
            let blobs = try reader.store.read { db in try CheckpointRow.blobs(checkpoint.id, db) }
            for run in try PageMap(Box.open(blobs.pages), pageLimit: 4096, slotLimit: 1 << 40).runs {
                guard case .slot(let first) = run.content else { continue }
                for slot in first..<(first + run.count) { named.insert(PageContent.extent(slot)) }
            }
        }
        #expect(try Set(reader.extents().map(\.id)) == named)
    }

    @Test func aFileOfBoundedTimeKeepsItsTail() throws {
        let path = folder("a.vmrr")
        let written = try record(path, checkpoints: 100, keep: .time(.seconds(5)), seed: 5)
        let reader = try check(path, written)
        let (oldest, newest) = (reader.checkpoints.first!.wall, reader.checkpoints.last!.wall)
        #expect(newest - oldest >= .seconds(5) && newest - oldest <= .milliseconds(5_800), "\(newest - oldest)")
    }

    @Test func aTailThatNeedsMoreThanItsBoundSaysSo() throws {
        let path = folder("a.vmrr")
        var exceeds = false
        let written = try record(path, checkpoints: 100, keep: .bytes(400 << 10), seed: 6) { exceeds = $0.exceedsBound }
        #expect(exceeds)
        #expect(try check(path, written).checkpoints.count <= 2)
    }

    @Test func aCopyMadeMeanwhileIsAGoodTrace() throws {
        let path = folder("a.vmrr")
        var copies: [String] = []
        let written = try record(path, checkpoints: 200, keep: .bytes(2 << 20), seed: 7) { writer in
            guard writer.exits.rawValue % 3000 == 0 else { return }
            copies.append(folder("copy-\(copies.count).vmrr"))
            try writer.save(to: copies[copies.count - 1])
            #expect(throws: TraceError.exists(path: copies[0])) { try writer.save(to: copies[0]) }
        }
        _ = try check(path, written)
        #expect(copies.count == 3)
        for copy in copies {
            let reader = try check(copy, written, finished: false)
            #expect(try reader.meta(TraceSaved.key, as: TraceSaved.self)?.exit == reader.lastExit)
            #expect(!FileManager.default.fileExists(atPath: copy + "-journal"))
            #expect(!FileManager.default.fileExists(atPath: copy + ".part"))
        }
    }

    @Test func boundsAreRead() {
        #expect(Retention(parsing: "512MiB") == .bytes(512 << 20))
        #expect(Retention(parsing: "2G") == .bytes(2 << 30))
        #expect(Retention(parsing: "30s") == .time(.seconds(30)))
        #expect(Retention(parsing: "2min") == .time(.seconds(120)))
        for wrong in ["", "1KiB", "0s", "500ms", "-1s", "MiB", "99999999999999G", "x"] {
            #expect(Retention(parsing: wrong) == nil, "\(wrong)")
        }
    }
}
