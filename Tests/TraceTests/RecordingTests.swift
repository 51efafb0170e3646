import Foundation
import GRDB
import Testing
import VMCore

@testable import Trace

@Suite struct RecordingTests {
    let folder = Folder()
    private let halt = EventIdentity(kind: .halt)

    private func wait(_ what: String, until condition: () throws -> Bool) rethrows {
        let deadline = Date() + 20
        while try !condition() {
            guard Date() < deadline else {
                Issue.record("\(what): not within 20 s")
                return
            }
            usleep(5000)
        }
    }

    /// Looking at the tail takes a fiftieth of a processor at most, and no event waits for long all the same.
    @Test(arguments: [(0, 100), (1_999, 100), (3_000, 150), (5_000, 250), (900_000, 250)] as [(UInt64, UInt64)])
    func looksAreAsRareAsTheyAreDear(_ cost: UInt64, _ interval: UInt64) {
        #expect(RecorderThread.interval(after: .microseconds(cost)) == .milliseconds(interval))
    }

    @Test func aQuietGuestsTailIsCommittedByItself() throws {
        let writer = try TraceWriter(path: folder("a.vmrr"))
        try writer.append(halt, value: 1)
        let start = Date()
        try wait("the tail") { try TraceReader(path: folder("a.vmrr")).events == 1 }
        print("tail committed and seen after \(Int(Date().timeIntervalSince(start) * 1000)) ms")
        // The row grows; it isn't followed by another.
        for count in 2...5 {
            try writer.append(halt, value: 1)
            try wait("the tail") { try TraceReader(path: folder("a.vmrr")).events == count }
        }
        #expect(try TraceReader(path: folder("a.vmrr")).chunks.count == 1)
        #expect(writer.events == 5 && writer.exits == ExitNumber(5) && writer.failure == nil)
        try writer.finish()
    }

    @Test func aReaderOfALiveTraceSeesWhatWasThereAndMore() throws {
        let writer = try TraceWriter(path: folder("a.vmrr"))
        try writer.append(halt, value: 1)
        try writer.flush()
        let reader = try TraceReader(path: folder("a.vmrr"))
        try writer.append(halt, value: 2)
        try writer.flush()
        var cursor = reader.cursor()
        #expect(try cursor.next()?.value == 1)
        #expect(try cursor.next()?.value == 2)
        #expect(try cursor.next() == nil)
        #expect(!reader.isFinished)
        try writer.finish()
    }

    @Test func metaNotesAndTotals() throws {
        struct Machine: Codable, Equatable { var memory: Int, cpu: String }
        let machine = Machine(memory: 64, cpu: "x86-64-v2 \u{0} ü")
        let writer = try TraceWriter(path: folder("a.vmrr"), metadata: ["machine": machine, "engine": "kvm"])
        #expect(throws: TraceError.self) { try writer.setMeta("totals", 1) }
        try writer.setMeta("late", [1, 2])
        try writer.append(halt, value: 0)
        try writer.addNote(exit: ExitNumber(1), kind: "mark", text: "he\u{0}re")
        try writer.addNote(exit: ExitNumber(0), kind: "input", text: "")
        try writer.finish(meta: ["ending": "shutdown"])
        #expect(throws: TraceError.finished) { try writer.finish() }
        #expect(throws: TraceError.finished) { try writer.append(halt, value: 0) }
        #expect(throws: TraceError.finished) { try writer.flush() }

        let reader = try TraceReader(path: folder("a.vmrr"))
        #expect(try reader.meta("machine", as: Machine.self) == machine)
        #expect(try reader.meta("late", as: [Int].self) == [1, 2])
        #expect(try reader.meta("ending", as: String.self) == "shutdown")
        #expect(try reader.meta("absent", as: Int.self) == nil)
        #expect(throws: TraceError.self) { try reader.meta("engine", as: Int.self) }
        #expect(reader.metadata["engine"] == "\"kvm\"")
        #expect(reader.totals == TraceTotals(events: 1, exits: 1, failure: nil))
        #expect(try reader.notes() == [
            TraceNote(exit: ExitNumber(1), kind: "mark", text: "he\u{0}re"),
            TraceNote(exit: ExitNumber(0), kind: "input", text: ""),
        ])
    }

    @Test func aFinishedTraceIsOneSmallFile() throws {
        let size = try record([.read(1, 1)], at: folder("a.vmrr"))
        #expect(try FileManager.default.contentsOfDirectory(atPath: folder.path) == ["a.vmrr"])
        #expect(size <= 8192, "\(size) bytes")
    }

    @Test func anExistingFileIsKeptUnlessToldOtherwise() throws {
        let path = folder("a.vmrr")
        try put(Data("precious".utf8), at: path)
        #expect(throws: TraceError.exists(path: path)) { try TraceWriter(path: path) }
        #expect(FileManager.default.contents(atPath: path) == Data("precious".utf8))
        #expect(throws: TraceError.self) { try TraceWriter(path: folder.path, options: .init(overwrite: true)) }
        #expect(throws: TraceError.self) { try TraceWriter(path: folder("no/such/folder/a.vmrr")) }
        try record([.read(1, 1)], at: path)
        #expect(try readAll(path) == [.read(1, 1)])
    }

    @Test func aWriterThatGoesAwayLeavesAllItsEvents() throws {
        do {
            let writer = try TraceWriter(path: folder("a.vmrr"))
            for value in 0..<100 { try writer.append(halt, value: UInt64(value)) }
        }
        let reader = try TraceReader(path: folder("a.vmrr"))
        #expect(reader.events == 100 && !reader.isFinished)
    }

    @Test func sqliteFindsNothingWrong() throws {
        var random = Seeded(5)
        let path = folder("a.vmrr")
        try record((0..<100_000).map { _ in Event.random(&random, identities: 50) }, at: path, flushEvery: 9999)
        let queue = try DatabaseQueue(path: path)
        #expect(try queue.read { try String.fetchOne($0, sql: "PRAGMA integrity_check") } == "ok")
        #expect(try queue.read { try Int.fetchOne($0, sql: "PRAGMA user_version") } == 1)
    }

    // MARK: Death

    @Test func whateverInstantARecordingIsKilledItsEventsAreAPrefix() throws {
        var random = Seeded(6)
        var counts: [Int] = []
        var hot = 0
        for round in 0..<20 {
            let path = folder("k\(round).vmrr")
            let pace = round % 3 == 0 ? ["300", "200"] : round % 3 == 1 ? ["5000", "0"] : ["20", "3000"]
            let helper = try Helper([path] + pace)
            helper.waitUntilRecording()
            usleep(UInt32(random.below(400_000)))
            helper.kill()
            if let journal = FileManager.default.contents(atPath: path + "-journal"), journal.first == 0xD9 { hot += 1 }
            counts.append(try Helper.verifyPrefix(path))
        }
        #expect(counts.contains { $0 > 1000 })
        print("events after each kill: \(counts); \(hot) with a hot journal")
    }

    @Test(arguments: [60_000, 400_000, 3_000_000]) func theFileSizeLimitEndsTheRecordingWell(limit: Int) throws {
        let path = folder("full.vmrr")
        let helper = try Helper([path, "5000"], environment: ["TRACE_FILE_LIMIT": "\(limit)", "TRACE_NOISE": "1"])
        let (status, output) = helper.finish()
        #expect(status == 3 && output.contains("file size limit"), "\(output)")
        try expectGoodEnding(path)
    }

    @Test func aFullDiskEndsTheRecordingWell() throws {
        let mount = folder("disk")
        try FileManager.default.createDirectory(atPath: mount, withIntermediateDirectories: false)
        guard getuid() == 0, run("/bin/mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", mount) == 0 else {
            print("no tmpfs can be mounted here: skipped")
            return
        }
        defer { _ = run("/bin/umount", mount) }
        let helper = try Helper([mount + "/full.vmrr", "5000"], environment: ["TRACE_NOISE": "1"])
        let (status, output) = helper.finish()
        #expect(status == 3 && output.contains("disk is full"), "\(output)")
        try expectGoodEnding(mount + "/full.vmrr")
    }

    @Test func aDiskWithoutASingleFreeByteStillTakesTheEnding() throws {
        let mount = folder("disk")
        try FileManager.default.createDirectory(atPath: mount, withIntermediateDirectories: false)
        guard getuid() == 0, run("/bin/mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", mount) == 0 else {
            print("no tmpfs can be mounted here: skipped")
            return
        }
        defer { _ = run("/bin/umount", mount) }
        let writer = try TraceWriter(path: mount + "/a.vmrr")
        var random = Seeded(7)
        try (0..<1000).forEach { _ in try writer.append(halt, value: random.next()) }
        try writer.flush()
        let descriptor = open(mount + "/filler", O_CREAT | O_WRONLY, 0o600)
        while Foundation.write(descriptor, [UInt8](repeating: 1, count: 4096), 4096) > 0 {}
        close(descriptor)
        try (0..<10_000).forEach { _ in try writer.append(halt, value: random.next()) }
        #expect { try writer.flush() } throws: { if case TraceError.full = $0 { true } else { false } }
        #expect { try writer.append(halt, value: 0) } throws: { if case TraceError.full = $0 { true } else { false } }
        let ending = String(repeating: "the disk is full ", count: 300)
        #expect(throws: TraceError.self) { try writer.finish(meta: ["ending": ending]) }
        let reader = try TraceReader(path: mount + "/a.vmrr")
        #expect(reader.events == 1000 && reader.totals?.failure != nil)
        #expect(try reader.meta("ending", as: String.self) == ending)
        #expect(try readAll(mount + "/a.vmrr").count == 1000)
    }

    private func expectGoodEnding(_ path: String) throws {
        #expect(!FileManager.default.fileExists(atPath: path + "-journal"))
        _ = try Helper.verifyPrefix(path)
        let reader = try TraceReader(path: path)
        #expect(reader.totals?.failure != nil)
        #expect(try reader.meta("ending", as: String.self)?.contains("full.vmrr") == true)
        #expect(reader.totals?.events == reader.events)
    }

    private func run(_ program: String, _ arguments: String...) -> Int32 {
        let process = Process()
        process.executableURL = URL(fileURLWithPath: program)
        process.arguments = arguments
        process.standardError = FileHandle.nullDevice
        guard (try? process.run()) != nil else { return -1 }
        process.waitUntilExit()
        return process.terminationStatus
    }
}
